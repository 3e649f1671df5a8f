//! Uploads of artifacts, without HTTP.

use std::fmt::Write as _;
use std::io::Read as _;

use sha2::{Digest as _, Sha256};
use stagely_protocol::{BuildArgs, Shard};
use stagely_state::ids::RunId;
use stagely_state::{Job, JobKind, JobState, PlannedJob, Test, TestMachine, Timestamp, UsedImage};
use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

const MACHINE: MachineId = MachineId::from_bits(1);
const JOB: JobId = JobId::from_bits(1);
const ATTEMPT: Attempt = Attempt { job: JOB, number: 1 };

/// The artifacts of a core whose only test runs on a machine.
struct World {
    artifacts: Artifacts,
    records: SharedRecords,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(0)
    }

    fn with(disk_free_min_mib: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(folder.path().join("artifacts")).unwrap();
        let records = SharedRecords::new(Records::default());
        records.write(|records| {
            records.jobs.insert(JOB, job());
        });
        let disk = DiskGuard::new(folder.path().to_owned(), disk_free_min_mib);
        let artifacts = Artifacts::new(blobs, records.clone(), disk, &Config::default());
        Self { artifacts, records, folder }
    }

    /// Sends the bytes `first..last` of `archive` as one piece.
    async fn send(
        &self,
        archive: &[u8],
        first: usize,
        last: usize,
    ) -> Result<Progress, ArtifactError> {
        let (artifacts, size) = (&self.artifacts, archive.len() as u64);
        let piece = Piece { first: first as u64, last: last as u64 - 1, size };
        let mut upload = artifacts.begin(MACHINE, ATTEMPT, digest(archive), piece).await?;
        for bytes in archive[first..last].chunks(1_000) {
            upload = upload.append(Bytes::copy_from_slice(bytes)).await?;
        }
        upload.finish().await
    }

    async fn offset(&self, archive: &[u8]) -> u64 {
        self.artifacts.offset(MACHINE, ATTEMPT, digest(archive)).await.unwrap()
    }

    /// The files on the disk, also unfinished ones.
    fn files(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.path().join("artifacts")).unwrap();
        let files = |folder: io::Result<std::fs::DirEntry>| {
            std::fs::read_dir(folder.unwrap().path()).unwrap().count()
        };
        folders.map(files).sum()
    }
}

fn job() -> Job {
    let image = "r/tools:1".parse().unwrap();
    let test = Test {
        image: UsedImage::Image { image },
        command: Vec::new(),
        env: BuildArgs::default(),
        secrets: Vec::new(),
        shard: Shard::ALL,
        retries: 0,
        junit: Vec::new(),
        artifacts: Vec::new(),
        comment_images: Vec::new(),
        on: TestMachine::Tester,
        preview_of: None,
    };
    let kind = JobKind::Test { arch: None, test: Box::new(test) };
    let planned = PlannedJob::new(JOB, "e2e", kind, Duration::from_mins(30));
    let state = JobState::Running { attempt: 1, machine: MACHINE, deadline: Timestamp(1) };
    Job { state, attempt: 1, ..Job::queued(planned, RunId::from_bits(1), Timestamp(0)) }
}

fn archive(files: usize) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for number in 0..files {
        let content = vec![b'x'; 3_000];
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("report/{number}.html"), &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text.parse().unwrap()
}

#[tokio::test]
async fn pieces_become_one_archive_that_is_read_back() {
    let world = World::new();
    let archive = archive(20);
    let half = archive.len() / 2;
    assert_eq!(world.offset(&archive).await, 0);
    let progress = world.send(&archive, 0, half).await.unwrap();
    assert_eq!(progress, Progress::Partial { bytes: half as u64 });
    assert_eq!(world.offset(&archive).await, half as u64);
    assert_eq!(world.send(&archive, half, archive.len()).await.unwrap(), Progress::Complete);

    assert_eq!(world.offset(&archive).await, archive.len() as u64);
    assert!(world.artifacts.has(MACHINE, ATTEMPT, digest(&archive)).await.unwrap());
    let mut blob = world.artifacts.open(JOB, digest(&archive)).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    blob.file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, archive);
    // The answer was lost, and the agent sends the piece again.
    let again = world.send(&archive, half, archive.len()).await.unwrap_err();
    assert!(matches!(again, ArtifactError::Elsewhere { bytes } if bytes == archive.len() as u64));
}

#[tokio::test]
async fn what_arrived_of_a_piece_that_broke_off_is_kept() {
    let world = World::new();
    let archive = archive(20);
    let piece = Piece { first: 0, last: archive.len() as u64 - 1, size: archive.len() as u64 };
    let upload = world.artifacts.begin(MACHINE, ATTEMPT, digest(&archive), piece).await.unwrap();
    let upload = upload.append(Bytes::copy_from_slice(&archive[..5_000])).await.unwrap();
    drop(upload);

    assert_eq!(world.offset(&archive).await, 5_000);
    let wrong = world.send(&archive, 4_000, archive.len()).await.unwrap_err();
    assert!(matches!(wrong, ArtifactError::Elsewhere { bytes: 5_000 }), "{wrong}");
    assert_eq!(world.send(&archive, 5_000, archive.len()).await.unwrap(), Progress::Complete);
}

