//! Refuses new work early when core's disk is nearly full, rather than failing in the middle of it.

use std::path::PathBuf;

use nix::sys::statvfs::statvfs;
use thiserror::Error;
use tokio::task::spawn_blocking;

/// Too little space is left.
#[derive(Debug, Error)]
#[error(
    "only {free_mib} MiB are free where {} lies, and core.disk-free-min-mib asks for {min_mib}; \
     free some space or shorten [retention]",
    folder.display()
)]
pub(crate) struct DiskNearlyFull {
    folder: PathBuf,
    free_mib: u64,
    min_mib: u64,
}

/// Watches the disk that holds the data folder.
#[derive(Clone, Debug)]
pub(crate) struct DiskGuard {
    folder: PathBuf,
    min_mib: u64,
}

impl DiskGuard {
    /// Asks for `min_mib` mebibytes to be free where `folder` lies.
    pub(crate) const fn new(folder: PathBuf, min_mib: u64) -> Self {
        Self { folder, min_mib }
    }

    /// Looks.
    ///
    /// # Errors
    /// [`DiskNearlyFull`].
    pub(crate) async fn check(&self) -> Result<(), DiskNearlyFull> {
        let folder = self.folder.clone();
        let asked = spawn_blocking(move || statvfs(&folder)).await;
        // A disk that cannot be asked is not known to be full; a commit will say what is wrong.
        let Ok(Ok(disk)) = asked else { return Ok(()) };
        let free_mib = (disk.blocks_available() * disk.fragment_size()) >> 20;
        if free_mib >= self.min_mib {
            return Ok(());
        }
        Err(DiskNearlyFull { folder: self.folder.clone(), free_mib, min_mib: self.min_mib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_little_space_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let guard = |min_mib| DiskGuard::new(folder.path().to_owned(), min_mib);

        guard(0).check().await.unwrap();
        let error = guard(u64::MAX).check().await.unwrap_err().to_string();

        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        assert!(error.contains("free some space or shorten [retention]"), "{error}");
    }

    #[tokio::test]
    async fn a_disk_that_cannot_be_asked_is_not_taken_for_full() {
        DiskGuard::new("/nowhere/at/all".into(), u64::MAX).check().await.unwrap();
    }
}
