//! Why a guest cannot run on this host, with advice for people.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use stagely_protocol::Arch;
use stagely_state::MachineSize;
use thiserror::Error;

use super::image::ImageError;
use super::resources::Resources;
use crate::processes::ProcessError;

#[derive(Debug, Error)]
pub(super) enum GuestError {
    #[error("qemu.image-{0} is not set: scripts/golden-image makes the folder it names")]
    NoImageNamed(Arch),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("{name} is missing: apt-get install {package}")]
    NoProgram { name: &'static str, package: &'static str },
    #[error("neither genisoimage nor xorriso is there: apt-get install genisoimage")]
    NoSeedProgram,
    #[error("cannot use {}: {error}; {}", .device.display(), kvm_advice(.error))]
    Kvm { device: PathBuf, error: io::Error },
    #[error(
        "a {size} guest has {}, and this host {host_mib} MiB: ask for a smaller one",
        .resources.name()
    )]
    TooLarge { size: MachineSize, resources: Resources, host_mib: u64 },
    #[error("cannot tell what other guests take: {0}")]
    OtherGuests(ProcessError),
    #[error(
        "the guest needs {wanted} MiB of memory, and of the host's {available} MiB that are available other \
         guests may still take {promised}"
    )]
    NoMemory { wanted: u64, available: u64, promised: u64 },
    #[error(
        "{free_mib} MiB are free where {} lies (qemu.folder), and the disks of all guests may take {needed_mib}",
        .folder.display()
    )]
    NoDisk { free_mib: u64, needed_mib: u64, folder: PathBuf },
    #[error("no guest: {0}")]
    Start(io::Error),
    #[error("no seed made: {0}")]
    Seed(io::Error),
    #[error("{}: {status}: {last_line}", .program.display())]
    Program { program: PathBuf, status: ExitStatus, last_line: String },
    #[error("{} ended at once: {last_line}", .program.display())]
    EndedAtOnce { program: PathBuf, last_line: String },
}

fn kvm_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "add core's user to the group kvm",
        _ => "turn virtualization on, or set qemu.accelerator to \"tcg\", which is slower",
    }
}
