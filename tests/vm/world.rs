//! A network of a test's own with core, a registry, a Git server and guests.

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stagely::api::{CreateRun, MachineView, RunView};
use stagely::core::ADMIN_TOKEN_FILE;
use stagely_state::ids::{JobId, RunId};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::git::{GitServer, Repository};
use crate::host::{Process, files_below, processes_with};

/// The host's loopback as a guest sees it, and, in a test's network, the host itself.
const HOST: &str = "10.0.2.2";

/// Who may see the image, and where it is.
const IMAGE: &str = "STAGELY_GOLDEN_IMAGE_AMD64";

/// How long each thing may take that a guest does. An emulated one on a busy machine takes its time.
const LIMIT: Duration = Duration::from_mins(5);

const POLL: Duration = Duration::from_millis(100);

const QEMU: &str = "qemu-system-x86_64";

/// Held while a guest boots: two at once take more than twice as long.
static BOOTING: Mutex<()> = Mutex::const_new(());

/// Waits until `look` finds something; `what` says what for.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        sleep(POLL).await;
    }
}

/// What a test's core and guests have around them. All of it ends with the value.
pub(crate) struct World {
    pub(crate) registry: Registry,
    git: GitServer,
    /// Keeps the repository's files.
    _repository: Repository,
    folder: TempDir,
    image: PathBuf,
}

impl World {
    /// Puts this thread, and so all that it starts, into a network of its own.
    pub(crate) fn new(name: &str) -> Self {
        assert!(geteuid().is_root(), "these tests make networks: run them as root");
        let image = std::env::var(IMAGE);
        let image = image.unwrap_or_else(|_| panic!("{IMAGE} is not set: run scripts/test --vm"));
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", &format!("{HOST}/32"), "dev", "lo"]);
        let folder = tempfile::Builder::new().prefix(&format!("vm-{name}.")).tempdir().unwrap();
        let git = GitServer::start_at("0.0.0.0", HOST);
        let repository = git.repository("app", true);
        fill(&repository);
        let registry = Registry::start(&folder.path().join("registry"));
        Self { registry, git, _repository: repository, folder, image: image.into() }
    }

    /// Adds `words` to what guests' kernels are told, by a program that stands before QEMU.
    pub(crate) fn append(&mut self, words: &str) {
        let bin = self.folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/bash\narguments=()\nfor argument; do\n  \
             case $argument in root=*) argument+=' {words}' ;; esac\n  \
             arguments+=(\"$argument\")\ndone\nexec /usr/bin/{QEMU} \"${{arguments[@]}}\"\n"
        );
        let program = bin.join(QEMU);
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self) -> std::ffi::OsString {
        let usual = std::env::var_os("PATH").unwrap();
        let bin = self.folder.path().join("bin");
        let all = std::iter::once(bin).chain(std::env::split_paths(&usual));
        std::env::join_paths(all).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Guests of a test that has failed: they all name files in the folder.
        let folder = self.folder.path().to_str().unwrap();
        processes_with(folder).iter().for_each(Process::kill);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success(), "ip {arguments:?}");
}

/// A build that needs no base image: guests have no registry but the test's.
fn fill(repository: &Repository) {
    let busybox = repository.path.join("busybox");
    let script = format!(
        "set -e; id=$(docker create busybox true); trap 'docker rm -f $id >/dev/null' EXIT; \
         docker cp -L $id:/bin/busybox {}",
        busybox.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "scripts/setup makes the image busybox: {output:?}");
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\n\
        RUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo built by a guest > /made; /bin/busybox cat /made\"]\n";
    let manifest = "builds: { app: { context: ., machine: small } }\n";
    repository.commit(&[("Dockerfile", dockerfile), ("stagely.yaml", manifest)]);
}

