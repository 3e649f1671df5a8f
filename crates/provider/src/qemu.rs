//! Machines that are guests of this host: QEMU processes that boot a golden image.
//!
//! Each writes to a disk of its own that is gone with its process, gets core's user data by a seed, and reaches
//! core through QEMU's own network, in which the host's loopback is 10.0.2.2. A guest that powers itself off
//! ends its process.

mod guest;
mod image;
mod memory;
mod programs;
mod seed;
mod settings;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::statvfs::statvfs;
use stagely_protocol::Arch;
use stagely_state::ids::{CoreId, MachineId};
use stagely_state::{Fleet, MachineSize, Market, Placement};
use tokio::process::Command;
use tracing::warn;

use self::guest::{CONSOLE, Guest, Resources};
use self::image::Image;
use self::memory::Memory;
use self::seed::Maker;
use super::processes::{Found, KILL_LIMIT, Processes, private_file};
use super::user_data::cloud_config;
use super::{
    Candidate, LaunchError, LaunchRequest, Listed, Listing, Offer, Provider, ProviderError,
    TERMINATE_LIMIT, Want,
};
use crate::settings::ImageKind;

pub use settings::{Accelerator, QemuSettings};

/// The address at which a guest reaches the loopback of its host.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// What QEMU itself says, in the guest's folder.
const LOG: &str = "qemu.log";

/// The kernel's virtual machines.
const KVM: &str = "/dev/kvm";

/// How long a guest whose agent was told to end may take to power off: an emulated one on a busy host takes half
/// a minute. Then its process is killed, which loses nothing: its disk goes with it.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(45);

// Who asks must not give up before it is killed, or it would never be.
const _: () = assert!(POWER_OFF_LIMIT.as_secs() + KILL_LIMIT.as_secs() < TERMINATE_LIMIT.as_secs());

/// The longest console that is kept, in bytes. A guest writes what it likes to it.
const CONSOLE_BYTES_MAX: u64 = 16 << 20;

/// In QEMU's last words: what another moment may mend.
const LACKS: [&str; 3] = ["Cannot allocate memory", "Resource temporarily", "No space left"];

/// A QEMU that refuses its arguments ends within this.
const START_LIMIT: Duration = Duration::from_millis(500);

/// Launches machines as QEMU guests of this host.
#[derive(Debug)]
pub struct QemuProvider {
    config: QemuSettings,
    /// Where programs are looked for, as in `PATH`.
    path: OsString,
    host_cpus: usize,
    processes: Processes,
    /// Held while a guest is started, so that no two are promised the same memory.
    starting: tokio::sync::Mutex<()>,
}

/// All that a guest is started with.
struct Parts {
    program: PathBuf,
    kvm: bool,
    image: Image,
    maker: Maker,
}

impl QemuProvider {
    /// Launches guests with folders below `folder`, by programs of `path`, which is as `PATH` is.
    pub fn new(core_id: CoreId, folder: PathBuf, config: QemuSettings, path: OsString) -> Self {
        let host_cpus = available_parallelism().map_or(1, NonZero::get);
        let processes = Processes::new(core_id, folder, CONSOLE);
        Self { config, path, host_cpus, processes, starting: tokio::sync::Mutex::default() }
    }

    fn candidate(&self, size: MachineSize) -> Candidate {
        Candidate {
            instance_type: Resources::of(size, self.host_cpus).name(),
            zone: None,
            market: Market::OnDemand,
            price: None,
            max_price: None,
        }
    }

