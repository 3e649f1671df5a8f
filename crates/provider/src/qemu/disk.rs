//! A guest's disk: that of the golden image, or a larger one on top of it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf, absolute};
use std::process::Stdio;

use tokio::process::Command;

use super::error::GuestError;
use super::image::Image;

/// The program that makes larger disks, and its Debian package.
pub(super) const PROGRAM: (&str, &str) = ("qemu-img", "qemu-utils");

/// The file of a larger disk in the guest's folder.
const OVERLAY: &str = "root.qcow2";

/// What a guest boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// The image itself. Writes go to a file without a name.
    Image(PathBuf),
    /// A file with the guest's writes, above the image.
    Overlay(PathBuf),
}

/// Makes a disk of `bytes`, more than those of `image`. The file system grows to its size when the guest boots.
pub(super) async fn make_larger(
    program: &Path,
    image: &Image,
    folder: &Path,
    bytes: u64,
) -> Result<Disk, GuestError> {
    let overlay = folder.join(OVERLAY);
    // A relative name would be one in the overlay's folder.
    let image = absolute(&image.disk).map_err(GuestError::Start)?;
    let output = Command::new(program)
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&image, &overlay])
        .arg(bytes.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(GuestError::Start)?;
    if output.status.success() {
        return Ok(Disk::Overlay(overlay));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last_line = stderr.trim().lines().last().unwrap_or_default().to_owned();
    let (program, status) = (program.to_owned(), output.status);
    Err(GuestError::Program { program, status, last_line })
}

/// The size of the larger disk in a guest's folder. `None`: the guest has none.
pub(super) fn larger_disk_bytes(folder: &Path) -> Option<u64> {
    let read = || -> io::Result<u64> {
        let mut header = [0; 32];
        File::open(folder.join(OVERLAY))?.read_exact(&mut header)?;
        // Source: QEMU's documentation, "Qcow2 Image File Format": bytes 24 to 31 are the size of the disk.
        Ok(u64::from_be_bytes([
            header[24], header[25], header[26], header[27], header[28], header[29], header[30],
            header[31],
        ]))
    };
    read().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_larger_disk_takes_space_only_for_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        File::create(path("root.img")).unwrap().set_len(1 << 20).unwrap();
        let image = Image { disk: path("root.img"), kernel: path("vmlinuz") };
        let program = Path::new("/usr/bin/qemu-img");
        assert_eq!(larger_disk_bytes(folder.path()), None);

        let made = make_larger(program, &image, folder.path(), 30 << 30).await.unwrap();

        assert_eq!(made, Disk::Overlay(path("root.qcow2")));
        assert_eq!(larger_disk_bytes(folder.path()), Some(30 << 30));
        let written = path("root.qcow2").metadata().unwrap().len();
        assert!(written < 1 << 20, "{written} bytes");
    }
}
