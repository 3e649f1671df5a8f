//! Archives of previews' volumes: which machine may store and read them, and how long they are kept.
//!
//! An agent stores an archive before it reports it, so no record names it yet. It does both while its preview is being
//! archived, and meanwhile all archives of the preview are kept. Afterwards the one that its record names is kept.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stagely_protocol::{Digest, ErrorChain};
use stagely_state::PreviewState;
use stagely_state::ids::{MachineId, PreviewId};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::blobs::{Blob, BlobStore, BlobWriter};
use super::disk::{DiskGuard, DiskNearlyFull};
use super::records::{Records, SharedRecords};
use crate::config::{ByteSize, Config};

/// The free disk space is checked each time that so much was written.
const DISK_CHECK_BYTES: u64 = 4 * 1024 * 1024;

/// The least time between two searches for archives that are not needed any more.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// An archive is not stored or not read.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    #[error("this machine does not archive {0} now")]
    NotArchiving(PreviewId),
    #[error("another upload of the same preview has begun")]
    Superseded,
    #[error("the archive is larger than previews.archive-max ({max})")]
    TooLarge { max: ByteSize },
    #[error("this machine does not deploy {0} from this archive")]
    NotNamed(PreviewId),
    #[error(
        "core does not have the archive {0}: restore the folder `archives` of its data folder from a backup, or \
         deploy the preview with fresh data"
    )]
    Missing(Digest),
    #[error(transparent)]
    DiskNearlyFull(#[from] DiskNearlyFull),
    #[error("core's disk failed")]
    Disk(#[from] io::Error),
}

/// The archives of this core. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Archives {
    blobs: BlobStore,
    records: SharedRecords,
    disk: DiskGuard,
    bytes_max: ByteSize,
    upload_limit: Duration,
    /// The newest upload of each preview, which may have ended. Locked while archives are added, removed or looked for; what
    /// the records say about them is read meanwhile.
    uploads: Arc<Mutex<HashMap<PreviewId, CancellationToken>>>,
}

/// An archive on its way from an agent.
#[derive(Debug)]
pub(crate) struct ArchiveUpload {
    archives: Archives,
    machine: MachineId,
    preview: PreviewId,
    writer: BlobWriter,
    superseded: CancellationToken,
}

impl Archives {
    pub(super) fn new(
        blobs: BlobStore,
        records: SharedRecords,
        disk: DiskGuard,
        config: &Config,
    ) -> Self {
        Self {
            blobs,
            records,
            disk,
            bytes_max: config.previews.archive_max,
            upload_limit: config.previews.archive_limit,
            uploads: Arc::default(),
        }
    }

    /// How long an upload may take: then the preview's record does not wait for it any more.
    pub(crate) const fn upload_limit(&self) -> Duration {
        self.upload_limit
    }

    /// Begins an upload, which takes the place of an earlier one of the preview.
    ///
    /// # Errors
    /// [`ArchiveError`]
    pub(crate) async fn begin(
        &self,
        machine: MachineId,
        preview: PreviewId,
    ) -> Result<ArchiveUpload, ArchiveError> {
        if !is_archiving(&self.records.read(), machine, preview) {
            return Err(ArchiveError::NotArchiving(preview));
        }
        self.disk.check().await?;
        let archives = self.clone();
        let begin = move || {
            let writer = archives.blobs.create()?;
            let superseded = CancellationToken::new();
            let mut uploads = archives.lock();
            let known = archives.kept();
            uploads.retain(|preview, _| known.get(preview) == Some(&Kept::All));
            if let Some(former) = uploads.insert(preview, superseded.clone()) {
                former.cancel();
            }
            drop(uploads);
            Ok(ArchiveUpload { archives, machine, preview, writer, superseded })
        };
        blocking(begin).await
    }

