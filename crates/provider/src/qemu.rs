//! Machines that are guests of this host: QEMU processes that boot a golden image.
//!
//! Each guest writes to a disk of its own, which is deleted with its process. It gets core's user data from a seed,
//! and reaches core through QEMU's own network, in which the host's loopback is 10.0.2.2. The process ends when the
//! guest powers off.

mod settings;

mod disk;
mod guest;
mod image;
mod seed;

mod memory;
mod programs;
mod resources;

mod error;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::statvfs::statvfs;
use stagely_protocol::{Arch, ErrorChain};
use stagely_state::comparison::Listed;
use stagely_state::ids::{CoreId, MachineId};
use stagely_state::{Fleet, MachineSize, Market, Placement};
use tokio::process::Command;
use tracing::warn;

use self::disk::Disk;
use self::error::GuestError;
use self::guest::{CONSOLE, Guest};
use self::image::Image;
use self::memory::Memory;
use self::resources::Resources;
use self::seed::SeedProgram;
use crate::processes::{KILL_LIMIT, Processes, ProcessesByMachine, is_lack, private_file};
use crate::settings::ImageKind;
use crate::user_data::cloud_config;
use crate::{
    LaunchError, LaunchRequest, Listing, Offer, OfferProblem, Provider, ProviderError,
    TERMINATE_LIMIT,
};

pub use settings::{Accelerator, QemuSettings};

/// The address at which a guest reaches the loopback of its host.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// The file of QEMU's own output in the guest's folder.
const LOG: &str = "qemu.log";

/// The device of the kernel's virtual machines.
const KVM: &str = "/dev/kvm";

/// The time limit for powering off after TERMINATE, because an emulated guest on a busy host takes half a
/// minute. Then its process is killed. Nothing is lost, because its disk is deleted in any case.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(45);

// Core repeats a request after TERMINATE_LIMIT. The guest must be killed before, or it never is.
const _: () = assert!(POWER_OFF_LIMIT.as_secs() + KILL_LIMIT.as_secs() < TERMINATE_LIMIT.as_secs());

/// The largest console that is kept, in bytes. A guest can write to it without limit.
const CONSOLE_BYTES_MAX: u64 = 16 << 20;

/// Messages of QEMU about a lack of resources, which may be temporary.
const LACK_MESSAGES: [&str; 3] =
    ["Cannot allocate memory", "Resource temporarily", "No space left"];

/// QEMU ends within this time where it refuses its arguments.
const START_LIMIT: Duration = Duration::from_millis(500);

/// Launches machines as QEMU guests of this host.
#[derive(Debug)]
pub struct QemuProvider {
    config: QemuSettings,
    /// The folders of programs, in the form of `PATH`.
    path: OsString,
    host_cpus: usize,
    processes: Processes,
    /// Held while a guest is started, so that two guests do not get the same memory.
    starting: tokio::sync::Mutex<()>,
}

/// The programs and files of a guest.
struct GuestParts {
    program: PathBuf,
    kvm: bool,
    image: Image,
    seed_program: SeedProgram,
}

impl QemuProvider {
    /// Launches guests with folders below `folder`. Programs are looked for in `path`, which has the form of `PATH`.
    pub fn new(core_id: CoreId, folder: PathBuf, config: QemuSettings, path: OsString) -> Self {
        let host_cpus = available_parallelism().map_or(1, NonZero::get);
        let processes = Processes::new(core_id, folder, CONSOLE);
        Self { config, path, host_cpus, processes, starting: tokio::sync::Mutex::default() }
    }

    fn resources(&self, size: MachineSize) -> Resources {
        Resources::of(size, self.host_cpus)
    }

    fn program(
        &self,
        (name, package): (&'static str, &'static str),
    ) -> Result<PathBuf, GuestError> {
        programs::find(&self.path, name).ok_or(GuestError::NoProgram { name, package })
    }

