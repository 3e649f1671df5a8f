//! The writer's thread: it commits all waiting batches as one group, then acknowledges them.

use std::collections::HashMap;
use std::mem;
use std::ops::Range;
use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use redb::{Durability, ReadableTable as _, Table};
use stagely_protocol::{ErrorChain, Stream};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::chunk::{Chunk, GROW_BYTES_MAX};
use super::live::{Committed, Followed};
use super::tables::{CHUNKS, ChunkKey, EXTENTS, Extent, LogKey, Tables};
use super::{AppendError, LogError, LogId, LogSettings, SERVICES_BYTES_MAX, StoredLine};

/// Most commands in one group, which is about 10 MB of text if all batches are full.
const GROUP_MAX: usize = 256;

/// Most chunks that one transaction deletes.
const FORGET_CHUNKS: usize = 1_000;

/// The wait before the database is opened anew after a failed write.
const REOPEN_WAIT: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) enum Command {
    Append(AppendCommand),
    /// Delete the logs with these keys.
    Forget {
        keys: Range<LogKey>,
        done: oneshot::Sender<Result<(), LogError>>,
    },
    /// End the thread.
    Close,
}

/// Chunks to store, one after the other.
#[derive(Debug)]
pub(super) struct AppendCommand {
    pub(super) log: LogId,
    /// The number of their first line. Without one they follow the stored lines.
    pub(super) first: Option<u64>,
    pub(super) chunks: Vec<Chunk>,
    /// The lines of all chunks for viewers.
    pub(super) message: Option<Utf8Bytes>,
    /// Receives the number of the next line after the commit.
    pub(super) stored: oneshot::Sender<Result<u64, AppendError>>,
}

/// The state of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    tables: Tables,
    settings: LogSettings,
    followed: Followed,
    /// Whether the last group found the disk nearly full.
    is_disk_low: bool,
    /// Whether redb has met damaged pages.
    is_damaged: bool,
    /// The stored extents of the logs that were written last.
    extents: HashMap<LogKey, Extent>,
}

/// Most extents in memory.
const EXTENTS_MAX: usize = 10_000;

type AppendResponse = (oneshot::Sender<Result<u64, AppendError>>, Result<u64, AppendError>);

impl Writer {
    pub(super) fn new(tables: Tables, settings: LogSettings, followed: Followed) -> Self {
        let extents = HashMap::new();
        Self { tables, settings, followed, is_disk_low: false, is_damaged: false, extents }
    }