    /// What guests of `arch` are started with.
    ///
    /// # Errors
    /// What this host lacks, and what to do, for people.
    fn parts(&self, arch: Arch) -> Result<Parts, String> {
        let folder = self.config.image(arch).ok_or_else(|| {
            format!("qemu.image-{arch} is not set: scripts/golden-image makes the folder it names")
        })?;
        let image = Image::open(folder, arch)?;
        let (name, package) = guest::program(arch);
        let program = programs::find(&self.path, name)
            .ok_or_else(|| format!("{name} is missing: apt-get install {package}"))?;
        let maker = Maker::find(&self.path)?;
        // It runs the host's own processor and no other.
        let kvm = self.config.accelerator == Accelerator::Kvm && arch == Arch::of_this_program();
        if kvm {
            check_kvm(Path::new(KVM))?;
        }
        Ok(Parts { program, kvm, image, maker })
    }

    /// Why guests of `size` cannot run on this host, whatever else runs there.
    fn size_problem(&self, size: MachineSize) -> Option<String> {
        let wanted = Resources::of(size, self.host_cpus);
        let host = Memory::of_host().ok()?;
        host.is_too_small_for(wanted.memory_mib).then(|| {
            let (wanted, total) = (wanted.name(), host.total);
            format!("a {size} guest has {wanted}, and this host {total} MiB: ask for a smaller one")
        })
    }

    async fn start(&self, request: &LaunchRequest) -> Result<(), LaunchError> {
        let parts = self.parts(request.arch).map_err(LaunchError::Permanent)?;
        if let Some(problem) = self.size_problem(request.size) {
            return Err(LaunchError::Permanent(problem));
        }
        let resources = Resources::of(request.size, self.host_cpus);
        let starting = self.starting.lock().await;
        let others = self.processes.look().await.map_err(|error| {
            LaunchError::NoCapacity(format!("cannot tell what other guests take: {error}"))
        })?;
        let machine = request.machine;
        let cannot = |error: io::Error| LaunchError::NoCapacity(format!("no guest: {error}"));
        let folder = self.processes.make_folder(machine).map_err(cannot)?;
        let room = Self::room(resources, &parts.image, &folder, &others).map_err(cannot)?;
        if let Some(problem) = room {
            return Err(LaunchError::NoCapacity(problem));
        }
        let user_data = cloud_config(request, ImageKind::Golden);
        let guest = Guest {
            name: &machine.to_string(),
            arch: request.arch,
            kvm: parts.kvm,
            resources,
            image: &parts.image,
            seed: &parts.maker.make(&folder, machine, &user_data).await?,
            folder: &folder,
        };
        // QEMU would make it with the rights of any file.
        private_file(&folder.join(CONSOLE), false).map_err(cannot)?;
        let log = private_file(&folder.join(LOG), false).map_err(cannot)?;
        let mut command = Command::new(&parts.program);
        // There goes what the guest writes to its disk.
        command.args(guest.arguments()).env("TMPDIR", &folder);
        self.processes.start(machine, command, log).map_err(cannot)?;
        drop(starting);
        if self.processes.child_ends_within(machine, START_LIMIT).await {
            let said = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
            let last = said.trim().lines().last().unwrap_or("it said nothing").to_owned();
            let problem = format!("{} ended at once: {last}", parts.program.display());
            let is_lack = LACKS.iter().any(|words| last.contains(words));
            let kind = if is_lack { LaunchError::NoCapacity } else { LaunchError::Permanent };
            return Err(kind(problem));
        }
        Ok(())
    }

    /// Why there is no room for one more guest beside the `others`, also when all of them take what they were
    /// promised; `None` where there is.
    fn room(
        resources: Resources,
        image: &Image,
        folder: &Path,
        others: &Found,
    ) -> io::Result<Option<String>> {
        let guests = || others.values().filter_map(|found| found.main);
        let promised = guests().map(memory::not_yet_taken).sum();
        if let Some(problem) = Memory::of_host()?.lacks(resources.memory_mib, promised) {
            return Ok(Some(problem));
        }
        // What a guest has written is in a file without a name, so it counts as still to be written.
        let needed = image.disk_bytes()? * (guests().count() as u64 + 1);
        let free =
            statvfs(folder).map_or(u64::MAX, |disk| disk.blocks_available() * disk.fragment_size());
        Ok((free < needed).then(|| {
            format!(
                "{} MiB are free where {} lies (qemu.folder), and the disks of all guests may take {}",
                free >> 20,
                folder.display(),
                needed >> 20
            )
        }))
    }

