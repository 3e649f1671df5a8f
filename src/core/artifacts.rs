//! Artifacts of tests: which machine may store them, what their archives may hold, and how long they are kept.
//!
//! An agent uploads one archive in pieces, and reports it with the end of its test. What has arrived of an upload that broke
//! off is kept as long as the machine has the attempt, unless core ends before. The owner of an archive is its job.

mod archive;
mod index;
mod pictures;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stagely_protocol::{
    ARTIFACT_BYTES_MAX, ARTIFACT_FILES_MAX, ARTIFACT_PIECE_BYTES_MAX, Digest, ErrorChain,
};
use stagely_state::Attempt;
use stagely_state::ids::{JobId, MachineId};
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use self::archive::InvalidArchive;
pub(crate) use self::index::{Extent, FileIndex, Found};
pub(crate) use self::pictures::{Picture, PictureError};
use super::blobs::{Blob, BlobStore, BlobWriter};
use super::disk::{DiskGuard, DiskNearlyFull};
use super::records::{Records, SharedRecords};
use crate::config::Config;

/// The free disk space is checked each time that so much was written.
const DISK_CHECK_BYTES: u64 = 4 * 1024 * 1024;

/// The most bytes of an archive for each file beside its content: its header, that of a long name, and the name.
const HEADER_BYTES_MAX: u64 = 4 * 1024;

/// The time between two searches for artifacts that are not kept any more.
const SWEEP_PAUSE: Duration = Duration::from_hours(1);

/// Artifacts are not stored or not read.
#[derive(Debug, Error)]
pub(crate) enum ArtifactError {
    #[error("this machine does not run the test {0} now")]
    NotTesting(Attempt),
    #[error("the artifacts take {bytes} bytes, and at most {} are stored", archive_bytes_max())]
    TooLarge { bytes: u64 },
    #[error("a piece has at most {ARTIFACT_PIECE_BYTES_MAX} bytes")]
    PieceTooLarge,
    /// The piece begins elsewhere than at the end of what has arrived.
    #[error("core has {bytes} bytes of these artifacts; go on there")]
    Elsewhere { bytes: u64 },
    #[error("the body is not as long as its Content-Range says")]
    WrongLength,
    #[error("another request of the same upload has begun")]
    Superseded,
    #[error("the artifacts have another digest than they should")]
    WrongDigest,
    #[error(transparent)]
    Invalid(#[from] InvalidArchive),
    #[error(transparent)]
    DiskNearlyFull(#[from] DiskNearlyFull),
    #[error("core's disk failed")]
    Disk(#[from] io::Error),
}

/// The artifacts of this core. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Artifacts {
    blobs: BlobStore,
    records: SharedRecords,
    disk: DiskGuard,
    kept_for: Duration,
    /// The uploads under way, at most one of an attempt.
    uploads: Arc<Mutex<HashMap<Attempt, Upload>>>,
}

#[derive(Debug)]
struct Upload {
    part: Arc<AsyncMutex<Part>>,
    /// Fires when a newer request goes on with the upload.
    superseded: CancellationToken,
}

/// The beginning of an archive.
#[derive(Debug)]
struct Part {
    digest: Digest,
    /// `None` once the archive is complete, or after an error of the disk.
    writer: Option<BlobWriter>,
}

/// Which part of the archive a request has. `last` is inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) size: u64,
}

/// A piece on its way from an agent.
#[derive(Debug)]
pub(crate) struct PieceUpload {
    artifacts: Artifacts,
    machine: MachineId,
    attempt: Attempt,
    piece: Piece,
    part: OwnedMutexGuard<Part>,
    superseded: CancellationToken,
}

/// What a piece has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Complete,
    /// So many bytes have arrived.
    Partial {
        bytes: u64,
    },
}

impl Artifacts {
    pub(super) fn new(
        blobs: BlobStore,
        records: SharedRecords,
        disk: DiskGuard,
        config: &Config,
    ) -> Self {
        Self { blobs, records, disk, kept_for: config.retention.artifacts, uploads: Arc::default() }
    }

    /// How many bytes of an archive have arrived. All of them if it is stored.
    ///
    /// # Errors
    /// [`ArtifactError`]
    pub(crate) async fn offset(
        &self,
        machine: MachineId,
        attempt: Attempt,
        digest: Digest,
    ) -> Result<u64, ArtifactError> {
        self.check(machine, attempt)?;
        if let Some(bytes) = self.stored(attempt, digest.clone()).await? {
            return Ok(bytes);
        }
        let part = self.lock().get(&attempt).map(|upload| Arc::clone(&upload.part));
        let Some(part) = part else { return Ok(0) };
        let part = part.lock().await;
        let writer = part.writer.as_ref().filter(|_| part.digest == digest);
        Ok(writer.map_or(0, BlobWriter::bytes))
    }

