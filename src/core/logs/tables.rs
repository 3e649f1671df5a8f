//! The tables of the log database, and reading from them.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use stagely_state::ids::PreviewId;

use super::chunk::{Chunk, counted_bytes};
use super::{LogError, LogId, StoredLine};
use crate::core::damage::DamagedDatabase;
use crate::core::disk;

/// What to do if the file is damaged, for people.
pub(super) const ADVICE: &str =
    "move it away, and core begins with empty logs and keeps everything else";

/// Job or preview, attempt or deployment: the key of an extent.
pub(super) type LogKey = (u128, u32);

/// The same, and the number of the chunk's first line.
pub(super) type ChunkKey = (u128, u32, u64);

pub(super) const CHUNKS: TableDefinition<'static, ChunkKey, &[u8]> = TableDefinition::new("chunks");
pub(super) const EXTENTS: TableDefinition<'static, LogKey, &[u8]> = TableDefinition::new("extents");

/// A read ends with the chunk that reaches this much text, in bytes, so that a page of long lines still fits into one
/// message.
const READ_BYTES: usize = 512 * 1024;

/// The length of a log, and where it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    /// The number of the next line. Dropped lines are counted.
    pub(super) next_line: u64,
    /// The size of the stored text, in bytes.
    pub(super) text_bytes: u64,
    /// The number of stored lines if the limit was reached. Later lines are dropped.
    pub(super) cut_after: Option<u64>,
    /// The first line of the last chunk, if lines may be added to that chunk.
    pub(super) growing_from: Option<u64>,
}

impl Extent {
    /// The number of readable lines.
    pub(super) fn lines(&self) -> u64 {
        self.cut_after.unwrap_or(self.next_line)
    }
}

/// The database. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` while the file is reopened, and after it is closed.
    database: Arc<RwLock<Option<Arc<Database>>>>,
}

impl Tables {
    pub(super) fn open(path: PathBuf, cache_bytes: usize) -> Result<Self, LogError> {
        let tables = Self { path, cache_bytes, database: Arc::default() };
        tables.checked(Self::reopen)?;
        Ok(tables)
    }