/// An open registry for the guests of one test.
pub(crate) struct Registry {
    process: Child,
    url: String,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        let port = free_port();
        let config = serde_json::json!({
            "version": 0.1,
            "log": { "level": "warn" },
            "storage": {
                "filesystem": { "rootdirectory": folder.join("data") },
                "delete": { "enabled": true },
            },
            "http": { "addr": format!("0.0.0.0:{port}") },
        });
        let file = folder.join("config.yml");
        fs::write(&file, config.to_string()).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, url: format!("{HOST}:{port}") }
    }

    /// The digest of what `image` names, if there is anything.
    pub(crate) async fn digest(&self, image: &str) -> Option<String> {
        let path = image.strip_prefix(&self.url).unwrap().trim_start_matches('/');
        let (repository, tag) = path.rsplit_once(':').unwrap();
        let kinds = [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ];
        let answer = reqwest::Client::new()
            .head(format!("http://{}/v2/{repository}/manifests/{tag}", self.url))
            .header("Accept", kinds.join(", "))
            .send()
            .await
            .unwrap();
        let digest = answer.headers().get("docker-content-digest")?;
        Some(digest.to_str().unwrap().to_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The network is the test's own, so nobody takes it before it is used.
fn free_port() -> u16 {
    TcpListener::bind(("0.0.0.0", 0)).unwrap().local_addr().unwrap().port()
}

/// A real `stagely core` whose machines are guests.
pub(crate) struct Core {
    process: Option<Child>,
    folder: PathBuf,
    url: String,
    repository: String,
    http: reqwest::Client,
    booting: Option<MutexGuard<'static, ()>>,
}

impl Core {
    /// Starts it when no other core's guest boots; `settings` is added to the usual.
    pub(crate) async fn start(world: &World, settings: &str) -> Self {
        let booting = Some(BOOTING.lock().await);
        let folder = world.folder.path().join("core");
        fs::create_dir(&folder).unwrap();
        let port = free_port();
        let url = format!("http://{HOST}:{port}");
        let config = format!(
            "core = {{ listen = \"0.0.0.0:{port}\", public-url = \"{url}\", data-dir = {data:?}, \
             disk-free-min-mib = 1 }}\n\
             registry = {{ url = {registry:?}, insecure = true }}\n\
             builders = {{ provider = \"qemu\" }}\n\
             qemu = {{ image-amd64 = {image:?}, accelerator = \"tcg\" }}\n{settings}\n",
            data = folder.join("data"),
            registry = world.registry.url,
            image = world.image,
        );
        fs::write(folder.join("stagely.toml"), config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stagely"));
        // Settings of the environment go over those of the file.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STAGELY_")) {
            command.env_remove(name);
        }
        let process = command
            .args(["core", "--config"])
            .arg(folder.join("stagely.toml"))
            .env("PATH", world.path())
            .env("HOME", &folder)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let repository = world.git.url("open", "app/.git");
        let http = reqwest::Client::new();
        let core = Self { process: Some(process), folder, url, repository, http, booting };
        eventually("core is healthy", async || {
            core.http.get(format!("{}/healthz", core.url)).send().await.ok()
        })
        .await;
        core
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it has logged.
    pub(crate) fn says(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> String {
        let token = fs::read_to_string(self.data().join(ADMIN_TOKEN_FILE)).unwrap();
        let mut request = self.http.request(method, format!("{}/api/v1{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.bearer_auth(token.trim()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        serde_json::from_str(&self.ask(Method::GET, path, None).await).unwrap()
    }

    /// Starts a run of the repository.
    pub(crate) async fn run(&self) -> RunId {
        let request = serde_json::to_value(CreateRun::new(self.repository.clone())).unwrap();
        let view = self.ask(Method::POST, "/runs", Some(request)).await;
        serde_json::from_str::<RunView>(&view).unwrap().id
    }

    /// Waits until the run has ended.
    pub(crate) async fn ended(&self, run: RunId) -> RunView {
        eventually("the run ends", async || {
            let view: RunView = self.get(&format!("/runs/{run}")).await;
            view.status.is_final().then_some(view)
        })
        .await
    }

    pub(crate) async fn log_of(&self, job: JobId) -> String {
        self.ask(Method::GET, &format!("/jobs/{job}/logs"), None).await
    }

    async fn machines(&self) -> Vec<MachineView> {
        self.get("/machines").await
    }

    /// Waits until there is no machine, no process of one, and no file.
    pub(crate) async fn nothing_is_left(&self) {
        eventually("core has no machine", async || self.machines().await.is_empty().then_some(()))
            .await;
        let folder = self.data().join("machines");
        assert_eq!(processes_with(folder.to_str().unwrap()).len(), 0);
        assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
    }

    /// Kills it as a power cut would.
    pub(crate) async fn crash(&mut self) {
        self.signal(Signal::SIGKILL).await;
    }

    /// Asks it to stop, as a service manager does.
    pub(crate) async fn shut_down(&mut self) {
        let status = self.signal(Signal::SIGTERM).await;
        assert!(status.success(), "core: {status}: {}", self.says());
    }

    async fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut process = self.process.take().unwrap();
        kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal).unwrap();
        eventually("core ends", async || process.try_wait().unwrap()).await
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("core said:\n{}", self.says());
        }
    }
}

/// The one guest of a core.
pub(crate) struct Guest {
    id: String,
    /// Opened while it is there: the file goes with the guest.
    console: fs::File,
    /// When it was seen to start, and how long after that the last thing happened that was measured.
    started: Instant,
    measured: Cell<Duration>,
}

impl Guest {
    /// Waits until it runs.
    pub(crate) async fn of(core: &Core) -> Self {
        let (id, console) = eventually("a guest runs", async || {
            let folder = core.data().join("machines");
            let machine = fs::read_dir(folder).ok()?.next()?.unwrap();
            let console = fs::File::open(machine.path().join("serial.log")).ok()?;
            let id = machine.file_name().into_string().unwrap();
            runs(&id).then_some((id, console))
        })
        .await;
        Self { id, console, started: Instant::now(), measured: Cell::default() }
    }

    /// What its console shows.
    pub(crate) fn console(&mut self) -> String {
        let mut text = Vec::new();
        self.console.rewind().unwrap();
        self.console.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Prints how long `what` took.
    pub(crate) fn took(&self, what: &str) {
        let now = self.started.elapsed();
        let (all, last) = (now.as_secs_f32(), (now - self.measured.get()).as_secs_f32());
        println!("measured: {what} {all:.1} s after the start of QEMU, {last:.1} s after the last");
        self.measured.set(now);
    }

    /// Waits for its agent.
    pub(crate) async fn says_hello(&mut self, core: &mut Core) {
        self.until("its agent says HELLO", async || {
            let machines = core.machines().await;
            machines.iter().any(|it| it.id.to_string() == self.id && it.connected)
        })
        .await;
        core.booting = None;
        self.took("HELLO");
    }

    /// Waits until it has ended, by itself.
    pub(crate) async fn powers_off(&mut self) {
        self.until("it powers off", async || !runs(&self.id)).await;
        self.took("powered off");
        let console = self.console();
        assert!(console.contains("reboot: Power down"), "it ended otherwise: {console}");
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !is_so().await {
            let in_vain = begun.elapsed() > LIMIT;
            assert!(!in_vain, "in vain: {what}");
            sleep(POLL).await;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the console showed:\n{}", self.console());
        }
    }
}

/// Whether QEMU runs for the machine `id`.
fn runs(id: &str) -> bool {
    let console = format!("/{id}/serial.log");
    let mut arguments = processes_with(&console).into_iter().flat_map(|process| process.arguments);
    arguments.any(|argument| argument.ends_with(&console))
}