    /// Begins to receive a piece. An earlier request of the same upload ends.
    ///
    /// # Errors
    /// [`ArtifactError`]
    pub(crate) async fn begin(
        &self,
        machine: MachineId,
        attempt: Attempt,
        digest: Digest,
        piece: Piece,
    ) -> Result<PieceUpload, ArtifactError> {
        self.check(machine, attempt)?;
        piece.check()?;
        self.disk.check().await?;
        if let Some(bytes) = self.stored(attempt, digest.clone()).await? {
            return Err(ArtifactError::Elsewhere { bytes });
        }
        let superseded = CancellationToken::new();
        let part = self.join(attempt, &digest, superseded.clone());
        let mut part = part.lock_owned().await;
        let is_of_this = part.digest == digest && part.writer.is_some();
        if !is_of_this {
            let blobs = self.blobs.clone();
            let writer = blocking(move || blobs.create()).await?;
            *part = Part { digest, writer: Some(writer) };
        }
        let bytes = part.writer.as_ref().map_or(0, BlobWriter::bytes);
        if bytes != piece.first {
            return Err(ArtifactError::Elsewhere { bytes });
        }
        let artifacts = self.clone();
        Ok(PieceUpload { artifacts, machine, attempt, piece, part, superseded })
    }

    /// The upload of the attempt, known or new. The request before gives it up.
    fn join(
        &self,
        attempt: Attempt,
        digest: &Digest,
        superseded: CancellationToken,
    ) -> Arc<AsyncMutex<Part>> {
        self.forget_ended_uploads();
        let mut uploads = self.lock();
        let part = if let Some(former) = uploads.get(&attempt) {
            former.superseded.cancel();
            Arc::clone(&former.part)
        } else {
            Arc::new(AsyncMutex::new(Part { digest: digest.clone(), writer: None }))
        };
        uploads.insert(attempt, Upload { part: Arc::clone(&part), superseded });
        part
    }

    /// What has arrived for attempts that are over is removed from the disk.
    fn forget_ended_uploads(&self) {
        let records = self.records.read();
        self.lock().retain(|known, _| is_under_way(&records, *known));
    }

    fn check(&self, machine: MachineId, attempt: Attempt) -> Result<(), ArtifactError> {
        let has_it = is_testing(&self.records.read(), machine, attempt);
        if has_it { Ok(()) } else { Err(ArtifactError::NotTesting(attempt)) }
    }

    async fn stored(&self, attempt: Attempt, digest: Digest) -> io::Result<Option<u64>> {
        Ok(self.open(attempt.job, digest).await?.map(|blob| blob.bytes))
    }