    /// Reopens the database, because redb refuses all writes after a failed one (a full disk).
    pub(super) fn reopen(&self) -> Result<(), LogError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        let database = Database::builder().set_cache_size(self.cache_bytes).create(&self.path)?;
        let mut write = database.begin_write()?;
        write.set_quick_repair(true);
        write.open_table(CHUNKS)?;
        write.open_table(EXTENTS)?;
        write.commit()?;
        *slot = Some(Arc::new(database));
        Ok(())
    }

    /// Calls `access`, and recognizes that the file is damaged.
    pub(super) fn checked<T>(
        &self,
        access: impl FnOnce(&Self) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        DamagedDatabase::checked(&self.path, ADVICE, LogError::DamagedFile, || access(self))
    }

    /// The free space of the database's file system, in bytes; `None` if the system call fails.
    pub(super) fn disk_free_bytes(&self) -> Option<u64> {
        // The file, not its folder: the path may be a bare name.
        disk::free_bytes(&self.path)
    }

    pub(super) fn database(&self) -> Result<Arc<Database>, LogError> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        slot.clone().ok_or(LogError::Closed)
    }

    /// Closes the file after the reads in progress have ended.
    pub(super) fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn extent(&self, log: LogId) -> Result<Extent, LogError> {
        let read = self.database()?.begin_read()?;
        let row = read.open_table(EXTENTS)?.get(log.key())?;
        match row {
            None => Ok(Extent::default()),
            Some(bytes) => {
                postcard::from_bytes(bytes.value()).map_err(|_| LogError::Damaged { log })
            }
        }
    }

    pub(super) fn read(
        &self,
        log: LogId,
        from: u64,
        lines_max: usize,
    ) -> Result<(u64, Vec<StoredLine>), LogError> {
        let (job, number) = log.key();
        let read = self.database()?.begin_read()?;
        let chunks = read.open_table(CHUNKS)?;
        // The chunk that holds `from` begins at or before it.
        let begin = match chunks.range((job, number, 0)..=(job, number, from))?.next_back() {
            Some(chunk) => chunk?.0.value().2,
            None => from,
        };
        let (mut lines, mut text_bytes, mut first_read) = (Vec::new(), 0, from);
        for chunk in chunks.range((job, number, begin)..=(job, number, u64::MAX))? {
            let (chunk_key, bytes) = chunk?;
            let first = chunk_key.value().2;
            if lines.is_empty() {
                first_read = from.max(first);
            }
            let stored = Chunk::read(bytes.value(), from.saturating_sub(first))
                .map_err(|_| LogError::Damaged { log })?;
            lines
                .extend(stored.into_iter().inspect(|line| text_bytes += counted_bytes(&line.data)));
            if lines.len() >= lines_max || text_bytes >= READ_BYTES {
                break;
            }
        }
        Ok((first_read, lines))
    }

    /// The last lines, and the number of the first of them. Reads only the end of the log.
    pub(super) fn tail(
        &self,
        log: LogId,
        lines_max: usize,
    ) -> Result<(u64, Vec<StoredLine>), LogError> {
        let (job, number) = log.key();
        let read = self.database()?.begin_read()?;
        let chunks = read.open_table(CHUNKS)?;
        let (mut lines, mut text_bytes, mut first) = (VecDeque::new(), 0, 0);
        for chunk in chunks.range((job, number, 0)..=(job, number, u64::MAX))?.rev() {
            let (chunk_key, bytes) = chunk?;
            first = chunk_key.value().2;
            let stored = Chunk::read(bytes.value(), 0).map_err(|_| LogError::Damaged { log })?;
            for line in stored.into_iter().rev() {
                text_bytes += counted_bytes(&line.data);
                lines.push_front(line);
            }
            if lines.len() >= lines_max || text_bytes >= READ_BYTES {
                break;
            }
        }
        let excess = lines.len().saturating_sub(lines_max);
        lines.drain(..excess);
        Ok((first + excess as u64, lines.into()))
    }

    /// The keys of the logs that are there.
    pub(super) fn logs(&self, keys: Range<LogKey>) -> Result<Vec<LogKey>, LogError> {
        let read = self.database()?.begin_read()?;
        let extents = read.open_table(EXTENTS)?;
        let rows = extents.range(keys)?;
        rows.map(|row| Ok(row?.0.value())).collect()
    }

    /// The previews that have logs.
    pub(super) fn previews(&self) -> Result<BTreeSet<PreviewId>, LogError> {
        let read = self.database()?.begin_read()?;
        let extents = read.open_table(EXTENTS)?;
        let mut previews = BTreeSet::new();
        for row in extents.iter()? {
            previews.extend(LogId::preview_of(row?.0.value()));
        }
        Ok(previews)
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{LogLine, Stream};
    use stagely_state::Attempt;
    use stagely_state::ids::JobId;

    use crate::core::logs::{LogSettings, LogStore};

    const JOB: JobId = JobId::from_bits(7);

    fn open(folder: &std::path::Path) -> LogStore {
        let settings =
            LogSettings { job_bytes_max: 64 << 20, cache_bytes: 1 << 20, disk_free_min_bytes: 0 };
        LogStore::open(&folder.join("logs.redb"), settings).unwrap()
    }

    async fn append(store: &LogStore, job: JobId, number: u32, texts: &[String]) {
        let lines: Vec<LogLine<'_>> = texts
            .iter()
            .map(|data| LogLine { t: 0, stream: Stream::Stdout, data: data.into() })
            .collect();
        store.append(Attempt { job, number }, None, &lines).await.unwrap().stored().await.unwrap();
    }

    async fn tail(store: &LogStore, number: u32, lines_max: usize) -> (u64, Vec<String>) {
        let (first, lines) = store.tail(Attempt { job: JOB, number }, lines_max).await.unwrap();
        (first, lines.into_iter().map(|line| line.data).collect())
    }

    #[tokio::test]
    async fn the_tail_is_the_end_of_the_log_for_any_batches() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        // Incompressible texts, so that they fill several chunks.
        let text = |n: u64| format!("{n} {:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(8);
        let all: Vec<String> = (0..3_000).map(text).collect();
        for batch in all.chunks(170) {
            append(&store, JOB, 2, batch).await;
        }
        for lines_max in [1, 2, 170, 171, 1_000, 2_999, 3_000, 3_001] {
            let first = 3_000_usize.saturating_sub(lines_max);
            assert_eq!(tail(&store, 2, lines_max).await, (first as u64, all[first..].to_vec()));
        }
        assert_eq!(tail(&store, 2, 0).await, (3_000, Vec::new()));
    }

    #[tokio::test]
    async fn a_tail_holds_lines_of_one_attempt_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let lines = |text: &str| vec![text.to_owned()];
        append(&store, JobId::from_bits(6), 2, &lines("another's")).await;
        append(&store, JOB, 1, &lines("first")).await;
        append(&store, JOB, 3, &lines("third")).await;
        append(&store, JobId::from_bits(8), 2, &lines("another's")).await;
        assert_eq!(tail(&store, 1, 9).await, (0, lines("first")));
        assert_eq!(tail(&store, 2, 9).await, (0, Vec::new()));
        assert_eq!(tail(&store, 3, 9).await, (0, lines("third")));
    }

    #[tokio::test]
    async fn a_tail_of_long_lines_has_fewer_lines() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        for number in 0..64 {
            append(&store, JOB, 1, &[format!("{number} {}", "x".repeat(60_000))]).await;
        }
        let (first, lines) = tail(&store, 1, 64).await;
        let bytes: usize = lines.iter().map(String::len).sum();
        assert!((super::READ_BYTES..2 * super::READ_BYTES).contains(&bytes), "{bytes} bytes");
        assert_eq!(first + lines.len() as u64, 64);
        assert!(
            lines[0].starts_with(&format!("{first} ")) && lines.last().unwrap().starts_with("63 ")
        );
    }
}