    /// Writes until it must close, or every sender is gone.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::new();
        let mut is_closing = false;
        while !is_closing && commands.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let mut appends = Vec::new();
            for command in group.drain(..) {
                match command {
                    Command::Append(append) => appends.push(append),
                    Command::Forget { keys, done } => {
                        // Earlier lines must not be stored after the deletion.
                        self.append(mem::take(&mut appends));
                        // The caller may be gone; the logs are deleted.
                        let tables = self.tables.clone();
                        let _ = done.send(tables.checked(|_| self.forget(keys)));
                    }
                    Command::Close => is_closing = true,
                }
            }
            self.append(appends);
        }
    }

    fn append(&mut self, appends: Vec<AppendCommand>) {
        if self.is_damaged {
            // Only the logs that lie in damaged pages fail.
            for append in appends {
                self.append_group(vec![append]);
            }
        } else if !appends.is_empty() {
            self.append_group(appends);
        }
    }

    fn append_group(&mut self, appends: Vec<AppendCommand>) {
        self.check_disk(&appends);
        let mut group = Group::default();
        match self.tables.checked(|_| self.commit(appends, &mut group)) {
            Ok(()) => {
                self.extents.extend(group.extents.iter());
                if self.extents.len() > EXTENTS_MAX {
                    self.extents.clear();
                }
                self.followed.notify(group.committed);
                for (stored, answer) in group.answers {
                    // The session may have ended; its agent repeats the lines.
                    let _ = stored.send(answer);
                }
            }
            Err(error) => {
                let failure = ErrorChain(&error).to_string();
                error!(error = failure, "log lines were not stored");
                self.is_damaged |= matches!(error, LogError::DamagedFile(_));
                for (stored, _) in group.answers {
                    let _ = stored.send(Err(AppendError::NotStored(failure.clone())));
                }
                self.recover();
            }
        }
    }

    /// Checks that `appends` fit on the disk. If the disk were full in the middle of a commit, the records of runs and
    /// machines could not be written either.
    fn check_disk(&mut self, appends: &[AppendCommand]) {
        let new: u64 = appends
            .iter()
            .flat_map(|append| &append.chunks)
            .map(|chunk| chunk.bytes.len() as u64)
            .sum();
        let min = self.settings.disk_free_min_bytes;
        let free = self.tables.disk_free_bytes();
        let is_low = free.is_some_and(|free| free.saturating_sub(new) < min);
        if is_low && !self.is_disk_low {
            warn!(free_mib = free.map(|free| free >> 20), "the disk is nearly full: logs are cut");
        }
        self.is_disk_low = is_low;
    }

    fn commit(&self, appends: Vec<AppendCommand>, group: &mut Group) -> Result<(), LogError> {
        let database = self.tables.database()?;
        let mut write = database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        // A killed core opens a database of 1 GB in milliseconds instead of seconds.
        write.set_quick_repair(true);
        {
            let mut chunks = write.open_table(CHUNKS)?;
            for AppendCommand { log, first, chunks: new, message, stored } in appends {
                // The answer is prepared before anything can fail, so that every caller gets one.
                group.answers.push((stored, Err(AppendError::NotStored(String::new()))));
                let before = self.extent(group, log);
                let answer = match self.append_all(group, &mut chunks, log, first, new) {
                    // The damage is that of one job, whose agent keeps its lines. The others' lines are stored.
                    Err(error @ LogError::Damaged { .. }) => {
                        error!(error = %ErrorChain(&error), "log lines were not stored");
                        Err(AppendError::NotStored(ErrorChain(&error).to_string()))
                    }
                    answer => answer?,
                };
                if let Some(last) = group.answers.last_mut() {
                    last.1 = answer;
                }
                if let Ok(before) = before {
                    group.note_committed(log, before, first, message);
                }
            }
            let mut extents = write.open_table(EXTENTS)?;
            for (key, extent) in &group.extents {
                let bytes = postcard::to_stdvec(extent).expect("a vector takes every extent");
                extents.insert(key, bytes.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn append_all(
        &self,
        group: &mut Group,
        table: &mut Table<'_, ChunkKey, &'static [u8]>,
        log: LogId,
        mut first: Option<u64>,
        chunks: Vec<Chunk>,
    ) -> Result<Result<u64, AppendError>, LogError> {
        let mut answer = Ok(0);
        for chunk in chunks {
            let after = first.map(|first| first + chunk.lines);
            answer = self.append_one(group, table, log, first, chunk)?;
            if answer.is_err() {
                break;
            }
            first = after;
        }
        Ok(answer)
    }

    /// The extent of a log with the changes of `group`.
    fn extent(&self, group: &Group, log: LogId) -> Result<Extent, LogError> {
        let key = log.key();
        match group.extents.get(&key).or_else(|| self.extents.get(&key)) {
            Some(extent) => Ok(*extent),
            None => self.tables.extent(log),
        }
    }

    fn append_one(
        &self,
        group: &mut Group,
        chunks: &mut Table<'_, ChunkKey, &'static [u8]>,
        log: LogId,
        first: Option<u64>,
        mut chunk: Chunk,
    ) -> Result<Result<u64, AppendError>, LogError> {
        let mut extent = self.extent(group, log)?;
        let next = extent.next_line;
        let first = first.unwrap_or(next);
        if first > next {
            return Ok(Err(AppendError::Gap { expected: next }));
        }
        let repeated = next - first;
        if repeated >= chunk.lines {
            return Ok(Ok(next));
        }
        if repeated > 0 {
            chunk = without_first(&chunk, repeated, log)?;
        }
        if extent.cut_after.is_some() {
            extent.next_line += chunk.lines;
        } else {
            self.put(chunks, log, &mut extent, chunk)?;
        }
        group.extents.insert(log.key(), extent);
        Ok(Ok(extent.next_line))
    }

    /// Stores a chunk at the end of its log.
    fn put(
        &self,
        chunks: &mut Table<'_, ChunkKey, &'static [u8]>,
        log: LogId,
        extent: &mut Extent,
        mut chunk: Chunk,
    ) -> Result<(), LogError> {
        let (lines, text_bytes) = (chunk.lines, chunk.text_bytes);
        if let LogId::Services { .. } = log {
            self.drop_oldest(chunks, log, extent, text_bytes)?;
        } else if let Some(reason) = self.cut_reason(extent.text_bytes + text_bytes) {
            extent.cut_after = Some(extent.next_line + 1);
            let data = format!("[log cut: {reason}; the rest is not kept]");
            chunk = Chunk::of_stored(&[StoredLine { t: 0, stream: Stream::Stderr, data }]);
        }
        let (owner, number) = log.key();
        let mut first = extent.next_line;
        let mut grown = None;
        if let Some(growing) = extent.growing_from
            && let Some(before) = chunks.get((owner, number, growing))?
        {
            // A damaged chunk stays as it is, and the log goes on in a new one.
            grown = chunk.added_to(before.value()).unwrap_or_else(|_| {
                error!(%log, line = growing, "a stored chunk of a log is damaged");
                None
            });
            if grown.is_some() {
                first = growing;
            }
        }
        let bytes = grown.as_ref().unwrap_or(&chunk.bytes);
        chunks.insert((owner, number, first), bytes.as_slice())?;
        extent.growing_from = (bytes.len() < GROW_BYTES_MAX).then_some(first);
        extent.next_line += lines;
        extent.text_bytes += text_bytes;
        Ok(())
    }

    /// Drops the oldest chunks of a log, so that it stays below its limit with `new_bytes` of text added. While the disk
    /// is nearly full, a log does not grow.
    fn drop_oldest(
        &self,
        chunks: &mut Table<'_, ChunkKey, &'static [u8]>,
        log: LogId,
        extent: &mut Extent,
        new_bytes: u64,
    ) -> Result<(), LogError> {
        let (owner, number) = log.key();
        let max = if self.is_disk_low { extent.text_bytes } else { SERVICES_BYTES_MAX };
        while extent.text_bytes > 0 && extent.text_bytes + new_bytes > max {
            let oldest = {
                let mut stored = chunks.range((owner, number, 0)..=(owner, number, u64::MAX))?;
                let Some(oldest) = stored.next() else { break };
                let (key, bytes) = oldest?;
                (key.value(), Chunk::text_bytes_of(bytes.value()))
            };
            let (key, text_bytes) = oldest;
            chunks.remove(key)?;
            extent.text_bytes = extent.text_bytes.saturating_sub(text_bytes);
            extent.growing_from = extent.growing_from.filter(|first| *first != key.2);
        }
        Ok(())
    }

    /// The reason why a log may not grow to `text_bytes`, if there is one.
    fn cut_reason(&self, text_bytes: u64) -> Option<String> {
        if self.is_disk_low {
            return Some("core's disk is nearly full".to_owned());
        }
        let max = self.settings.job_bytes_max;
        (text_bytes > max).then(|| format!("more than {} MiB", max >> 20))
    }

    /// Opens the database again. Until that succeeds, every append fails, and the agents keep their lines.
    fn recover(&mut self) {
        self.extents.clear();
        // Reads that are under way finish during the wait.
        #[expect(clippy::disallowed_methods, reason = "this thread is not a runtime worker")]
        std::thread::sleep(REOPEN_WAIT);
        if let Err(failure) = self.tables.reopen() {
            warn!(error = %ErrorChain(&failure), "the log database cannot be opened; trying again with the next lines");
        }
    }

    fn forget(&mut self, keys: Range<LogKey>) -> Result<(), LogError> {
        for key in self.tables.logs(keys)? {
            while self.forget_some(key)? {}
            self.extents.remove(&key);
        }
        Ok(())
    }

    /// Deletes some chunks of a log, and its extent with the last one. Returns whether there are more.
    fn forget_some(&self, (owner, number): LogKey) -> Result<bool, LogError> {
        let mut write = self.tables.database()?.begin_write()?;
        write.set_quick_repair(true);
        let is_more;
        {
            let mut chunks = write.open_table(CHUNKS)?;
            let keys: Vec<ChunkKey> = chunks
                .range((owner, number, 0)..=(owner, number, u64::MAX))?
                .take(FORGET_CHUNKS)
                .map(|chunk| Ok::<_, LogError>(chunk?.0.value()))
                .collect::<Result<_, _>>()?;
            is_more = keys.len() == FORGET_CHUNKS;
            for key in keys {
                chunks.remove(key)?;
            }
            if !is_more {
                write.open_table(EXTENTS)?.remove((owner, number))?;
            }
        }
        write.commit()?;
        Ok(is_more)
    }
}

/// One transaction: the extents that it changes, and the notices and answers that follow its commit.
#[derive(Debug, Default)]
struct Group {
    extents: HashMap<LogKey, Extent>,
    committed: Vec<(LogId, Committed)>,
    answers: Vec<AppendResponse>,
}

impl Group {
    /// Notes what was added to a log with the extent `before`. The message counts only if its lines were stored as they
    /// are, and no others.
    fn note_committed(
        &mut self,
        log: LogId,
        before: Extent,
        first: Option<u64>,
        message: Option<Utf8Bytes>,
    ) {
        let Some(after) = self.extents.get(&log.key()) else { return };
        let (begin, end) = (before.lines(), after.lines());
        if begin < end {
            let is_exact = after.cut_after.is_none() && first == Some(begin);
            let message = message.filter(|_| is_exact);
            self.committed.push((log, Committed { first: begin, end, message }));
        }
    }
}

fn without_first(chunk: &Chunk, count: u64, log: LogId) -> Result<Chunk, LogError> {
    let lines = Chunk::read(&chunk.bytes, count).map_err(|_| LogError::Damaged { log })?;
    Ok(Chunk::of_stored(&lines))
}