#[tokio::test]
async fn a_piece_that_is_shorter_than_it_says_leaves_the_upload_open() {
    let world = World::new();
    let archive = archive(2);
    let piece = Piece { first: 0, last: 999, size: archive.len() as u64 };
    let begin = || world.artifacts.begin(MACHINE, ATTEMPT, digest(&archive), piece);
    let upload = begin().await.unwrap();
    let upload = upload.append(Bytes::copy_from_slice(&archive[..500])).await.unwrap();
    assert!(matches!(upload.finish().await.unwrap_err(), ArtifactError::WrongLength));
    let upload = World::new();
    let longer = upload.artifacts.begin(MACHINE, ATTEMPT, digest(&archive), piece).await.unwrap();
    let longer = longer.append(Bytes::copy_from_slice(&archive[..1_001])).await.unwrap_err();
    assert!(matches!(longer, ArtifactError::WrongLength));
    assert_eq!(world.offset(&archive).await, 500);
}

#[tokio::test]
async fn a_newer_request_takes_the_upload_over() {
    let world = World::new();
    let archive = archive(2);
    let piece = Piece { first: 0, last: archive.len() as u64 - 1, size: archive.len() as u64 };
    let begin = || world.artifacts.begin(MACHINE, ATTEMPT, digest(&archive), piece);
    let hanging = begin().await.unwrap();
    let superseded = hanging.superseded();
    let next = tokio::spawn({
        let (artifacts, digest) = (world.artifacts.clone(), digest(&archive));
        async move { artifacts.begin(MACHINE, ATTEMPT, digest, piece).await.map(drop) }
    });
    superseded.cancelled().await;
    drop(hanging);
    next.await.unwrap().unwrap();
}

#[tokio::test]
async fn only_the_machine_that_runs_the_test_may_store() {
    let world = World::new();
    let archive = archive(1);
    let stranger = MachineId::from_bits(2);
    let offset = world.artifacts.offset(stranger, ATTEMPT, digest(&archive)).await;
    assert!(matches!(offset.unwrap_err(), ArtifactError::NotTesting(_)));
    let former = Attempt { number: 2, ..ATTEMPT };
    let offset = world.artifacts.offset(MACHINE, former, digest(&archive)).await;
    assert!(matches!(offset.unwrap_err(), ArtifactError::NotTesting(_)));
    world.send(&archive, 0, archive.len()).await.unwrap();
    // Reports of others name nothing.
    assert!(!world.artifacts.has(stranger, ATTEMPT, digest(&archive)).await.unwrap());
    world.records.write(|records| records.jobs.get_mut(&JOB).unwrap().state = JobState::Cancelled);
    let late = world.send(&archive, 0, archive.len()).await.unwrap_err();
    assert!(matches!(late, ArtifactError::NotTesting(_)));
}

#[tokio::test]
async fn refused_artifacts_leave_nothing() {
    let world = World::new();
    let good = archive(1);
    let size = archive_bytes_max() + 1;
    let begin = |piece| world.artifacts.begin(MACHINE, ATTEMPT, digest(&good), piece);
    let large = begin(Piece { first: 0, last: 1, size }).await.unwrap_err();
    assert!(matches!(large, ArtifactError::TooLarge { .. }), "{large}");
    let last = ARTIFACT_PIECE_BYTES_MAX;
    let long = begin(Piece { first: 0, last, size: last + 1 }).await.unwrap_err();
    assert!(matches!(long, ArtifactError::PieceTooLarge), "{long}");
    let mut other = good.clone();
    other[600] ^= 1;
    let piece = Piece { first: 0, last: good.len() as u64 - 1, size: good.len() as u64 };
    let upload = begin(piece).await.unwrap();
    let upload = upload.append(Bytes::from(other)).await.unwrap();
    assert!(matches!(upload.finish().await.unwrap_err(), ArtifactError::WrongDigest));
    let nonsense = vec![b'x'; 2_048];
    let invalid = world.send(&nonsense, 0, nonsense.len()).await.unwrap_err();
    assert!(matches!(invalid, ArtifactError::Invalid(_)), "{invalid}");
    assert_eq!(world.files(), 0);
    let full = World::with(u64::MAX >> 24).send(&good, 0, good.len()).await.unwrap_err();
    assert!(matches!(full, ArtifactError::DiskNearlyFull(_)), "{full}");
}

#[tokio::test]
async fn artifacts_go_after_their_time_and_those_of_open_tests_stay() {
    let mut world = World::new();
    let archive = archive(1);
    world.send(&archive, 0, archive.len()).await.unwrap();
    assert_eq!(world.artifacts.sweep().await.unwrap(), 0);
    world.artifacts.kept_for = Duration::ZERO;
    assert_eq!(world.artifacts.sweep().await.unwrap(), 0, "the test runs");
    let completed = JobState::Completed { digest: None };
    world.records.write(|records| records.jobs.get_mut(&JOB).unwrap().state = completed);
    assert_eq!(world.artifacts.sweep().await.unwrap(), 1);
    assert_eq!(world.files(), 0);
}
