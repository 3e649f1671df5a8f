//! A store in a folder of its own, and short forms of its calls.

use std::path::{Path, PathBuf};

use stagely::core::logs::{AppendError, LogSettings, LogStore, StoredLine};
use stagely_protocol::{LogLine, Stream};
use stagely_state::Attempt;
use stagely_state::ids::JobId;
use tokio::runtime::Runtime;

pub(crate) const JOB: JobId = JobId::from_bits(7);
pub(crate) const FIRST: Attempt = first_of(JOB);
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const fn first_of(job: JobId) -> Attempt {
    Attempt { job, number: 1 }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn open(path: &Path, job_bytes_max: u64) -> LogStore {
    open_with(path, LogSettings { job_bytes_max, cache_bytes: 1 << 20, disk_free_min_bytes: 0 })
}

pub(crate) fn open_with(path: &Path, settings: LogSettings) -> LogStore {
    LogStore::open(path, settings).unwrap()
}

pub(crate) fn line(t: u64, stream: Stream, data: &str) -> LogLine<'_> {
    LogLine { t, stream, data: data.into() }
}

pub(crate) fn lines<'a>(texts: &[&'a str]) -> Vec<LogLine<'a>> {
    texts.iter().map(|text| line(0, Stream::Stdout, text)).collect()
}

pub(crate) async fn append(
    store: &LogStore,
    attempt: Attempt,
    first: Option<u64>,
    lines: &[LogLine<'_>],
) -> Result<u64, AppendError> {
    store.append(attempt, first, lines).await?.stored().await
}

/// Reads all of a log, `page` lines at a time.
pub(crate) async fn read_all(store: &LogStore, attempt: Attempt, page: usize) -> Vec<StoredLine> {
    let mut all: Vec<StoredLine> = Vec::new();
    loop {
        let (_, lines) = store.read(attempt, all.len() as u64, page).await.unwrap();
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
    }
}

pub(crate) async fn texts(store: &LogStore, job: JobId) -> Vec<String> {
    read_all(store, first_of(job), 1_000).await.into_iter().map(|line| line.data).collect()
}

pub(crate) struct Database {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Database {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs.redb");
        Self { _folder: folder, path }
    }

    pub(crate) fn open(&self) -> LogStore {
        open(&self.path, MIB)
    }
}

pub(crate) fn stream(is_stderr: bool) -> Stream {
    if is_stderr { Stream::Stderr } else { Stream::Stdout }
}
