//! Logs over the limit of their job, and disks that fill up.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use stagely::core::logs::LogSettings;
use stagely_protocol::Stream;
use stagely_state::ids::JobId;

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

    let page = store.read(FIRST, 0, 10).await.unwrap();
    assert!(page.len() < 50_000, "{} lines at once", page.len());
    let all = read_all(&store, FIRST, 1_000).await;
    let (last, lines) = all.split_last().unwrap();
    assert!(last.data.starts_with("[log cut: more than 8 MiB"), "{last:?}");
    assert!(lines.iter().all(|line| line.data.is_empty()));
    assert!((340_000..680_000).contains(&lines.len()), "{}", lines.len());
    store.close().await;
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

    // When there is room again, other logs are stored. The cut log is not continued.
    store.forget(&[JOB]).await.unwrap();
    let other = JobId::from_bits(8);
    let generous = LogSettings { disk_free_min_bytes: 0, ..settings };
    store.close().await;
    let store = open_with(&path, generous);
    append(&store, first_of(other), None, &lines(&["another log"])).await.unwrap();
    assert_eq!(texts(&store, other).await, ["another log"]);
}