    /// Whether core has the artifacts that a machine reports.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn has(
        &self,
        machine: MachineId,
        attempt: Attempt,
        digest: Digest,
    ) -> io::Result<bool> {
        let is_current = is_testing(&self.records.read(), machine, attempt);
        Ok(is_current && self.stored(attempt, digest).await?.is_some())
    }

    /// Opens the archive of a job; `None` if core does not have it, or not any more.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn open(&self, job: JobId, digest: Digest) -> io::Result<Option<Blob>> {
        let blobs = self.blobs.clone();
        blocking(move || blobs.get(&owner(job), &digest)).await
    }

    /// Opens the archive of a job, and finds out where its files are; `None` if core does not have it, or not any more.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn files(
        &self,
        job: JobId,
        digest: Digest,
    ) -> io::Result<Option<(File, FileIndex)>> {
        let blobs = self.blobs.clone();
        blocking(move || {
            let Some(mut blob) = blobs.get(&owner(job), &digest)? else { return Ok(None) };
            let index = FileIndex::read(&mut blob.file)?;
            Ok(Some((blob.file, index)))
        })
        .await
    }

    /// Reads the picture `name` among the artifacts of a job; `None` if core does not have them, or not any more.
    ///
    /// # Errors
    /// [`PictureError`]
    pub(crate) async fn picture(
        &self,
        job: JobId,
        digest: Digest,
        name: String,
    ) -> Result<Option<Picture>, PictureError> {
        let blobs = self.blobs.clone();
        blocking(move || {
            let Some(blob) = blobs.get(&owner(job), &digest)? else { return Ok(None) };
            pictures::read(blob.file, &name).map(Some)
        })
        .await
    }

    /// Removes artifacts that are not kept any more, until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        loop {
            match self.sweep().await {
                Ok(0) => {}
                Ok(removed) => info!(removed, "artifacts of tests are removed"),
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "artifacts of tests cannot be removed");
                }
            }
            if stop.run_until_cancelled(sleep(SWEEP_PAUSE)).await.is_none() {
                return;
            }
        }
    }

    async fn sweep(&self) -> io::Result<usize> {
        self.forget_ended_uploads();
        let artifacts = self.clone();
        blocking(move || {
            let mut removed = 0;
            for owner in artifacts.blobs.owners()? {
                let job: Option<JobId> = owner.as_str().parse().ok();
                let is_open = job.is_some_and(|job| is_open(&artifacts.records.read(), job));
                let age = artifacts.blobs.age(&owner)?;
                let is_old = age.is_none_or(|age| age > artifacts.kept_for);
                if !is_open && is_old {
                    removed += artifacts.blobs.retain(&owner, |_| false)?;
                }
            }
            Ok(removed)
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Attempt, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    fn check(self) -> Result<(), ArtifactError> {
        if self.size > archive_bytes_max() {
            return Err(ArtifactError::TooLarge { bytes: self.size });
        }
        if self.last < self.first || self.last >= self.size {
            return Err(ArtifactError::WrongLength);
        }
        if self.last - self.first >= ARTIFACT_PIECE_BYTES_MAX {
            return Err(ArtifactError::PieceTooLarge);
        }
        Ok(())
    }
}

impl PieceUpload {
    /// Fires when a newer request goes on with the upload.
    pub(crate) fn superseded(&self) -> CancellationToken {
        self.superseded.clone()
    }

    /// # Errors
    /// [`ArtifactError`]; what arrived before stays, unless the disk failed.
    pub(crate) async fn append(mut self, bytes: Bytes) -> Result<Self, ArtifactError> {
        let before = self.part.writer.as_ref().map_or(0, BlobWriter::bytes);
        let after = before + bytes.len() as u64;
        if after > self.piece.last + 1 {
            return Err(ArtifactError::WrongLength);
        }
        if before / DISK_CHECK_BYTES != after / DISK_CHECK_BYTES {
            self.artifacts.disk.check().await?;
        }
        blocking(move || {
            // After an error nobody knows what the file has, so it is dropped.
            let mut writer = self.part.writer.take().ok_or(ArtifactError::Superseded)?;
            writer.append(&bytes)?;
            self.part.writer = Some(writer);
            Ok(self)
        })
        .await
    }

    /// Ends the piece. The last one makes the archive complete, and waits until it is on the disk.
    ///
    /// # Errors
    /// [`ArtifactError`]
    pub(crate) async fn finish(mut self) -> Result<Progress, ArtifactError> {
        let bytes = self.part.writer.as_ref().map_or(0, BlobWriter::bytes);
        if bytes != self.piece.last + 1 {
            return Err(ArtifactError::WrongLength);
        }
        if bytes < self.piece.size {
            return Ok(Progress::Partial { bytes });
        }
        let Some(writer) = self.part.writer.take() else { return Err(ArtifactError::Superseded) };
        let Self { artifacts, machine, attempt, part, .. } = self;
        let expected = part.digest.clone();
        blocking(move || {
            let blob = writer.finish()?;
            if blob.digest != expected {
                return Err(ArtifactError::WrongDigest);
            }
            archive::check(blob.reader()?)?;
            let owner = owner(attempt.job);
            // The record may have moved on meanwhile.
            artifacts.check(machine, attempt)?;
            artifacts.blobs.insert(&owner, blob)?;
            // Of an attempt before.
            artifacts.blobs.retain(&owner, |known| *known == expected)?;
            drop(part);
            Ok(Progress::Complete)
        })
        .await
    }
}

/// The longest archive: the files and what an archive needs beside them.
const fn archive_bytes_max() -> u64 {
    ARTIFACT_BYTES_MAX + ARTIFACT_FILES_MAX * HEADER_BYTES_MAX + HEADER_BYTES_MAX
}

fn owner(job: JobId) -> stagely_protocol::WireId {
    Attempt { job, number: 1 }.wire()
}

fn is_testing(records: &Records, machine: MachineId, attempt: Attempt) -> bool {
    records.jobs.get(&attempt.job).is_some_and(|job| {
        job.kind.is_test() && job.state.attempt_on(machine) == Some(attempt.number)
    })
}

/// Whether some machine has the attempt.
fn is_under_way(records: &Records, attempt: Attempt) -> bool {
    let job = records.jobs.get(&attempt.job);
    let machine = job.and_then(|job| job.state.machine());
    machine.is_some_and(|machine| is_testing(records, machine, attempt))
}

fn is_open(records: &Records, job: JobId) -> bool {
    records.jobs.get(&job).is_some_and(|job| !job.state.is_final())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("the disk's errors are no panics")
}

#[cfg(test)]
mod tests;
