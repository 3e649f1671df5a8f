//! `stagely core` as a process of its own, with a folder and an address of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use futures_util::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stagely::api::{
    AddedMachine, CreateRun, FollowMessage, FollowedLine, JobStatus, JobView, MachineView,
    QueueView, RunView,
};
use stagely::core::ADMIN_TOKEN_FILE;
use stagely::core::store::{Store, Stored};
use stagely_protocol::{Arch, CommitSha};
use stagely_state::ids::{JobId, RunId};
use stagely_state::{Effect, RunState};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::git::{GitServer, Repository, TOKEN};
use crate::host::{self, eventually, files_below, processes_with};
use crate::registry::Registry;

/// The program under test.
pub(crate) const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");

/// The program under test, as one runs it who has set nothing in the environment.
pub(crate) fn stagely() -> Command {
    without_settings(Command::new(STAGELY))
}

fn without_settings(mut command: Command) -> Command {
    let settings = std::env::vars().map(|(name, _)| name).filter(|it| it.starts_with("STAGELY_"));
    settings.for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// Below the ports that the system gives to outgoing connections, so that none is taken between the
/// stop and the start of a core, which agents find again at the same address.
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

fn free_port() -> u16 {
    let start = u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = 20_000 + (start + NEXT_PORT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A core, and a git server with one repository for it. A test ends with [`finish`](Self::finish).
pub(crate) struct Core {
    /// Unique over all runs of the tests: the project's name, and so part of every image's. Builds
    /// name it in their commands, so that whatever is left of them can be found.
    pub(crate) name: String,
    pub(crate) git: GitServer,
    pub(crate) repository: Repository,
    pub(crate) registry: Registry,
    pub(crate) url: String,
    folder: TempDir,
    /// What core's process has in its environment beside the usual.
    environment: Vec<(&'static str, String)>,
    process: Option<Child>,
    http: reqwest::Client,
}

impl Core {
    /// Starts a core that launches local machines; `settings` is TOML that is laid over the usual.
    pub(crate) async fn start(name: &str, settings: &str) -> Self {
        Self::start_with(name, Registry::real(), settings).await
    }

    pub(crate) async fn start_with(name: &str, registry: Registry, settings: &str) -> Self {
        Self::start_in(name, registry, settings, Vec::new()).await
    }

    /// As [`start_with`](Self::start_with), with more in the environment of core's process.
    pub(crate) async fn start_in(
        name: &str,
        registry: Registry,
        settings: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        assert!(geteuid().is_root(), "these tests look into processes of others: run them as root");
        let docker = Command::new("docker").arg("version").output();
        let answers = docker.is_ok_and(|output| output.status.success());
        assert!(answers, "no Docker engine answers: scripts/setup starts one");
        let unique: u32 = rand::random_range(0x1000_0000..u32::MAX);
        let name = format!("e2e-{name}-{unique:x}");
        let folder = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir().unwrap();
        let git = GitServer::start();
        let repository = git.repository("app", true);
        let port = free_port();
        let mut config: toml::Table = toml::from_str(settings).unwrap();
        lay_under(&mut config, usual_settings(port, &registry, folder.path()));
        fs::write(folder.path().join("stagely.toml"), config.to_string()).unwrap();
        for private in ["home", "tmp"] {
            fs::create_dir(folder.path().join(private)).unwrap();
        }
        let url = format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::new();
        let process = None;
        let mut core =
            Self { name, git, repository, registry, url, folder, environment, process, http };
        core.launch().await;
        core
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn launch(&mut self) {
        let log = self.open_log("core.log");
        let process = stagely()
            .args(["core", "--config"])
            .arg(self.path("stagely.toml"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        eventually("core is healthy", async || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "core has ended: {ended:?}");
            self.http.get(format!("{}/healthz", self.url)).send().await.ok()
        })
        .await;
    }

    fn open_log(&self, name: &str) -> fs::File {
        fs::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pid(&self) -> Pid {
        let process = self.process.as_ref().expect("core runs");
        Pid::from_raw(i32::try_from(process.id()).unwrap())
    }

    /// Kills the process as a power cut would; its machines go on.
    pub(crate) async fn crash(&mut self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.exited().await;
    }

    /// Asks the process to stop, as a service manager does.
    pub(crate) async fn shut_down(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.exited().await
    }

    async fn exited(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        eventually("core ends", async || process.try_wait().unwrap()).await
    }

    pub(crate) fn admin_token(&self) -> String {
        let text = fs::read_to_string(self.path("data").join(ADMIN_TOKEN_FILE)).unwrap();
        text.trim().to_owned()
    }

    /// Sends a request with `token`; the answer's status and text.
    pub(crate) async fn call(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, String) {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Value>) -> T {
        let path = format!("/api/v1{path}");
        let (status, text) = self.call(Some(&self.admin_token()), method, &path, body).await;
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: Value) -> T {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// A request for a run of the private repository, with the token that opens it.
    pub(crate) fn request(&self) -> CreateRun {
        CreateRun {
            clone_token: Some(TOKEN.into()),
            project: Some(self.name.clone()),
            ..CreateRun::new(self.git.url("private", "app/.git"))
        }
    }

    pub(crate) async fn run(&self, request: CreateRun) -> RunId {
        let run: RunView = self.post("/runs", serde_json::to_value(request).unwrap()).await;
        run.id
    }

    /// Commits `files` to `branch`, which begins at the main branch if it is new, and goes back.
    pub(crate) fn commit_to(&self, branch: &str, files: &[(&str, &str)]) -> CommitSha {
        let known = self.repository.git(&["branch", "--list", branch]);
        let make: &[&str] = if known.is_empty() { &["-b"] } else { &[] };
        self.repository.git(&[&["checkout", "--quiet"], make, &[branch]].concat());
        let commit = self.repository.commit(files);
        self.repository.git(&["checkout", "--quiet", "main"]);
        commit
    }

    /// The reference that is the same in each run of `environment`.
    pub(crate) fn image(&self, environment: &str, tag: &str) -> String {
        format!("{}/{}/{environment}:{tag}", self.registry.url, self.name)
    }

    /// The layer cache called `tag`.
    pub(crate) fn cache(&self, tag: &str) -> String {
        self.image("cache", tag)
    }

    /// Commits `files` and starts a run of them.
    pub(crate) async fn run_of(&self, files: &[(&str, &str)]) -> RunId {
        self.repository.commit(files);
        self.run(self.request()).await
    }

    pub(crate) async fn view(&self, run: RunId) -> RunView {
        self.get(&format!("/runs/{run}")).await
    }

    /// Waits until the run is as `is_so` says.
    pub(crate) async fn until(
        &self,
        run: RunId,
        what: &str,
        is_so: impl Fn(&RunView) -> bool,
    ) -> RunView {
        let mut last = None;
        let started = tokio::time::Instant::now();
        loop {
            let view = self.view(run).await;
            if is_so(&view) {
                return view;
            }
            let in_vain = started.elapsed() > host::LIMIT;
            assert!(!in_vain, "in vain: {what}: {last:#?}");
            assert!(!is_over(&view), "it ended before {what}: {view:#?}");
            last = Some(view);
            tokio::time::sleep(host::POLL).await;
        }
    }

    /// Waits until the run has ended and its machines are gone.
    pub(crate) async fn ended(&self, run: RunId) -> RunView {
        self.until(run, "the run ends and its machines are gone", is_over).await
    }

    pub(crate) async fn log(&self, job: &JobView) -> String {
        let path = format!("/api/v1/jobs/{}/logs", job.id);
        self.call(Some(&self.admin_token()), Method::GET, &path, None).await.1
    }

    /// Waits until the job's log holds `text`.
    pub(crate) async fn log_has(&self, job: &JobView, text: &str) {
        let what = format!("the log of {} holds {text:?}", job.name);
        eventually(&what, async || self.log(job).await.contains(text).then_some(())).await;
    }

    pub(crate) async fn follow(&self, job: JobId, query: &str) -> Follower {
        let path = format!("/api/v1/jobs/{job}/logs/follow{query}");
        Follower(self.socket(&path, Some(&self.admin_token())).await.unwrap())
    }

    pub(crate) async fn socket(
        &self,
        path: &str,
        token: Option<&str>,
    ) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
        let url = format!("{}{path}", self.url.replace("http", "ws"));
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("Authorization", value);
        }
        Ok(tokio_tungstenite::connect_async(request).await?.0)
    }

    pub(crate) async fn machines(&self) -> Vec<MachineView> {
        self.get("/machines").await
    }

    /// Registers a machine like this one and writes its `agent.json`, to work below `work-NAME`.
    pub(crate) async fn add_machine(&self, name: &str) -> (AddedMachine, PathBuf) {
        self.add_machine_of(Arch::of_this_program(), name).await
    }

    pub(crate) async fn add_machine_of(&self, arch: Arch, name: &str) -> (AddedMachine, PathBuf) {
        let mut added: AddedMachine =
            self.post("/machines", json!({ "arch": arch, "name": name })).await;
        added.agent_json["work_dir"] = json!(self.path(&format!("work-{name}")));
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, added.agent_json.to_string()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        (added, path)
    }

    /// Starts a program of a registered machine, its output in `NAME.log`.
    pub(crate) fn start_agent(&self, name: &str, program: &str, arguments: &[&Path]) -> Agent {
        let log = self.open_log(&format!("{name}.log"));
        let process = without_settings(Command::new(program))
            .args(arguments)
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Agent(process.unwrap())
    }

    /// Stops core and checks that nothing is left behind. Returns what the store holds.
    pub(crate) async fn finish(mut self) -> Stored {
        eventually("all machines are gone", async || {
            let queue: QueueView = self.get("/queue").await;
            (queue.live_machines == 0).then_some(())
        })
        .await;
        eventually("all runs have ended", async || {
            let runs: Vec<RunView> = self.get("/runs?limit=1000").await;
            runs.iter().all(|run| run.status.is_final()).then_some(())
        })
        .await;
        // Between two steps of a planning that is being stopped nothing lies there either.
        tokio::time::sleep(host::POLL).await;
        eventually("all planning has ended", async || {
            files_below(&self.path("data/scratch")).is_empty().then_some(())
        })
        .await;
        let status = self.shut_down().await;
        assert!(status.success(), "core: {status}");
        let (_, stored) = Store::open(&self.path("data/core.redb")).unwrap();
        self.nothing_runs(&stored).await;
        self.no_file_is_left();
        nothing_is_open(&stored);
        self.no_secret_is_readable();
        stored
    }

    /// No process of this core's machines, none of their builds, no container and no builder.
    async fn nothing_runs(&self, stored: &Stored) {
        for text in [&stored.core_id, &self.name] {
            eventually(&format!("no process has {text:?}"), async || {
                processes_with(text).is_empty().then_some(())
            })
            .await;
        }
        for list in [&["ps", "--all", "--no-trunc"][..], &["buildx", "ls"]] {
            let output = Command::new("docker").args(list).output().unwrap();
            assert!(output.status.success(), "docker {list:?}: is the Docker engine running?");
            let text = String::from_utf8(output.stdout).unwrap();
            let is_ours = |id: &str| text.contains(id);
            let machines = stored.state.machines.keys().any(|id| is_ours(&id.to_string()));
            assert!(!machines && !is_ours(&self.name), "docker {list:?}: {text}");
        }
    }

    /// No work folder, no login, no temporary file.
    fn no_file_is_left(&self) {
        for folder in ["data/machines", "data/scratch"] {
            let entries = fs::read_dir(self.path(folder)).map(Iterator::count).unwrap_or_default();
            assert_eq!(entries, 0, "{folder}: {:?}", files_below(&self.path(folder)));
        }
        let mut left = files_below(self.folder.path());
        left.retain(|path| {
            let path = path.strip_prefix(self.folder.path()).unwrap();
            let is_private = path.starts_with("home") || path.starts_with("tmp");
            is_private
                || path.ends_with("config.json")
                || path.components().any(|it| it.as_os_str() == "jobs")
        });
        assert!(left.is_empty(), "{left:?}");
    }

    /// Neither the databases nor the log of core hold a secret that can be read.
    fn no_secret_is_readable(&self) {
        let password = self.registry.password();
        for path in files_below(self.folder.path()) {
            if path.ends_with("registry-password") {
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            for secret in [TOKEN, &password] {
                let holds = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!holds, "{} holds a secret", path.display());
            }
        }
    }
}

/// Every run has an end, and what was only for its time is gone.
fn nothing_is_open(stored: &Stored) {
    let state = &stored.state;
    let is_final = |run: &RunState| run.is_final();
    assert!(state.runs.values().all(|run| is_final(&run.state)), "{:#?}", state.runs);
    // What GitHub is told comes after the end and waits for its turn, and so does cleaning up.
    let may_wait = |it: &Effect| matches!(it, Effect::Report { .. } | Effect::CleanUp { .. });
    assert!(state.outbox.values().all(may_wait), "{:#?}", state.outbox);
    assert!(stored.run_secrets.is_empty());
    for (machine, _) in &stored.machine_tokens {
        let is_live = state.machines.get(machine).is_some_and(|it| !it.state.is_terminated());
        assert!(is_live, "{machine} is gone and its tokens are not");
    }
}

/// Whether nothing more happens to the run.
pub(crate) fn is_over(run: &RunView) -> bool {
    run.status.is_final() && run.live_machines == 0
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Its machines first: it would launch others.
            let _ = process.kill();
            let _ = process.wait();
        }
        processes_with(&self.name).iter().for_each(host::Process::kill);
        if std::thread::panicking() {
            let mut logs = files_below(self.folder.path());
            logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            for log in logs {
                let text = fs::read_to_string(&log).unwrap_or_default();
                eprintln!("{}:\n{text}", log.display());
            }
        }
    }
}

/// The settings of every test.
fn usual_settings(port: u16, registry: &Registry, folder: &Path) -> toml::Table {
    let listen = format!("127.0.0.1:{port}");
    let data_dir = folder.join("data");
    toml::toml! {
        [core]
        listen = (listen.as_str())
        data-dir = (data_dir.to_str().unwrap())
        disk-free-min-mib = 1
        [registry]
        url = (registry.url.as_str())
        username = (registry.username.as_str())
        password-file = (registry.password_file.as_str())
    }
}

/// Adds to `over` what it does not say.
fn lay_under(over: &mut toml::Table, under: toml::Table) {
    for (key, value) in under {
        match (over.get_mut(&key), value) {
            (Some(toml::Value::Table(over)), toml::Value::Table(under)) => lay_under(over, under),
            (Some(_), _) => {}
            (None, value) => {
                over.insert(key, value);
            }
        }
    }
}

pub(crate) type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// A viewer of a job's log.
pub(crate) struct Follower(pub(crate) Socket);

impl Follower {
    /// The next message; `None` when core has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<FollowMessage> {
        loop {
            match tokio::time::timeout(host::LIMIT, self.0.next()).await.unwrap() {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Reads on until `is_last` is true of a line; all lines so far.
    pub(crate) async fn lines_until(&mut self, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        while !all.iter().any(|line: &String| line.contains(text)) {
            match self.next().await {
                Some(FollowMessage::Lines { lines, .. }) => all.extend(texts(lines)),
                other => panic!("no {text:?} in {all:#?}, but {other:?}"),
            }
        }
        all
    }

    /// Reads to the end: all lines, and how the job ended.
    pub(crate) async fn rest(&mut self) -> (Vec<String>, JobStatus) {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Some(FollowMessage::Lines { lines, .. }) => all.extend(texts(lines)),
                Some(FollowMessage::End { status, .. }) => {
                    assert!(self.next().await.is_none(), "a message after the end");
                    return (all, status);
                }
                None => panic!("no end after {all:#?}"),
            }
        }
    }
}

fn texts(lines: Vec<FollowedLine>) -> impl Iterator<Item = String> {
    lines.into_iter().map(|line| line.data)
}

/// The process of a registered machine's agent. Killed with the value.
pub(crate) struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub(crate) async fn stop(mut self) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        eventually("the agent ends", async || self.0.try_wait().unwrap()).await
    }
}

/// The job called `name`.
pub(crate) fn job<'a>(run: &'a RunView, name: &str) -> &'a JobView {
    let found = run.jobs.iter().find(|job| job.name == name);
    found.unwrap_or_else(|| panic!("no job {name} in {run:#?}"))
}

/// The numbers of the lines `N: a line` in a job's log.
pub(crate) async fn numbers(core: &Core, job: &JobView) -> Vec<u32> {
    let log = core.log(job).await;
    let number = |line: &str| line.strip_suffix(": a line")?.rsplit(' ').next()?.parse().ok();
    log.lines().filter_map(number).collect()
}

/// A shell command that prints numbered lines, in the time that `pause` takes every 50 of them.
pub(crate) fn lines(first: u32, last: u32, pause: &str) -> String {
    format!(
        "i={first}; while [ $i -le {last} ]; do echo \"$i: a line\"; \
         [ $((i % 50)) -ne 0 ] || {pause}; i=$((i + 1)); done"
    )
}