    fn parts(&self, arch: Arch) -> Result<GuestParts, GuestError> {
        let folder = self.config.image(arch).ok_or(GuestError::NoImageNamed(arch))?;
        let image = Image::open(folder, arch)?;
        let program = self.program(guest::program(arch))?;
        let seed_program = SeedProgram::find(&self.path)?;
        // KVM runs the host's own arch and no other.
        let kvm = self.config.accelerator == Accelerator::Kvm && arch == Arch::of_this_program();
        if kvm {
            check_kvm(Path::new(KVM))?;
        }
        Ok(GuestParts { program, kvm, image, seed_program })
    }

    /// Checks that guests of `size` fit on this host if no other guest runs.
    fn check_size(&self, size: MachineSize) -> Result<(), GuestError> {
        let resources = self.resources(size);
        match Memory::of_host() {
            Ok(host) if host.is_too_small_for(resources.memory_mib) => {
                Err(GuestError::TooLarge { size, resources, host_mib: host.total })
            }
            _ => Ok(()),
        }
    }

    /// Checks that there is room for one more guest even if the others take all of their memory and disks.
    fn check_room(
        &self,
        resources: Resources,
        image: &Image,
        disk_bytes: u64,
        others: &ProcessesByMachine,
    ) -> Result<(), GuestError> {
        let guests = || others.iter().filter_map(|(id, processes)| Some((*id, processes.main?)));
        let promised = guests().map(|(_, process)| memory::not_yet_taken(process)).sum();
        let host = Memory::of_host().map_err(GuestError::Start)?;
        host.check(resources.memory_mib, promised)?;
        // A guest's writes may be in a file without a name, which cannot be measured. They count as not yet written.
        let usual = image.disk_bytes().map_err(GuestError::Start)?;
        let of_others = guests()
            .map(|(id, _)| disk::larger_disk_bytes(&self.processes.folder(id)).unwrap_or(usual));
        let needed = disk_bytes + of_others.sum::<u64>();
        let folder = self.processes.all_folders();
        let free =
            statvfs(folder).map_or(u64::MAX, |disk| disk.blocks_available() * disk.fragment_size());
        if free < needed {
            let (free_mib, needed_mib) = (free >> 20, needed >> 20);
            return Err(GuestError::NoDisk { free_mib, needed_mib, folder: folder.to_owned() });
        }
        Ok(())
    }

    async fn start(&self, request: &LaunchRequest) -> Result<(), LaunchError> {
        let (machine, arch, size) = (request.machine, request.spec.arch, request.spec.size);
        let parts = self.parts(arch).map_err(permanent)?;
        self.check_size(size).map_err(permanent)?;
        let resources = self.resources(size);
        let starting = self.starting.lock().await;
        let others = self.processes.scan().await;
        let others = others.map_err(|error| no_capacity(GuestError::OtherGuests(error)))?;
        let cannot_start = |error: io::Error| {
            let problem = if is_lack(&error) { no_capacity } else { permanent };
            problem(GuestError::Start(error))
        };
        let folder = self.processes.create_folder(machine).map_err(cannot_start)?;
        let GuestParts { image, .. } = &parts;
        let bytes = disk_bytes(image, request.spec.disk_gib).map_err(no_capacity)?;
        self.check_room(resources, image, bytes, &others).map_err(no_capacity)?;
        let disk = self.make_disk(image, &folder, bytes).await?;
        let user_data = cloud_config(request, ImageKind::Golden);
        let guest = Guest {
            name: &machine.to_string(),
            arch,
            kvm: parts.kvm,
            resources,
            kernel: &image.kernel,
            disk: &disk,
            seed: &parts
                .seed_program
                .write(&folder, machine, &user_data)
                .await
                .map_err(no_capacity)?,
            folder: &folder,
        };
        // QEMU would create a file that others can read.
        private_file(&folder.join(CONSOLE)).map_err(cannot_start)?;
        let log = private_file(&folder.join(LOG)).map_err(cannot_start)?;
        let mut command = Command::new(&parts.program);
        // The guest's writes to its disk go to a file in TMPDIR.
        command.args(guest.arguments()).env("TMPDIR", &folder);
        self.processes.start(machine, command, log).map_err(cannot_start)?;
        drop(starting);
        if self.processes.child_ends_within(machine, START_LIMIT).await {
            let output = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
            let last_line = output.trim().lines().last().unwrap_or("it said nothing").to_owned();
            let is_lack = LACK_MESSAGES.iter().any(|message| last_line.contains(message));
            let error = GuestError::EndedAtOnce { program: parts.program, last_line };
            return Err(if is_lack { no_capacity(error) } else { permanent(error) });
        }
        Ok(())
    }

