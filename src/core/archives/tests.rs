//! Who may store and read archives, and how long they are kept.

use std::fs;

use stagely_state::ids::{EnvironmentId, ProjectId};
use stagely_state::{Archive, Preview, Timestamp};
use stagely_test_support::wait::eventually;
use tempfile::TempDir;

use super::*;
use crate::core::fixtures;

const PREVIEW: PreviewId = PreviewId::from_bits(1);
const MACHINE: MachineId = MachineId::from_bits(1);
const OTHER_MACHINE: MachineId = MachineId::from_bits(2);

struct World {
    folder: TempDir,
    records: SharedRecords,
    archives: Archives,
}

impl World {
    /// A core whose only preview is being archived.
    fn new() -> Self {
        Self::with_free_mib(0)
    }

    fn with_free_mib(free_mib: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = SharedRecords::new(Records::default());
        let mut config = Config::default();
        config.previews.archive_max = ByteSize(1024);
        let blobs = BlobStore::open(folder.path().join("archives")).unwrap();
        let disk = DiskGuard::new(folder.path().to_owned(), free_mib);
        let archives = Archives::new(blobs, records.clone(), disk, &config);
        let world = Self { folder, records, archives };
        world.set(ARCHIVING, None);
        world.records.write(|records| {
            let machines = [fixtures::machine(1), fixtures::machine(2)];
            records.machines.extend(machines.map(|machine| (machine.id, machine)));
        });
        world
    }

    fn set(&self, state: PreviewState, archive: Option<&Digest>) {
        let at = Timestamp(0);
        let (project, environment) = (ProjectId::from_bits(1), EnvironmentId::from_bits(1));
        let archive =
            archive.map(|digest| Archive { digest: digest.clone(), bytes: 1, made_at: at });
        let preview = Preview::new(PREVIEW, project, environment, at);
        let preview = Preview { state, archive, ..preview };
        self.records.write(|records| drop(records.previews.insert(PREVIEW, preview)));
    }

    async fn upload(&self, text: &str) -> Result<Digest, ArchiveError> {
        let upload = self.archives.begin(MACHINE, PREVIEW).await?;
        upload.append(Bytes::copy_from_slice(text.as_bytes())).await?.finish().await
    }

    /// The number of archives and of unfinished files.
    fn files(&self) -> (usize, usize) {
        let count = |name: &str| {
            fs::read_dir(self.folder.path().join("archives").join(name)).map_or(0, Iterator::count)
        };
        (count(&PREVIEW.to_string()), count("unfinished"))
    }

    async fn is_readable(&self, machine: MachineId, digest: &Digest) -> bool {
        self.archives.open(machine, PREVIEW, digest.clone()).await.is_ok()
    }
}

const ARCHIVING: PreviewState =
    PreviewState::Archiving { machine: MACHINE, since: Timestamp(0), wakes: false };

#[tokio::test]
async fn an_archive_is_kept_from_its_upload_until_its_record_names_another_one() {
    let world = World::new();
    let first = world.upload("first").await.unwrap();
    world.archives.sweep().await.unwrap();
    let reported = world.archives.reported(MACHINE, PREVIEW, first.clone()).await.unwrap();
    assert_eq!(reported, Some(5));
    world.set(PreviewState::Asleep, Some(&first));
    world.archives.sweep().await.unwrap();
    assert_eq!(world.files(), (1, 0));

    world.set(ARCHIVING, Some(&first));
    let second = world.upload("second").await.unwrap();
    world.archives.sweep().await.unwrap();
    assert_eq!(world.files(), (2, 0));
    world.set(PreviewState::Asleep, Some(&second));
    assert_eq!(world.archives.sweep().await.unwrap(), 1);
    world.set(PreviewState::Ended, None);
    assert_eq!(world.archives.sweep().await.unwrap(), 1);
    assert_eq!(world.files(), (0, 0));
}

#[tokio::test]
async fn archives_without_a_record_are_removed_when_core_starts_and_when_records_change() {
    let world = World::new();
    let named = world.upload("named").await.unwrap();
    world.set(PreviewState::Asleep, Some(&named));
    let stray = world.folder.path().join("archives/prev_01jd7q3f5m8z9x2c4v6b8n0a1s");
    fs::create_dir(&stray).unwrap();
    fs::write(stray.join(format!("sha256-{}", "0".repeat(64))), "stray").unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(world.archives.clone().run(stop.clone()));

    eventually("the archive of no preview is removed", async || (!stray.exists()).then_some(()))
        .await;
    assert_eq!(world.files(), (1, 0));
    world.set(PreviewState::Ended, None);
    eventually("the archive of an ended preview is removed", async || {
        (world.files() == (0, 0)).then_some(())
    })
    .await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn only_the_machine_that_archives_the_preview_may_store_and_report() {
    let world = World::new();
    let digest = world.upload("data").await.unwrap();
    let refused = world.archives.begin(OTHER_MACHINE, PREVIEW).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::NotArchiving(_)), "{refused}");
    let reported = world.archives.reported(OTHER_MACHINE, PREVIEW, digest.clone()).await;
    assert_eq!(reported.unwrap(), None);

    let late = world.archives.begin(MACHINE, PREVIEW).await.unwrap();
    world.set(PreviewState::Asleep, None);
    let refused = late.finish().await.unwrap_err();
    assert!(matches!(refused, ArchiveError::NotArchiving(_)), "{refused}");
    assert_eq!(world.files(), (1, 0));
    assert_eq!(world.archives.reported(MACHINE, PREVIEW, digest).await.unwrap(), None);
}

#[tokio::test]
async fn a_later_upload_takes_the_place_of_an_earlier_one() {
    let world = World::new();
    world.upload("unreported").await.unwrap();
    let earlier = world.archives.begin(MACHINE, PREVIEW).await.unwrap();
    let superseded = earlier.superseded();
    let later = world.upload("later").await.unwrap();
    assert!(superseded.is_cancelled());
    let refused = earlier.finish().await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Superseded), "{refused}");
    assert_eq!(world.files(), (1, 0));
    assert!(world.archives.reported(MACHINE, PREVIEW, later).await.unwrap().is_some());
}

#[tokio::test]
async fn an_archive_is_read_only_where_its_record_says() {
    let world = World::new();
    let digest = world.upload("data").await.unwrap();
    world.set(PreviewState::Asleep, Some(&digest));
    assert!(!world.is_readable(MACHINE, &digest).await);
    let serve = |machine| {
        world.records.write(|records| {
            records.machines.get_mut(&machine).unwrap().serves = Some(PREVIEW);
        });
    };
    serve(OTHER_MACHINE);
    assert!(world.is_readable(OTHER_MACHINE, &digest).await);
    assert!(!world.is_readable(OTHER_MACHINE, &fixtures::digest()).await);

    world.set(PreviewState::Asleep, Some(&fixtures::digest()));
    let missing = world.archives.open(OTHER_MACHINE, PREVIEW, fixtures::digest()).await;
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("restore the folder `archives`"), "{missing}");
}

#[tokio::test]
async fn an_archive_that_is_too_large_or_finds_no_space_is_refused_and_leaves_nothing() {
    let world = World::new();
    let large = world.upload(&"x".repeat(70 * 1024)).await.unwrap_err();
    assert!(large.to_string().contains("previews.archive-max (1KiB)"), "{large}");
    assert_eq!(world.files(), (0, 0));
    // Compression makes random data longer.
    world.upload(&"x".repeat(1040)).await.unwrap();

    let full = World::with_free_mib(u64::MAX).upload("data").await.unwrap_err();
    assert!(full.to_string().contains("core.disk-free-min-mib"), "{full}");
}
