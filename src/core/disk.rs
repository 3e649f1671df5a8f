//! Refuses work early when core's disk is nearly full, instead of failing in the middle of it.
//!
//! New runs are refused first. Below half of the configured space, runs under way are limited too: no plan is made
//! and logs are cut, so that the rest is left for the records, which core needs to work.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use thiserror::Error;
use tokio::task::spawn_blocking;

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

/// Checks the free space of the disk with the data folder.
#[derive(Clone, Debug)]
pub(crate) struct DiskGuard {
    folder: PathBuf,
    min_mib: u64,
}

impl DiskGuard {
    /// New work needs `min_mib` free mebibytes on the disk of `folder`.
    pub(crate) const fn new(folder: PathBuf, min_mib: u64) -> Self {
        Self { folder, min_mib }
    }

    /// Checks that new work can begin.
    ///
    /// # Errors
    /// [`DiskNearlyFull`].
    pub(crate) async fn check(&self) -> Result<(), DiskNearlyFull> {
        self.require(self.min_mib).await
    }

    /// Checks that work under way can go on.
    ///
    /// # Errors
    /// [`DiskNearlyFull`].
    pub(crate) async fn check_reserve(&self) -> Result<(), DiskNearlyFull> {
        self.require(reserve_mib(self.min_mib)).await
    }

    /// The bytes that work under way may use at most.
    pub(crate) async fn free_above_reserve(&self) -> u64 {
        let folder = self.folder.clone();
        let free = spawn_blocking(move || free_bytes(&folder)).await.ok().flatten();
        free.map_or(u64::MAX, |free| free.saturating_sub(reserve_mib(self.min_mib) << 20))
    }

    async fn require(&self, required_mib: u64) -> Result<(), DiskNearlyFull> {
        let folder = self.folder.clone();
        let free = spawn_blocking(move || free_bytes(&folder)).await;
        let Ok(Some(free)) = free else { return Ok(()) };
        let free_mib = free >> 20;
        if free_mib >= required_mib {
            return Ok(());
        }
        Err(DiskNearlyFull { folder: self.folder.clone(), free_mib, min_mib: self.min_mib })
    }
}

/// The part of `min_mib` that is reserved for the records.
pub(crate) const fn reserve_mib(min_mib: u64) -> u64 {
    min_mib / 2
}

/// The free bytes on the disk of `folder`. `None` if they cannot be found out: then the disk may have space, and a
/// commit would fail with the reason.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = statvfs(folder).ok()?;
    Some(disk.blocks_available() * disk.fragment_size())
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
    async fn a_disk_whose_free_space_is_unknown_does_not_count_as_full() {
        DiskGuard::new("/nowhere/at/all".into(), u64::MAX).check().await.unwrap();
    }

    #[tokio::test]
    async fn work_under_way_needs_less_space_than_new_work() {
        let folder = tempfile::tempdir().unwrap();
        let free_mib = free_bytes(folder.path()).unwrap() >> 20;
        // The margins are wide, because other programs write meanwhile.
        let guard = |min_mib| DiskGuard::new(folder.path().to_owned(), min_mib);

        let between = guard(free_mib + free_mib / 2);
        assert!(between.check().await.is_err());
        between.check_reserve().await.unwrap();

        assert_eq!(guard(free_mib * 4).free_above_reserve().await, 0);
        assert!(guard(free_mib).free_above_reserve().await > 0);
        let error = guard(free_mib * 4).check_reserve().await.unwrap_err().to_string();
        assert!(error.contains(&format!("asks for {}", free_mib * 4)), "{error}");
    }
}