    /// Cuts consoles to which a guest writes without end.
    fn bound_consoles(&self, listed: &[Listed]) {
        for Listed { machine, .. } in listed {
            let console = self.processes.folder(*machine).join(CONSOLE);
            let is_long = fs::metadata(&console).is_ok_and(|file| file.len() > CONSOLE_BYTES_MAX);
            if is_long && let Err(error) = private_file(&console, false) {
                warn!(%machine, %error, "its console cannot be cut");
            }
        }
    }
}

/// Whether this process may use the kernel's virtual machines.
fn check_kvm(device: &Path) -> Result<(), String> {
    let open = fs::OpenOptions::new().read(true).write(true).open(device);
    let Err(error) = open else { return Ok(()) };
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "add core's user to the group kvm",
        _ => "turn virtualization on, or set qemu.accelerator to \"tcg\", which is slower",
    };
    Err(format!("cannot use {}: {error}; {advice}", device.display()))
}

#[async_trait]
impl Provider for QemuProvider {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let has_image = self.config.image(want.arch).is_some();
        if has_image { vec![self.candidate(want.size)] } else { Vec::new() }
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        let Candidate { instance_type, zone, market, price, .. } = self.candidate(request.size);
        let provider_id = request.machine.to_string();
        let placement = Placement { provider_id, instance_type, zone, market, price };
        let started = self.processes.was_started(request.machine).await;
        if started.map_err(|error| LaunchError::Unclear(error.to_string()))? {
            return Ok(placement);
        }
        let Err(error) = self.start(request).await else { return Ok(placement) };
        // Nobody ends a machine that never was, so nobody else would remove its folder.
        if let Err(error) = self.processes.remove_folder(request.machine).await {
            warn!(machine = %request.machine, %error, "it was not started");
        }
        Err(error)
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        // Core has told the agent, which powers its guest off.
        self.processes.end(machine, POWER_OFF_LIMIT).await
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        let listed = self.processes.list().await?;
        self.bound_consoles(&listed);
        Ok(listed)
    }

    fn listing(&self) -> Listing {
        // It says how things are at this moment, and costs a look at `/proc`.
        Listing { interval: Duration::from_secs(1), grace: Duration::ZERO }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let mut offers = Vec::new();
        for arch in Arch::ALL {
            if self.config.image(arch).is_none() {
                continue;
            }
            let problem = self.parts(arch).err();
            // A host has no sizes that are larger than itself.
            for size in
                MachineSize::ALL.into_iter().filter(|size| self.size_problem(*size).is_none())
            {
                let instance_type = self.candidate(size).instance_type;
                offers.extend(Fleet::ALL.map(|fleet| Offer {
                    fleet,
                    arch,
                    size,
                    instance_type: instance_type.clone(),
                    price: None,
                    spot: false,
                    exists: true,
                    problem: problem.clone(),
                }));
            }
        }
        Ok(offers)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use stagely_state::comparison::ListedState;
    use tempfile::TempDir;

    use super::*;
    use crate::fixtures::{agent_config, machine_id};

    /// A host with a program that stands in for QEMU, an image, and a provider.
    struct Host {
        folder: TempDir,
    }

    impl Host {
        fn with(qemu: &str) -> Self {
            let host = Self { folder: tempfile::tempdir().unwrap() };
            let (bin, image) = (host.path("bin"), host.path("image"));
            fs::create_dir(&bin).unwrap();
            let program = bin.join(guest::program(Arch::Amd64).0);
            fs::write(&program, format!("#!/bin/sh\n{qemu}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            fs::create_dir(&image).unwrap();
            let description = r#"{ "arch": "amd64" }"#;
            for (name, text) in [("root.img", ""), ("vmlinuz", ""), ("image.json", description)] {
                fs::write(image.join(name), text).unwrap();
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn config(&self) -> QemuSettings {
            QemuSettings {
                image_amd64: Some(self.path("image")),
                image_arm64: None,
                accelerator: Accelerator::Tcg,
                folder: None,
            }
        }

        /// As core makes it at each start.
        fn provider(&self) -> QemuProvider {
            self.provider_with(self.config())
        }

        fn provider_with(&self, config: QemuSettings) -> QemuProvider {
            let core_id = CoreId::from(self.folder.path().to_str().unwrap());
            let folders = [self.path("bin"), "/usr/bin".into(), "/bin".into()];
            let path = std::env::join_paths(folders).unwrap();
            QemuProvider::new(core_id, self.path("machines"), config, path)
        }
    }

    fn request(machine: MachineId) -> LaunchRequest {
        LaunchRequest {
            machine,
            job: None,
            fleet: Fleet::Builder,
            arch: Arch::Amd64,
            size: MachineSize::Small,
            candidates: Vec::new(),
            agent: agent_config(machine, "the token"),
            lease: Duration::from_hours(1),
            insecure_registry: None,
            binary: None,
        }
    }

    #[tokio::test]
    async fn a_guest_is_started_once_and_the_next_core_finds_and_ends_it() {
        let host = Host::with("sleep 1000 & wait");
        let first = host.provider();
        let machine = machine_id();
        let placement = first.launch(&request(machine)).await.unwrap();
        assert!(placement.instance_type.ends_with(", 3 GiB"), "{placement:?}");
        first.launch(&request(machine)).await.unwrap();
        // Core is killed; the guest goes on.
        let next = host.provider();
        next.launch(&request(machine)).await.unwrap();

        assert_eq!((first.processes.children_kept(), next.processes.children_kept()), (1, 0));
        assert_eq!(next.list().await.unwrap(), [Listed { machine, state: ListedState::Live }]);
        // Its agent was told nothing.
        next.processes.end(machine, Duration::ZERO).await.unwrap();

        assert!(next.processes.is_deserted());
        assert_eq!(next.list().await.unwrap(), []);
        next.terminate(machine).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_powers_off_is_gone_and_its_folder_with_it() {
        let host = Host::with("while [ ! -e \"$TMPDIR/off\" ]; do sleep 0.1; done");
        let provider = host.provider();
        let machine = machine_id();
        provider.launch(&request(machine)).await.unwrap();
        assert_eq!(provider.list().await.unwrap().len(), 1);

        fs::write(provider.processes.folder(machine).join("off"), "").unwrap();
        provider.terminate(machine).await.unwrap();

        assert!(provider.processes.is_deserted());
    }

    #[tokio::test]
    async fn what_a_guest_is_made_of_is_for_no_other_user_to_read() {
        let host = Host::with("sleep 1000");
        let provider = host.provider();
        let machine = machine_id();
        provider.launch(&request(machine)).await.unwrap();

        let folder = provider.processes.folder(machine);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for file in ["seed.iso", CONSOLE, LOG] {
            assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
        }
        let found = provider.processes.look().await.unwrap();
        let arguments = fs::read(format!("/proc/{}/cmdline", found[&machine].main.unwrap()));
        let arguments = String::from_utf8(arguments.unwrap()).unwrap();
        assert!(!arguments.contains("the token"), "{arguments}");
        provider.processes.end(machine, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_console_that_a_guest_writes_to_without_end_is_cut() {
        let host = Host::with("sleep 1000");
        let provider = host.provider();
        let machine = machine_id();
        provider.launch(&request(machine)).await.unwrap();
        let console = provider.processes.folder(machine).join(CONSOLE);
        let write = |bytes: u64| fs::File::options().write(true).open(&console)?.set_len(bytes);

        for (written, kept) in [(CONSOLE_BYTES_MAX, CONSOLE_BYTES_MAX), (CONSOLE_BYTES_MAX + 1, 0)]
        {
            write(written).unwrap();
            provider.list().await.unwrap();
            assert_eq!(fs::metadata(&console).unwrap().len(), kept);
        }
        provider.processes.end(machine, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_without_room_for_its_disk_waits_for_another_moment() {
        let host = Host::with("sleep 1000");
        let disk = fs::File::create(host.path("image").join("root.img")).unwrap();
        // Sparse, and larger than any disk here.
        disk.set_len(1 << 43).unwrap();
        let machine = machine_id();
        let provider = host.provider();
        let refused = provider.launch(&request(machine)).await.unwrap_err();
        let LaunchError::NoCapacity(why) = refused else { panic!("{refused:?}") };
        assert!(why.contains("qemu.folder") && why.contains("8388608"), "{why}");
        assert!(provider.processes.is_deserted());

        let host =
            Host::with("echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1");
        let refused = host.provider().launch(&request(machine)).await.unwrap_err();
        assert!(matches!(refused, LaunchError::NoCapacity(_)), "{refused:?}");
    }

    #[tokio::test]
    async fn what_a_host_lacks_is_said_with_what_to_do() {
        let host = Host::with("echo 'could not set it up' >&2; exit 1");
        let machine = machine_id();
        let refusal = async |config: QemuSettings| {
            let provider = host.provider_with(config);
            let error = provider.launch(&request(machine)).await.unwrap_err();
            assert!(!provider.processes.folder(machine).exists());
            let LaunchError::Permanent(why) = error else { panic!("{error:?}") };
            why
        };

        let why = refusal(host.config()).await;
        assert!(why.ends_with("ended at once: could not set it up"), "{why}");
        let why = refusal(QemuSettings::default()).await;
        assert!(why.contains("qemu.image-amd64 is not set"), "{why}");
        let image_amd64 = Some(host.path("nowhere"));
        let why = refusal(QemuSettings { image_amd64, ..host.config() }).await;
        assert!(why.contains("scripts/golden-image --arch amd64"), "{why}");
        fs::remove_file(host.path("bin").join("qemu-system-x86_64")).unwrap();
        let why = host.provider_with(host.config());
        let why = QemuProvider { path: host.path("bin").into(), ..why }.parts(Arch::Amd64).err();
        assert_eq!(why.unwrap(), "qemu-system-x86_64 is missing: apt-get install qemu-system-x86");
        let why = check_kvm(&host.path("kvm")).unwrap_err();
        assert!(why.contains("qemu.accelerator"), "{why}");
    }

    #[tokio::test]
    async fn a_host_offers_what_it_has_images_of() {
        let host = Host::with("");
        let provider = host.provider();

        let offers = provider.describe().await.unwrap();
        assert!(offers.iter().all(|offer| offer.arch == Arch::Amd64 && offer.price.is_none()));
        let fits = |size: &MachineSize| provider.size_problem(*size).is_none();
        assert_eq!(
            offers.len(),
            Fleet::ALL.len() * MachineSize::ALL.iter().filter(|it| fits(it)).count()
        );
        let small = offers.iter().find(|offer| offer.size == MachineSize::Small).unwrap();
        assert_eq!(small.problem, None, "{small:?}");
        let want = |arch| Want {
            fleet: Fleet::Builder,
            arch,
            size: MachineSize::Small,
            market: crate::settings::MarketPolicy::OnDemand,
            on_demand: false,
            max_price: None,
        };
        let found = provider.candidates(&want(Arch::Amd64));
        assert_eq!(found[0].instance_type, small.instance_type);
        assert_eq!(provider.candidates(&want(Arch::Arm64)), []);

        fs::remove_file(host.path("image").join("vmlinuz")).unwrap();
        let offers = provider.describe().await.unwrap();
        assert!(offers.iter().all(|it| it.problem.as_ref().unwrap().contains("vmlinuz")));
    }
}
