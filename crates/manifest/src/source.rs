//! Reads the bytes of `stagely.yaml` from a checkout or a file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

use super::limits::FILE_BYTES_MAX;

/// The name of the file, at the repository's root.
pub const FILE_NAME: &str = "stagely.yaml";

/// A name that the file does not have, although many tools accept it.
pub const MISNAMED: &str = "stagely.yml";

/// The advice for a repository that has [`MISNAMED`] alone.
pub const MISNAMED_ADVICE: &str = "there is a stagely.yml: rename it to stagely.yaml";

/// The advice for a repository that has neither.
pub const MISSING_ADVICE: &str = "there is none: commit one at the top of the repository; \
    `builds: { app: { context: . } }` builds the Dockerfile beside it";

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
    let metadata = path.symlink_metadata().map_err(|error| advised(error, &path))?;
    let path = if metadata.is_symlink() {
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
    read(File::open(path).map_err(|error| advised(error, path))?)
}

/// Adds the advice to the error about a missing file.
fn advised(error: io::Error, path: &Path) -> io::Error {
    if error.kind() != io::ErrorKind::NotFound || !path.ends_with(FILE_NAME) {
        return error;
    }
    let is_misnamed = path.with_file_name(MISNAMED).is_file();
    io::Error::new(error.kind(), if is_misnamed { MISNAMED_ADVICE } else { MISSING_ADVICE })
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_missing_file_gets_advice() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        let errors = || {
            let checkout = read_checkout(folder.path()).unwrap_err().to_string();
            (checkout, read_file(&file).unwrap_err().to_string())
        };
        assert_eq!(errors(), (MISSING_ADVICE.to_owned(), MISSING_ADVICE.to_owned()));
        fs::write(folder.path().join(MISNAMED), "builds: {}\n").unwrap();
        assert_eq!(errors(), (MISNAMED_ADVICE.to_owned(), MISNAMED_ADVICE.to_owned()));
        fs::write(&file, "builds:\n").unwrap();
        assert_eq!(read_file(&file).unwrap(), b"builds:\n");
    }
}