    /// The length of an archive that `machine` reports; `None` if core does not have it, or waits for none.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn reported(
        &self,
        machine: MachineId,
        preview: PreviewId,
        digest: Digest,
    ) -> io::Result<Option<u64>> {
        let archives = self.clone();
        blocking(move || {
            let _lock = archives.lock();
            if !is_archiving(&archives.records.read(), machine, preview) {
                return Ok(None);
            }
            Ok(archives.blobs.get(&preview.wire(), &digest)?.map(|blob| blob.bytes))
        })
        .await
    }

    /// Opens an archive for the machine that serves or deploys its preview.
    ///
    /// # Errors
    /// [`ArchiveError`]
    pub(crate) async fn open(
        &self,
        machine: MachineId,
        preview: PreviewId,
        digest: Digest,
    ) -> Result<Blob, ArchiveError> {
        if !may_read(&self.records.read(), machine, preview, &digest) {
            return Err(ArchiveError::NotNamed(preview));
        }
        let blobs = self.blobs.clone();
        blocking(move || {
            let blob = blobs.get(&preview.wire(), &digest)?;
            blob.ok_or(ArchiveError::Missing(digest))
        })
        .await
    }

    /// Removes archives that are not needed any more, whenever records change, until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut changes = self.records.changes();
        let mut swept = None;
        self.report_missing().await;
        loop {
            let kept = self.kept();
            if swept.as_ref() != Some(&kept) {
                match self.sweep().await {
                    Ok(removed) => {
                        if removed > 0 {
                            info!(removed, "archives of previews are removed");
                        }
                        swept = Some(kept);
                    }
                    Err(error) => {
                        warn!(error = %ErrorChain(&error), "archives of previews cannot be removed");
                    }
                }
            }
            let next = async {
                // A burst of changes needs one sweep.
                sleep(SWEEP_PAUSE).await;
                changes.changed().await
            };
            if !matches!(stop.run_until_cancelled(next).await, Some(Ok(()))) {
                return;
            }
        }
    }

    /// The archives to keep of each preview.
    fn kept(&self) -> BTreeMap<PreviewId, Kept> {
        let records = self.records.read();
        records.previews.keys().map(|id| (*id, Kept::of(&records, Some(*id)))).collect()
    }

    async fn sweep(&self) -> io::Result<usize> {
        let archives = self.clone();
        blocking(move || {
            let mut removed = 0;
            for owner in archives.blobs.owners()? {
                let _lock = archives.lock();
                let kept = Kept::of(&archives.records.read(), owner.as_str().parse().ok());
                if let Kept::Named(named) = kept {
                    removed +=
                        archives.blobs.retain(&owner, |digest| Some(digest) == named.as_ref())?;
                }
            }
            Ok(removed)
        })
        .await
    }

    /// A restored data folder may lack archives.
    async fn report_missing(&self) {
        for (preview, kept) in self.kept() {
            let Kept::Named(Some(digest)) = kept else { continue };
            let blobs = self.blobs.clone();
            let found = blocking(move || blobs.get(&preview.wire(), &digest)).await;
            if !matches!(found, Ok(Some(_))) {
                warn!(%preview, "the archive of this preview is missing in core's data folder");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PreviewId, CancellationToken>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArchiveUpload {
    /// Fires when a later upload takes the place of this one.
    pub(crate) fn superseded(&self) -> CancellationToken {
        self.superseded.clone()
    }

    /// # Errors
    /// [`ArchiveError`]
    pub(crate) async fn append(mut self, bytes: Bytes) -> Result<Self, ArchiveError> {
        let before = self.writer.bytes();
        let after = before + bytes.len() as u64;
        let max = self.archives.bytes_max;
        if after > compressed_bytes_max(max.0) {
            return Err(ArchiveError::TooLarge { max });
        }
        if before / DISK_CHECK_BYTES != after / DISK_CHECK_BYTES {
            self.archives.disk.check().await?;
        }
        blocking(move || {
            self.writer.append(&bytes)?;
            Ok(self)
        })
        .await
    }

    /// Makes it an archive of the preview. Waits until it is on the disk.
    ///
    /// # Errors
    /// [`ArchiveError`]
    pub(crate) async fn finish(self) -> Result<Digest, ArchiveError> {
        blocking(move || {
            let Self { archives, machine, preview, writer, superseded } = self;
            let blob = writer.finish()?;
            let (owner, digest) = (preview.wire(), blob.digest.clone());
            let _lock = archives.lock();
            if superseded.is_cancelled() {
                return Err(ArchiveError::Superseded);
            }
            let named = {
                let records = archives.records.read();
                if !is_archiving(&records, machine, preview) {
                    return Err(ArchiveError::NotArchiving(preview));
                }
                archive_of(&records, preview)
            };
            archives.blobs.insert(&owner, blob)?;
            // The answer to an earlier upload was lost.
            archives
                .blobs
                .retain(&owner, |known| *known == digest || Some(known) == named.as_ref())?;
            Ok(digest)
        })
        .await
    }
}

/// Which archives of a preview are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    All,
    /// The one that its record names.
    Named(Option<Digest>),
}

impl Kept {
    /// `None`: of something that is no preview.
    fn of(records: &Records, preview: Option<PreviewId>) -> Self {
        let state = |id| records.previews.get(&id).map(|preview| preview.state);
        match preview.and_then(state) {
            Some(PreviewState::Archiving { .. }) => Self::All,
            _ => Self::Named(preview.and_then(|preview| archive_of(records, preview))),
        }
    }
}

fn archive_of(records: &Records, preview: PreviewId) -> Option<Digest> {
    let archive = records.previews.get(&preview)?.archive.as_ref()?;
    Some(archive.digest.clone())
}

/// Whether the record of `preview` waits for an archive from `machine`.
fn is_archiving(records: &Records, machine: MachineId, preview: PreviewId) -> bool {
    let state = records.previews.get(&preview).map(|preview| preview.state);
    matches!(state, Some(PreviewState::Archiving { machine: archiving, .. }) if archiving == machine)
}

/// Whether the record of `preview` names the archive, and `machine` serves the preview or has its deploy job.
fn may_read(records: &Records, machine: MachineId, preview: PreviewId, digest: &Digest) -> bool {
    if archive_of(records, preview).as_ref() != Some(digest) {
        return false;
    }
    let serves = records.machines.get(&machine).and_then(|machine| machine.serves);
    let job = records.previews.get(&preview).and_then(|preview| preview.state.job());
    let job = job.and_then(|job| records.jobs.get(&job));
    serves == Some(preview) || job.is_some_and(|job| job.state.attempt_on(machine).is_some())
}

/// How long the archive of volumes with `bytes` may become. Compression makes random data a little longer, and frames
/// come on top.
const fn compressed_bytes_max(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 64).saturating_add(64 * 1024)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("the disk's errors are no panics")
}

#[cfg(test)]
mod tests;