    async fn make_disk(
        &self,
        image: &Image,
        folder: &Path,
        bytes: u64,
    ) -> Result<Disk, LaunchError> {
        let usual = image.disk_bytes().map_err(|error| no_capacity(GuestError::Start(error)))?;
        if bytes <= usual {
            return Ok(Disk::Image(image.disk.clone()));
        }
        let program = self.program(disk::PROGRAM).map_err(permanent)?;
        disk::make_larger(&program, image, folder, bytes).await.map_err(no_capacity)
    }

    /// Truncates large consoles.
    fn bound_consoles(&self, listed: &[Listed]) {
        for Listed { machine, .. } in listed {
            let console = self.processes.folder(*machine).join(CONSOLE);
            let is_large = fs::metadata(&console).is_ok_and(|file| file.len() > CONSOLE_BYTES_MAX);
            if is_large && let Err(error) = private_file(&console) {
                warn!(%machine, error = %ErrorChain(&error), "its console cannot be cut");
            }
        }
    }
}

fn permanent(error: GuestError) -> LaunchError {
    LaunchError::Permanent(error.into())
}

fn no_capacity(error: GuestError) -> LaunchError {
    LaunchError::NoCapacity(error.into())
}

/// The size of a guest's disk, in bytes.
fn disk_bytes(image: &Image, disk_gib: Option<u32>) -> Result<u64, GuestError> {
    let of_image = image.disk_bytes().map_err(GuestError::Start)?;
    Ok(disk_gib.map_or(of_image, |gib| of_image.max(u64::from(gib) << 30)))
}

/// Checks that this process can use the kernel's virtual machines.
fn check_kvm(device: &Path) -> Result<(), GuestError> {
    let open = fs::OpenOptions::new().read(true).write(true).open(device);
    open.map(drop).map_err(|error| GuestError::Kvm { device: device.to_owned(), error })
}

