//! A real `stagely core` for one test, with a Git repository, a registry and the types of its API. A test ends with
//! [`Core::finish`], which checks that nothing is left.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod finish;
mod follow;
mod preview;

use std::fs;
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;
use reqwest::Method;
use serde_json::{Value, json};
use stagely::api::{AddedMachine, CreateRun, JobView, MachineView, RunView};
use stagely_protocol::{Arch, CommitSha};
use stagely_state::Fleet;
use stagely_state::ids::{JobId, RunId};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::core_process::CoreProcess;
use stagely_test_support::files::write_private;
use stagely_test_support::git::{GitServer, Repository, TOKEN};
use stagely_test_support::processes::{ChildProcess, Process, processes_with};
use stagely_test_support::program;
use stagely_test_support::registry::Registry;
use stagely_test_support::settings::with_defaults;
use stagely_test_support::wait::{LIMIT, eventually, wait_for};
use tempfile::TempDir;

pub use follow::Follower;

/// A core with a Git server that serves one repository.
pub struct Core {
    /// The project's unique name. It is part of each image's name, and builds have it in their commands, so that
    /// their processes can be found.
    pub name: String,
    pub git: GitServer,
    pub repository: Repository,
    pub registry: Registry,
    process: CoreProcess,
    _folder: TempDir,
}

impl Deref for Core {
    type Target = CoreProcess;

    fn deref(&self) -> &CoreProcess {
        &self.process
    }
}

impl DerefMut for Core {
    fn deref_mut(&mut self) -> &mut CoreProcess {
        &mut self.process
    }
}

impl Core {
    /// Starts a core of `program` that launches local machines; `settings` is TOML that goes before the defaults.
    pub async fn start(program: &str, name: &str, settings: &str) -> Self {
        Self::start_with(program, name, Registry::real(), settings).await
    }

    pub async fn start_with(program: &str, name: &str, registry: Registry, settings: &str) -> Self {
        Self::start_in(program, name, registry, settings, Vec::new()).await
    }

    /// As [`start_with`](Self::start_with), with these environment variables.
    pub async fn start_in(
        program: &str,
        name: &str,
        registry: Registry,
        settings: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        assert!(
            geteuid().is_root(),
            "these tests read the environment of all processes: run them as root"
        );
        let docker = Command::new("docker").arg("version").output();
        let answers = docker.is_ok_and(|output| output.status.success());
        assert!(answers, "no Docker engine answers: scripts/setup starts one");
        let unique: u32 = rand::random_range(0x1000_0000..u32::MAX);
        let name = format!("e2e-{name}-{unique:x}");
        let folder = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir().unwrap();
        let git = GitServer::start();
        let repository = git.repository("app", true);
        let settings = with_defaults(settings, registry.settings()).to_string();
        let path = folder.path().to_owned();
        let mut process = CoreProcess::new(program, path, "127.0.0.1", &settings);
        for (name, value) in environment {
            process = process.with_variable(name, value);
        }
        process.launch().await;
        Self { name, git, repository, registry, process, _folder: folder }
    }

    /// Makes core listen at all addresses from now on. Its address for agents is that of `host`.
    pub async fn listen_for(&mut self, host: Ipv4Addr) {
        assert!(self.shut_down().await.success());
        let path = self.path("stagely.toml");
        let mut config: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let port = self.url.rsplit_once(':').unwrap().1;
        let core = config["core"].as_table_mut().unwrap();
        core.insert("listen".to_owned(), format!("0.0.0.0:{port}").into());
        core.insert("public-url".to_owned(), format!("http://{host}:{port}").into());
        fs::write(path, config.to_string()).unwrap();
        self.launch().await;
    }

    /// A request for a run of the private repository, with its token.
    pub fn request(&self) -> CreateRun {
        CreateRun {
            clone_token: Some(TOKEN.into()),
            project: Some(self.name.clone()),
            ..CreateRun::new(self.git.url("private", "app/.git"))
        }
    }

    pub async fn run(&self, request: CreateRun) -> RunId {
        let run: RunView = self.post("/runs", serde_json::to_value(request).unwrap()).await;
        run.id
    }

    /// Commits `files` to `branch`, which begins at the main branch if it is new, and checks out the main branch again.
    pub fn commit_to(&self, branch: &str, files: &[(&str, &str)]) -> CommitSha {
        let known = self.repository.git(&["branch", "--list", branch]);
        let make: &[&str] = if known.is_empty() { &["-b"] } else { &[] };
        self.repository.git(&[&["checkout", "--quiet"], make, &[branch]].concat());
        let commit = self.repository.commit(files);
        self.repository.git(&["checkout", "--quiet", "main"]);
        commit
    }

    /// The reference that is the same in each run of `environment`.
    pub fn image(&self, environment: &str, tag: &str) -> String {
        format!("{}/{}/{environment}:{tag}", self.registry.url, self.name)
    }

    pub fn cache(&self, tag: &str) -> String {
        self.image("cache", tag)
    }

