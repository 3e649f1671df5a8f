//! A network for one test, with core, a registry, a Git server and guests.

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use reqwest::Method;
use stagely::api::{CreateRun, MachineView, RunView};
use stagely::core::previews::preview_label;
use stagely_state::ids::{JobId, RunId};
use stagely_test_support::core_process::CoreProcess;
use stagely_test_support::files::{files_below, write_program};
use stagely_test_support::git::{GitServer, Repository};
use stagely_test_support::ports::free_port;
use stagely_test_support::processes::{Process, processes_with};
use stagely_test_support::registry::PrivateRegistry;
use stagely_test_support::settings::with_defaults;
use stagely_test_support::wait::eventually_within;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// The address of the host's loopback inside a guest, and of the host itself in a test's network.
const HOST: &str = "10.0.2.2";

/// The variable that names the folder of the golden image.
const IMAGE: &str = "STAGELY_GOLDEN_IMAGE_AMD64";

/// The time limit of each event, because an emulated guest on a busy machine is slow.
const LIMIT: Duration = Duration::from_mins(5);

const QEMU: &str = "qemu-system-x86_64";

/// Held while a guest boots, because two at once take more than twice as long.
static BOOTING: Mutex<()> = Mutex::const_new(());

/// The registry, the Git server and the folder of a test. They end with the value.
pub(crate) struct World {
    registry: PrivateRegistry,
    git: GitServer,
    repository: Repository,
    folder: TempDir,
    image: PathBuf,
}

impl World {
    /// Moves this thread, and so all processes that it starts, into a network of its own.
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
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, free_port()));
        let registry = PrivateRegistry::start(address, None, true);
        Self { registry, git, repository, folder, image: image.into() }
    }

    /// Commits a preview of the main branch, and a test that opens it. Its page `/cgi-bin/disk` shows the size of its disk
    /// in KiB.
    pub(crate) fn commit_preview(&self) {
        let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY --chmod=755 disk /www/cgi-bin/disk\n\
            CMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";
        let disk = "#!/bin/busybox sh\necho; /bin/busybox df -P -k / | /bin/busybox awk 'END { print $2 }'\n";
        let manifest = "builds: { app: { context: ., machine: small } }\n\
            preview:\n  compose: compose.yaml\n  machine: small\n  disk: 12GiB\n  access: public\n  branches: [main]\n  \
            endpoints: { web: { service: app, port: 8080, health: { path: /cgi-bin/disk, timeout: 5m } } }\n\
            test: { page: { image: app, machine: small, command: [/bin/busybox, sh, -c, \
            '/bin/busybox wget -qO /disk $PREVIEW_URL/cgi-bin/disk && echo a tester found && /bin/busybox cat /disk'], \
            artifacts: [/disk] } }\n";
        let compose = "services: { app: { build: . } }\n";
        self.repository.commit(&[
            ("Dockerfile", dockerfile),
            ("disk", disk),
            ("compose.yaml", compose),
            ("stagely.yaml", manifest),
        ]);
    }

    /// The registry's address for core and guests.
    fn registry_url(&self) -> String {
        format!("{HOST}:{}", self.registry.address().port())
    }

    /// Adds `words` to the command line of the guests' kernels, with a script in the place of QEMU.
    pub(crate) fn append(&mut self, words: &str) {
        let bin = self.folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/bash\narguments=()\nfor argument; do\n  \
             case $argument in root=*) argument+=' {words}' ;; esac\n  \
             arguments+=(\"$argument\")\ndone\nexec /usr/bin/{QEMU} \"${{arguments[@]}}\"\n"
        );
        write_program(&bin.join(QEMU), &script);
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
        // The guests of a failed test, which have files of the folder in their arguments.
        let folder = self.folder.path().to_str().unwrap();
        processes_with(folder).iter().for_each(Process::kill);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success(), "ip {arguments:?}");
}

/// Commits a build without a base image, because guests reach only the test's registry.
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

/// A real `stagely core` whose machines are guests.
pub(crate) struct Core {
    process: CoreProcess,
    repository: String,
    booting: Option<MutexGuard<'static, ()>>,
}

impl Core {
    /// Starts core when no other core's guest boots. `settings` goes before the defaults.
    pub(crate) async fn start(world: &World, settings: &str) -> Self {
        let booting = Some(BOOTING.lock().await);
        let folder = world.folder.path().join("core");
        fs::create_dir(&folder).unwrap();
        let (registry, image) = (world.registry_url(), world.image.to_str().unwrap());
        let settings = with_defaults(
            settings,
            toml::toml! {
                [registry]
                url = (registry.as_str())
                insecure = true
                [builders]
                provider = "qemu"
                [qemu]
                image-amd64 = (image)
                accelerator = "tcg"
            },
        );
        let program = env!("CARGO_BIN_EXE_stagely");
        let mut process = CoreProcess::new(program, folder, HOST, &settings.to_string())
            .with_variable("PATH", world.path());
        process.launch().await;
        Self { process, repository: world.git.url("open", "app/.git"), booting }
    }

    fn data(&self) -> PathBuf {
        self.process.path("data")
    }

    pub(crate) async fn run(&self) -> RunId {
        self.request(CreateRun::new(self.repository.clone())).await
    }

