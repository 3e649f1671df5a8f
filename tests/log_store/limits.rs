//! Logs over the limit of their job, and disks that fill up.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use stagely::core::logs::{LogId, LogSettings, LogStore, SERVICES_BYTES_MAX};
use stagely_protocol::Stream;
use stagely_state::ids::{JobId, PreviewId};

use crate::fixtures::{
    Database, FIRST, JOB, MIB, append, first_of, line, lines, open, open_with, read_all, texts,
};

#[tokio::test]
async fn a_log_over_its_limit_is_cut_once_and_its_agent_goes_on() {
    let database = Database::new();
    let mut store = open(&database.path, MIB);
    let text = "x".repeat(60_000);
    let batch = lines(&[text.as_str(); 4]);
    for number in 0..10 {
        if number == 6 {
            store.close().await;
            store = open(&database.path, MIB);
        }
        let next = append(&store, FIRST, Some(number * 4), &batch).await.unwrap();
        assert_eq!(next, (number + 1) * 4, "dropped lines are acknowledged, too");
    }
    append(&store, first_of(JobId::from_bits(8)), None, &lines(&["another log"])).await.unwrap();

    let stored = texts(&store, JOB).await;

    let (last, kept) = stored.split_last().unwrap();
    assert_eq!(kept.len(), 16, "four batches are less than 1 MiB, five are more");
    assert!(kept.iter().all(|line| *line == text));
    assert_eq!(last, "[log cut: more than 1 MiB; the rest is not kept]");
    assert_eq!(texts(&store, JobId::from_bits(8)).await, ["another log"]);
}

#[tokio::test]
async fn empty_lines_count_and_can_be_read_back() {
    let database = Database::new();
    let store = open(&database.path, 8 * MIB);
    let batch: Vec<_> = (0..170_000).map(|_| line(0, Stream::Stdout, "")).collect();
    for number in 0..4 {
        append(&store, FIRST, Some(number * 170_000), &batch).await.unwrap();
    }

    let (_, page) = store.read(FIRST, 0, 10).await.unwrap();
    assert!(page.len() < 50_000, "{} lines at once", page.len());
    let all = read_all(&store, FIRST, 1_000).await;
    let (last, lines) = all.split_last().unwrap();
    assert!(last.data.starts_with("[log cut: more than 8 MiB"), "{last:?}");
    assert!(lines.iter().all(|line| line.data.is_empty()));
    assert!((340_000..680_000).contains(&lines.len()), "{}", lines.len());
    store.close().await;
}

const SERVICES: LogId = LogId::Services { preview: PreviewId::from_bits(7), generation: 3 };