    /// Commits `files` and starts a run.
    pub async fn run_of(&self, files: &[(&str, &str)]) -> RunId {
        self.repository.commit(files);
        self.run(self.request()).await
    }

    /// Starts a run of one build, `app`, and waits until the build has reached the breakpoint.
    pub async fn run_to_breakpoint(&self) -> (RunId, Breakpoint) {
        let breakpoint = Breakpoint::new();
        let dockerfile = format!("FROM busybox\nRUN : {}; {}\n", self.name, breakpoint.command());
        let manifest = "builds: { app: { context: . } }\n";
        let run = self.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
        breakpoint.reached().await;
        (run, breakpoint)
    }

    pub async fn view(&self, run: RunId) -> RunView {
        self.get(&format!("/runs/{run}")).await
    }

    /// Waits until `is_so` is true of the run, and fails as soon as the run is over.
    pub async fn until(&self, run: RunId, what: &str, is_so: impl Fn(&RunView) -> bool) -> RunView {
        let mut last = None;
        let found = wait_for(LIMIT, async || {
            let view = self.view(run).await;
            if is_so(&view) {
                return Some(view);
            }
            assert!(!is_over(&view), "it ended before {what}: {view:#?}");
            last = Some(view);
            None
        });
        found.await.unwrap_or_else(|| panic!("not within {LIMIT:?}: {what}: {last:#?}"))
    }

    /// Waits until the run has ended and its machines are gone.
    pub async fn ended(&self, run: RunId) -> RunView {
        self.until(run, "the run ends and its machines are gone", is_over).await
    }

    pub async fn log(&self, job: &JobView) -> String {
        self.request_text(Method::GET, &format!("/jobs/{}/logs", job.id), None).await
    }

    pub async fn log_has(&self, job: &JobView, text: &str) {
        let what = format!("the log of {} holds {text:?}", job.name);
        eventually(&what, async || self.log(job).await.contains(text).then_some(())).await;
    }

    pub async fn follow(&self, job: JobId, query: &str) -> Follower {
        let path = format!("/api/v1/jobs/{job}/logs/follow{query}");
        Follower(self.socket(&path, Some(&self.admin_token())).await.unwrap())
    }

    pub async fn machines(&self) -> Vec<MachineView> {
        self.get("/machines").await
    }

    /// Registers a machine of this host's arch and writes its `agent.json`, with the work folder `work-NAME`.
    pub async fn add_machine(&self, name: &str) -> (AddedMachine, PathBuf) {
        self.add_machine_of(Arch::of_this_program(), name).await
    }

    pub async fn add_machine_of(&self, arch: Arch, name: &str) -> (AddedMachine, PathBuf) {
        self.register(json!({ "arch": arch, "name": name }), name).await
    }

    /// As [`add_machine`](Self::add_machine), for `fleet`.
    pub async fn add_machine_for(&self, fleet: Fleet, name: &str) -> (AddedMachine, PathBuf) {
        let arch = Arch::of_this_program();
        self.register(json!({ "arch": arch, "name": name, "fleet": fleet }), name).await
    }

    async fn register(&self, request: Value, name: &str) -> (AddedMachine, PathBuf) {
        let mut added: AddedMachine = self.post("/machines", request).await;
        added.agent_json["work_dir"] = json!(self.path(&format!("work-{name}")));
        let path = self.path(&format!("{name}.json"));
        write_private(&path, &added.agent_json.to_string());
        (added, path)
    }

    /// Starts a program of a registered machine, its output in `NAME.log`.
    pub fn start_agent(&self, name: &str, program: &str, arguments: &[&Path]) -> ChildProcess {
        let mut command = program::command(program);
        command.args(arguments).env("HOME", self.path("home")).env("TMPDIR", self.path("tmp"));
        program::start(&mut command, self.open_log(&format!("{name}.log")))
    }
}

/// Whether the run has ended and its machines are gone.
pub fn is_over(run: &RunView) -> bool {
    run.status.is_final() && run.live_machines == 0
}

impl Drop for Core {
    fn drop(&mut self) {
        // Core first, because it replaces each machine that is killed.
        self.process.end();
        processes_with(&self.name).iter().for_each(Process::kill);
    }
}

pub fn job<'a>(run: &'a RunView, name: &str) -> &'a JobView {
    let found = run.jobs.iter().find(|job| job.name == name);
    found.unwrap_or_else(|| panic!("no job {name} in {run:#?}"))
}

/// The numbers of the lines `N: a line` in a job's log.
pub async fn numbers(core: &Core, job: &JobView) -> Vec<u32> {
    let log = core.log(job).await;
    let number = |line: &str| line.strip_suffix(": a line")?.rsplit(' ').next()?.parse().ok();
    log.lines().filter_map(number).collect()
}

/// A shell command that prints numbered lines, and runs `pause` after every 50 of them.
pub fn lines(first: u32, last: u32, pause: &str) -> String {
    format!(
        "i={first}; while [ $i -le {last} ]; do echo \"$i: a line\"; \
         [ $((i % 50)) -ne 0 ] || {pause}; i=$((i + 1)); done"
    )
}