#[async_trait]
impl Provider for QemuProvider {
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        let placement = Placement {
            provider_id: request.machine.to_string(),
            instance_type: self.resources(request.spec.size).name(),
            zone: None,
            market: Market::OnDemand,
            price: None,
            spot_price: None,
        };
        let started = self.processes.was_started(request.machine).await;
        if started.map_err(|error| LaunchError::Unclear(error.into()))? {
            return Ok(placement);
        }
        let Err(error) = self.start(request).await else { return Ok(placement) };
        // Core does not end a machine that was not launched, so its folder is removed here.
        if let Err(error) = self.processes.remove_folder(request.machine).await {
            warn!(machine = %request.machine, error = %ErrorChain(&error), "cannot remove the folder of a machine that was not started");
        }
        Err(error)
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        // The agent gets TERMINATE from core, and powers its guest off.
        Ok(self.processes.end(machine, POWER_OFF_LIMIT).await?)
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        let listed = self.processes.list().await?;
        self.bound_consoles(&listed);
        Ok(listed)
    }

    fn listing(&self) -> Listing {
        // The list is current, and costs a scan of `/proc`.
        Listing { interval: Duration::from_secs(1), grace: Duration::ZERO }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        let mut offers = Vec::new();
        for arch in Arch::ALL {
            if self.config.image(arch).is_none() {
                continue;
            }
            let host = |error: GuestError| OfferProblem::Host(error.to_string());
            let problem = self.parts(arch).err().map(host);
            let of_disk = self.program(disk::PROGRAM).err().map(host);
            let problem_of = |fleet| match fleet {
                // Their disks have the size that stagely.yaml says.
                Fleet::Preview => problem.clone().or(of_disk.clone()),
                Fleet::Builder | Fleet::Tester => problem.clone(),
            };
            // A host has no sizes that are larger than itself.
            for size in MachineSize::ALL.into_iter().filter(|size| self.check_size(*size).is_ok()) {
                let instance_type = self.resources(size).name();
                offers.extend(Fleet::ALL.map(|fleet| Offer {
                    fleet,
                    arch,
                    size,
                    instance_type: instance_type.clone(),
                    price: None,
                    spot: false,
                    exists: true,
                    problem: problem_of(fleet),
                }));
            }
        }
        Ok(offers)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::MachineSpec;
    use crate::fixtures::{self, check_is_found_again, check_is_gone, machine_id, spec};

    /// A host with a golden image, and a script in the place of QEMU.
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

        /// The provider that core creates at each start.
        fn provider(&self) -> QemuProvider {
            self.provider_with(self.config())
        }

        fn provider_with(&self, config: QemuSettings) -> QemuProvider {
            let core_id = CoreId::from(self.folder.path().to_str().unwrap());
            let folders = [self.path("bin"), "/usr/bin".into(), "/bin".into()];
            let path = std::env::join_paths(folders).unwrap();
            QemuProvider::new(core_id, self.path("machines"), config, path)
        }

        async fn is_deserted(&self, provider: &QemuProvider) -> bool {
            fixtures::is_deserted(&provider.processes, &self.path("machines")).await
        }
    }

    fn request(machine: MachineId) -> LaunchRequest {
        fixtures::request(machine, spec(Arch::Amd64, MachineSize::Small), "the token")
    }

    #[tokio::test]
    async fn a_guest_is_started_once_and_the_next_core_finds_and_ends_it() {
        let host = Host::with("sleep 1000 & wait");
        let first = host.provider();
        let machine = machine_id();
        let placement = first.launch(&request(machine)).await.unwrap();
        assert!(placement.instance_type.ends_with(", 3 GiB"), "{placement:?}");
        first.launch(&request(machine)).await.unwrap();
        // Core was killed, and the guest still runs.
        let next = host.provider();
        next.launch(&request(machine)).await.unwrap();

        check_is_found_again(machine, &first.processes, &next, &next.processes).await;
        // Its agent gets no TERMINATE.
        next.processes.end(machine, Duration::ZERO).await.unwrap();

        assert!(host.is_deserted(&next).await);
        check_is_gone(machine, &next).await;
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

        assert!(host.is_deserted(&provider).await);
    }

    #[tokio::test]
    async fn no_other_user_can_read_the_files_of_a_guest() {
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
        let found = provider.processes.scan().await.unwrap();
        let arguments = fs::read(format!("/proc/{}/cmdline", found[&machine].main.unwrap()));
        let arguments = String::from_utf8(arguments.unwrap()).unwrap();
        assert!(!arguments.contains("the token"), "{arguments}");
        provider.processes.end(machine, Duration::ZERO).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_of_previews_has_the_disk_of_its_preview_and_room_for_it() {
        let host = Host::with("sleep 1000");
        let provider = host.provider();
        let preview = |machine, disk_gib| {
            let request = request(machine);
            let spec = MachineSpec { fleet: Fleet::Preview, disk_gib, ..request.spec };
            LaunchRequest { spec, ..request }
        };
        let machine = machine_id();
        provider.launch(&preview(machine, Some(2))).await.unwrap();
        let folder = provider.processes.folder(machine);
        assert_eq!(disk::larger_disk_bytes(&folder), Some(2 << 30));
        let found = provider.processes.scan().await.unwrap();
        let arguments = fs::read(format!("/proc/{}/cmdline", found[&machine].main.unwrap()));
        let arguments = String::from_utf8(arguments.unwrap()).unwrap();
        assert!(arguments.contains("/root.qcow2,id=root,format=qcow2"), "{arguments}");

        // More than any disk here.
        let refused = provider.launch(&preview(machine_id(), Some(1 << 30))).await.unwrap_err();
        let LaunchError::NoCapacity(cause) = refused else { panic!("{refused:?}") };
        let needed_mib = ((1_u64 << 30) + 2) << 10;
        assert!(cause.to_string().contains(&needed_mib.to_string()), "{cause}");
        provider.processes.end(machine, Duration::ZERO).await.unwrap();
        assert!(host.is_deserted(&provider).await);
    }

    #[tokio::test]
    async fn a_large_console_is_truncated() {
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
    async fn a_lack_of_disk_or_memory_is_a_lack_of_capacity() {
        let host = Host::with("sleep 1000");
        let disk = fs::File::create(host.path("image").join("root.img")).unwrap();
        // The file is sparse, and larger than any disk here.
        disk.set_len(1 << 43).unwrap();
        let machine = machine_id();
        let provider = host.provider();
        let refused = provider.launch(&request(machine)).await.unwrap_err();
        let LaunchError::NoCapacity(cause) = refused else { panic!("{refused:?}") };
        let why = cause.to_string();
        assert!(why.contains("qemu.folder") && why.contains("8388608"), "{why}");
        assert!(host.is_deserted(&provider).await);

        let host =
            Host::with("echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1");
        let refused = host.provider().launch(&request(machine)).await.unwrap_err();
        assert!(matches!(refused, LaunchError::NoCapacity(_)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_missing_image_program_or_device_is_named_with_advice() {
        let host = Host::with("echo 'could not set it up' >&2; exit 1");
        let machine = machine_id();
        let refusal = async |config: QemuSettings| {
            let provider = host.provider_with(config);
            let error = provider.launch(&request(machine)).await.unwrap_err();
            assert!(!provider.processes.folder(machine).exists());
            let LaunchError::Permanent(cause) = error else { panic!("{error:?}") };
            cause.to_string()
        };

        let why = refusal(host.config()).await;
        assert!(why.ends_with("ended at once: could not set it up"), "{why}");
        let why = refusal(QemuSettings::default()).await;
        assert!(why.contains("qemu.image-amd64 is not set"), "{why}");
        let image_amd64 = Some(host.path("nowhere"));
        let why = refusal(QemuSettings { image_amd64, ..host.config() }).await;
        assert!(why.contains("scripts/golden-image --arch amd64"), "{why}");
        fs::remove_file(host.path("bin").join("qemu-system-x86_64")).unwrap();
        let provider = host.provider_with(host.config());
        let provider = QemuProvider { path: host.path("bin").into(), ..provider };
        let why = provider.parts(Arch::Amd64).err().unwrap().to_string();
        assert_eq!(why, "qemu-system-x86_64 is missing: apt-get install qemu-system-x86");
        let why = check_kvm(&host.path("kvm")).unwrap_err().to_string();
        assert!(why.contains("qemu.accelerator"), "{why}");
    }

    #[tokio::test]
    async fn a_host_offers_the_arches_of_its_images() {
        let host = Host::with("sleep 1000");
        let provider = host.provider();

        let offers = provider.describe().await.unwrap();
        assert!(offers.iter().all(|offer| offer.arch == Arch::Amd64 && offer.price.is_none()));
        let sizes = MachineSize::ALL.iter().filter(|size| provider.check_size(**size).is_ok());
        assert_eq!(offers.len(), Fleet::ALL.len() * sizes.count());
        let small = offers.iter().find(|offer| offer.size == MachineSize::Small).unwrap();
        assert_eq!(small.problem, None, "{small:?}");
        let machine = machine_id();
        let placement = provider.launch(&request(machine)).await.unwrap();
        assert_eq!(placement.instance_type, small.instance_type);
        provider.processes.end(machine, Duration::ZERO).await.unwrap();

        fs::remove_file(host.path("image").join("vmlinuz")).unwrap();
        let offers = provider.describe().await.unwrap();
        let problem = |offer: &Offer| offer.problem.as_ref().unwrap().to_string();
        assert!(offers.iter().all(|offer| problem(offer).contains("vmlinuz")));
    }
}
