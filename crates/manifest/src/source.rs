//! Reads the bytes of `stagely.yaml` from a checkout or a file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

use super::limits::FILE_BYTES_MAX;

/// The name of the file, at the repository's root.
pub const FILE_NAME: &str = "stagely.yaml";

/// Reads the manifest of the repository that is checked out at `root`.
///
/// The repository's authors are not trusted: only a regular file below `root` is opened, so that a
/// symlink cannot show a file of this machine and a FIFO cannot block the reader.
///
/// # Errors
/// There is no such file below `root`. The error is the same whether or not a symlink's target outside
/// exists.
pub fn read_checkout(root: &Path) -> io::Result<Vec<u8>> {
    let root = root.canonicalize()?;
    let path = root.join(FILE_NAME);
    let path = if path.symlink_metadata()?.is_symlink() {
        let target = path.canonicalize().ok().filter(|target| target.starts_with(&root));
        target.ok_or_else(|| io::Error::other("it is a symlink to nothing in the repository"))?
    } else {
        path
    };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(&path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    read(file)
}

/// Reads the bytes of a manifest's file, up to one byte more than [`FILE_BYTES_MAX`].
///
/// # Errors
/// The file cannot be opened or read.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    read(File::open(path)?)
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