/// Appends `count` lines of 60,000 bytes, each of which begins with its number.
async fn append_long(store: &LogStore, first: u64, count: u64) {
    let texts: Vec<String> =
        (first..first + count).map(|number| format!("{number} {}", "x".repeat(60_000))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let receipt = store.append(SERVICES, Some(first), &lines(&texts)).await;
    assert_eq!(receipt.unwrap().stored().await.unwrap(), first + count);
}

/// The numbers of the lines that are kept.
async fn kept_lines(store: &LogStore) -> std::ops::Range<u64> {
    let (first, mut next) = (store.read(SERVICES, 0, 1).await.unwrap().0, 0);
    loop {
        let (from, lines) = store.read(SERVICES, next, 10).await.unwrap();
        for (number, line) in (from..).zip(&lines) {
            assert!(line.data.starts_with(&format!("{number} ")), "{number}");
        }
        if lines.is_empty() {
            return first..next;
        }
        next = from + lines.len() as u64;
    }
}

#[tokio::test]
async fn a_log_of_services_loses_its_oldest_lines_and_goes_on() {
    let database = Database::new();
    let mut store = open(&database.path, MIB);
    for number in 0..200 {
        if number == 150 {
            store.close().await;
            store = open(&database.path, MIB);
        }
        append_long(&store, number * 4, 4).await;
    }
    append(&store, FIRST, None, &lines(&["of a job"])).await.unwrap();

    let kept = kept_lines(&store).await;

    assert_eq!(kept.end, 800);
    let bytes = (kept.end - kept.start) * 60_000;
    assert!((SERVICES_BYTES_MAX - MIB..SERVICES_BYTES_MAX).contains(&bytes), "{kept:?}");
    let (first, tail) = store.tail(SERVICES, 3).await.unwrap();
    assert_eq!((first, tail.len()), (797, 3));
    let previews = store.logged_previews().await.unwrap();
    assert_eq!(previews.into_iter().collect::<Vec<_>>(), [PreviewId::from_bits(7)]);

    store.forget_services(PreviewId::from_bits(7), 3).await.unwrap();
    assert_eq!(store.next_line(SERVICES).await.unwrap(), 800, "only older ones are forgotten");
    store.forget_services(PreviewId::from_bits(7), 4).await.unwrap();
    assert_eq!(store.next_line(SERVICES).await.unwrap(), 0);
    assert!(store.logged_previews().await.unwrap().is_empty());
    assert_eq!(texts(&store, JOB).await, ["of a job"]);
}

/// A small file system for one test.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kind, options) = (Some("tmpfs"), format!("size={size}"));
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(kind, folder.path(), kind, flags, Some(&*options))
            .expect("a disk can be mounted (as root)");
        Self { folder }
    }

    fn free_bytes(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(self.folder.path()).unwrap();
        disk.blocks_available() * disk.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.folder.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_cuts_logs_before_it_is_full_and_agents_go_on() {
    const RESERVE: u64 = 2 * MIB;
    let disk = Disk::of("8m");
    let path = disk.folder.path().join("logs.redb");
    let settings =
        LogSettings { job_bytes_max: u64::MAX, cache_bytes: 1 << 20, disk_free_min_bytes: RESERVE };
    let mut store = open_with(&path, settings);
    // Incompressible text, more than the disk holds.
    let texts_of = |number: u64| -> Vec<String> {
        let mut random = StdRng::seed_from_u64(number);
        let mut letters = || random.random_range(' '..='~');
        (0..4).map(|_| (0..60_000).map(|_| letters()).collect()).collect()
    };
    for number in 0..60 {
        if number == 50 {
            store.close().await;
            store = open_with(&path, settings);
        }
        let sent = texts_of(number);
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        let next = append(&store, FIRST, Some(number * 4), &lines(&sent)).await.unwrap();
        assert_eq!(next, (number + 1) * 4, "dropped lines are acknowledged, too");
    }

    let stored = texts(&store, JOB).await;

    let (last, kept) = stored.split_last().unwrap();
    assert_eq!(last, "[log cut: core's disk is nearly full; the rest is not kept]");
    let sent: Vec<String> = (0..).flat_map(texts_of).take(kept.len()).collect();
    assert!(!kept.is_empty() && kept == sent, "the stored lines are those that were sent");
    assert!(disk.free_bytes() > RESERVE / 2, "{} bytes are free", disk.free_bytes());

    // The services of previews go on, in the space that their lines have.
    for number in 0..20 {
        append_long(&store, number * 4, 4).await;
    }
    assert_eq!(kept_lines(&store).await.end, 80);
    assert!(disk.free_bytes() > RESERVE / 2, "{} bytes are free", disk.free_bytes());

    // When there is room again, other logs are stored. The cut log is not continued.
    store.forget(&[JOB]).await.unwrap();
    let other = JobId::from_bits(8);
    let generous = LogSettings { disk_free_min_bytes: 0, ..settings };
    store.close().await;
    let store = open_with(&path, generous);
    append(&store, first_of(other), None, &lines(&["another log"])).await.unwrap();
    assert_eq!(texts(&store, other).await, ["another log"]);
}
