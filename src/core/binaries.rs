//! The agent's program for each arch: core's own program, and those of a configured folder. Machines with stock
//! images download it from core when they boot.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use stagely_protocol::Arch;
use thiserror::Error;
use tokio::task::spawn_blocking;
use url::Url;

/// This process's own program, also after its file was replaced.
const OWN: &str = "/proc/self/exe";

#[derive(Debug, Error)]
pub(crate) enum BinaryError {
    /// No folder is configured, or the folder has no such file.
    #[error(
        "core has no agent program for {arch}: put `{}` of a release into the folder that `agents.binaries` \
         of stagely.toml names",
        file_name(*arch)
    )]
    Missing { arch: Arch },
    #[error("cannot read the agent program {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The name of the program's file in a release.
fn file_name(arch: Arch) -> String {
    format!("stagely-linux-{arch}")
}

/// The URL at which the core at `core` serves the program for `arch`.
pub(crate) fn address(core: &Url, arch: Arch) -> Url {
    let mut url = core.clone();
    url.set_path(&format!("{}/v1/agent/binary/{arch}", core.path().trim_end_matches('/')));
    url
}

/// An open program.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// In hexadecimal digits.
    pub(crate) sha256: String,
}

/// Device, inode, length and time of change. A file with the same ones is the file that was hashed.
type Identity = (u64, u64, u64, i64, i64);

/// Finds programs, and hashes each once.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    folder: Option<PathBuf>,
    hashes: Arc<Mutex<HashMap<Identity, String>>>,
}

impl Binaries {
    /// `folder` has the programs for the arches that are not core's own.
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, hashes: Arc::default() }
    }

    pub(crate) async fn open(&self, arch: Arch) -> Result<Binary, BinaryError> {
        let path = if arch == Arch::of_this_program() {
            PathBuf::from(OWN)
        } else {
            let folder = self.folder.as_ref().ok_or(BinaryError::Missing { arch })?;
            folder.join(file_name(arch))
        };
        let hashes = Arc::clone(&self.hashes);
        spawn_blocking(move || match open(&path, &hashes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BinaryError::Missing { arch })
            }
            opened => opened.map_err(|source| BinaryError::Read { path, source }),
        })
        .await
        .expect("reading a program does not panic")
    }
}

fn open(path: &Path, hashes: &Mutex<HashMap<Identity, String>>) -> io::Result<Binary> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let identity = (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    // Held while the file is hashed, because concurrent callers most likely need the same hash.
    let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
    let sha256 = if let Some(sha256) = hashes.get(&identity) {
        sha256.clone()
    } else {
        let sha256 = hash(&file)?;
        hashes.insert(identity, sha256.clone());
        sha256
    };
    Ok(Binary { file, bytes: meta.len(), sha256 })
}

/// Hashes the file without moving its read position.
fn hash(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
        }
    }
    let mut text = String::new();
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other() -> Arch {
        match Arch::of_this_program() {
            Arch::Amd64 => Arch::Arm64,
            Arch::Arm64 => Arch::Amd64,
        }
    }

    #[tokio::test]
    async fn cores_own_arch_has_cores_own_program() {
        let binary = Binaries::new(None).open(Arch::of_this_program()).await.unwrap();
        let own = std::env::current_exe().unwrap();
        assert_eq!(binary.bytes, std::fs::metadata(&own).unwrap().len());
        let output = std::process::Command::new("sha256sum").arg(own).output().unwrap();
        let expected = String::from_utf8(output.stdout).unwrap();
        assert!(expected.starts_with(&binary.sha256), "{expected}");
    }

    #[tokio::test]
    async fn another_arch_has_the_program_in_the_folder_also_after_it_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let binaries = Binaries::new(Some(folder.path().to_owned()));
        let missing = binaries.open(other()).await.unwrap_err().to_string();
        let name = file_name(other());
        assert!(missing.contains(&name) && missing.contains("agents.binaries"), "{missing}");
        assert!(matches!(
            Binaries::new(None).open(other()).await,
            Err(BinaryError::Missing { .. })
        ));
        std::fs::write(folder.path().join(&name), "one").unwrap();
        let one = binaries.open(other()).await.unwrap();
        assert!(one.bytes == 3 && one.sha256.starts_with("7692c3ad3540bb80"), "{one:?}");
        assert_eq!(binaries.open(other()).await.unwrap().sha256, one.sha256);
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), folder.path().join(&name)).unwrap();
        assert_ne!(binaries.open(other()).await.unwrap().sha256, one.sha256);
        std::fs::remove_file(folder.path().join(&name)).unwrap();
        std::fs::create_dir(folder.path().join(&name)).unwrap();
        assert!(matches!(binaries.open(other()).await, Err(BinaryError::Read { .. })));
    }
}