    pub(crate) async fn run_of_main_branch(&self) -> RunId {
        let reference = Some("main".to_owned());
        self.request(CreateRun { reference, ..CreateRun::new(self.repository.clone()) }).await
    }

    async fn request(&self, request: CreateRun) -> RunId {
        let request = serde_json::to_value(request).unwrap();
        self.process.post::<RunView>("/runs", request).await.id
    }

    /// The page at `path` of the preview of `run`'s main branch, through core.
    pub(crate) async fn page(&self, run: &RunView, path: &str) -> String {
        let label = preview_label("main", &run.project, None);
        let port = self.process.url.rsplit_once(':').unwrap().1;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("{}{path}", self.process.url));
        let response = request.header("host", format!("{label}.localhost:{port}")).send().await;
        response.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    pub(crate) async fn ended(&self, run: RunId) -> RunView {
        eventually_within(LIMIT, "the run ends", async || {
            let view: RunView = self.process.get(&format!("/runs/{run}")).await;
            view.status.is_final().then_some(view)
        })
        .await
    }

    /// Panics with core's reason if the guest of `run` was not launched.
    async fn check_launch(&self, run: RunId) {
        let view: RunView = self.process.get(&format!("/runs/{run}")).await;
        assert!(!view.status.is_final(), "the run has ended before its guest runs: {view:#?}");
        for lost in view.jobs.iter().flat_map(|job| &job.lost_attempts) {
            panic!("the guest was not launched: {}: {}", lost.reason, lost.message);
        }
    }

    pub(crate) async fn log_of(&self, job: JobId) -> String {
        self.process.request_text(Method::GET, &format!("/jobs/{job}/logs"), None).await
    }

    async fn machines(&self) -> Vec<MachineView> {
        self.process.get("/machines").await
    }

    /// Waits until there is no machine, and checks that no process and no file is left.
    pub(crate) async fn nothing_is_left(&self) {
        eventually_within(LIMIT, "core has no machine", async || {
            self.machines().await.is_empty().then_some(())
        })
        .await;
        let folder = self.data().join("machines");
        assert_eq!(processes_with(folder.to_str().unwrap()).len(), 0);
        assert_eq!(files_below(&folder), Vec::<PathBuf>::new());
    }

    /// Kills core as a power cut would.
    pub(crate) fn crash(&mut self) {
        self.process.crash();
    }

    /// Stops core as a service manager does.
    pub(crate) async fn shut_down(&mut self) {
        let status = self.process.shut_down().await;
        assert!(status.success(), "core: {status}: {}", self.process.log());
    }
}

/// The only guest of a core.
pub(crate) struct Guest {
    id: String,
    /// Open, because the file is deleted with the guest.
    console: fs::File,
    /// The start of the guest, and the time from then to the last measurement.
    started: Instant,
    measured: Cell<Duration>,
}

impl Guest {
    /// Waits until the guest of `run` runs.
    ///
    /// # Panics
    /// At once if core could not launch it.
    pub(crate) async fn of(core: &Core, run: RunId) -> Self {
        Self::after(core, run, &[]).await
    }

    /// As [`of`](Self::of), for a guest that follows `others`.
    pub(crate) async fn after(core: &Core, run: RunId, others: &[&Self]) -> Self {
        let (id, console) = eventually_within(LIMIT, "a guest runs", async || {
            core.check_launch(run).await;
            let folder = core.data().join("machines");
            let mut machines = fs::read_dir(folder).ok()?.map(Result::unwrap);
            let is_other = |name: &str| others.iter().any(|other| other.id == name);
            let machine =
                machines.find(|entry| !entry.file_name().to_str().is_some_and(is_other))?;
            let console = fs::File::open(machine.path().join("serial.log")).ok()?;
            let id = machine.file_name().into_string().unwrap();
            runs(&id).then_some((id, console))
        })
        .await;
        Self { id, console, started: Instant::now(), measured: Cell::default() }
    }

    pub(crate) fn console(&mut self) -> String {
        let mut text = Vec::new();
        self.console.rewind().unwrap();
        self.console.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Prints the duration of `what`.
    pub(crate) fn took(&self, what: &str) {
        let now = self.started.elapsed();
        let (all, last) = (now.as_secs_f32(), (now - self.measured.get()).as_secs_f32());
        println!("measured: {what} {all:.1} s after the start of QEMU, {last:.1} s after the last");
        self.measured.set(now);
    }

    /// Waits for the HELLO of its agent.
    pub(crate) async fn says_hello(&mut self, core: &mut Core) {
        eventually_within(LIMIT, "the guest's agent says HELLO", async || {
            let machines = core.machines().await;
            let mut machines = machines.iter();
            let is_connected =
                |machine: &MachineView| machine.id.to_string() == self.id && machine.connected;
            machines.any(is_connected).then_some(())
        })
        .await;
        core.booting = None;
        self.took("HELLO");
    }

    /// Waits until the guest has powered itself off.
    pub(crate) async fn powers_off(&mut self) {
        eventually_within(LIMIT, "the guest powers off", async || (!runs(&self.id)).then_some(()))
            .await;
        self.took("powered off");
        let console = self.console();
        assert!(
            console.contains("reboot: Power down"),
            "the guest has not powered off by itself: {console}"
        );
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
