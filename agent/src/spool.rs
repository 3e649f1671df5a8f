//! Keeps a job's numbered log lines on disk until core has stored them.
//!
//! Lines lie in segment files named after their first line. A segment whose lines are all
//! acknowledged is deleted, so a log of any length needs little memory and no more disk than what
//! core still lacks. The spool outlives a kill of the agent, not a crash of the machine: a machine
//! that crashes is not asked for its log again, so nothing here waits for the disk.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use stagely_protocol::{
    BATCH_BYTES_MAX, BATCH_LINES_MAX, FailureReason, LINE_BYTES_MAX, Log, LogLine, Status,
    StatusState, Stream, WireId, cut_line,
};
use thiserror::Error;
use tokio::sync::Notify;

/// A segment this large is closed and the next one begun.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// Before each line: its length (4 bytes), its time (8), its stream (1).
const HEADER_BYTES: usize = 13;

/// Holds the job's end beside its segments.
const END_FILE: &str = "end.json";

/// Lines that could not be kept.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// No space is left.
    #[error("no space is left for the log")]
    DiskFull,
    /// The file system failed.
    #[error("cannot use the log's file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Core asks for a line that it has acknowledged, or that is not written.
    #[error("core asks for line {wanted} of the log, which has lines {first} to {end}")]
    NoLine {
        /// The line.
        wanted: u64,
        /// The first that is here.
        first: u64,
        /// The one after the last.
        end: u64,
    },
    /// The log was given up.
    #[error("the log was given up")]
    GivenUp,
}

impl SpoolError {
    fn new(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// Whose fault it is.
    pub const fn reason(&self) -> FailureReason {
        match self {
            Self::DiskFull => FailureReason::DiskFull,
            Self::Io { .. } | Self::NoLine { .. } | Self::GivenUp => FailureReason::Internal,
        }
    }
}

/// How a job ended, as it lies on disk; or that its image is pushed, and its cache exported.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// Lines in all, or so far.
    lines: u64,
    status: Status,
}

/// A STATUS that another one follows.
struct First {
    status: Status,
    /// The lines before it.
    lines: u64,
    is_acknowledged: bool,
}

impl First {
    /// What the job's end is if no other is known.
    fn as_end(&self) -> Status {
        Status { exporting_cache: false, ..self.status.clone() }
    }
}

struct Segment {
    first: u64,
    path: PathBuf,
    file: File,
    bytes: u64,
}

#[derive(Default)]
struct State {
    segments: VecDeque<Segment>,
    /// Lines written so far: the number of the next one.
    lines: u64,
    bytes: u64,
    /// Lines acknowledged so far.
    acknowledged: u64,
    /// The next line to be read, and where it lies.
    next: u64,
    next_offset: u64,
    /// Bytes handed out or skipped so far, in the measure of `bytes`.
    bytes_read: u64,
    /// The image is pushed, and the job goes on.
    first: Option<First>,
    end: Option<Status>,
    /// What the end is, whatever the job reports: its log cannot be sent.
    given_up: Option<Status>,
}

/// The log of one job. One side appends, the other reads batches; both share it.
pub struct Spool {
    job_id: WireId,
    folder: PathBuf,
    wake: Arc<Notify>,
    state: Mutex<State>,
}

/// Lines as they lie on disk.
#[derive(Debug)]
pub struct Batch {
    /// The number of the first line.
    pub first: u64,
    /// How many there are.
    pub count: u64,
    bytes: Vec<u8>,
}

impl Spool {
    /// Begins the log of a new job in `folder`. `wake` is notified when there is something to send.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn create(folder: PathBuf, job_id: WireId, wake: Arc<Notify>) -> Result<Self, SpoolError> {
        fs::create_dir_all(&folder).map_err(|error| SpoolError::new(&folder, error))?;
        Ok(Self { job_id, folder, wake, state: Mutex::default() })
    }

    /// Opens what a former process left in `folder`. `None`: its job had not ended. A job that was
    /// exporting its cache has ended, since its image is pushed.
    ///
    /// # Errors
    /// [`SpoolError`], also when a file there is not ours.
    pub fn recover(
        folder: PathBuf,
        job_id: WireId,
        wake: Arc<Notify>,
    ) -> Result<Option<Self>, SpoolError> {
        let path = folder.join(END_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::new(&path, error)),
        };
        let mut end: End = serde_json::from_slice(&text)
            .map_err(|error| SpoolError::new(&path, io::Error::from(error)))?;
        let segments = open_segments(&folder)?;
        if std::mem::take(&mut end.status.exporting_cache) {
            // Core may have acknowledged lines that came after it.
            end.lines = end.lines.max(lines_in(&segments)?);
        }
        let first = segments.front().map_or(end.lines, |segment| segment.first);
        let state = State {
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            lines: end.lines,
            acknowledged: first,
            next: first,
            end: Some(end.status),
            ..State::default()
        };
        Ok(Some(Self { job_id, folder, wake, state: Mutex::new(state) }))
    }

    /// Appends lines, each cut at [`LINE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`SpoolError`]; none of the lines is kept then.
    pub fn append<'a>(
        &self,
        lines: impl IntoIterator<Item = (Stream, &'a str)>,
    ) -> Result<(), SpoolError> {
        let (mut bytes, mut count, time) = (Vec::new(), 0, unix_millis());
        for (stream, line) in lines {
            encode(&mut bytes, time, stream, &cut_line(line));
            count += 1;
        }
        let mut state = self.state();
        if state.given_up.is_some() {
            return Err(SpoolError::GivenUp);
        }
        let was_waiting = state.next < state.lines;
        self.write(&mut state, &bytes)?;
        state.lines += count;
        // A reader that knows of a waiting line has a timer; it must hear of a full batch only.
        let wake = !was_waiting || state.is_batch_full();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    fn write(&self, state: &mut State, bytes: &[u8]) -> Result<(), SpoolError> {
        let first = state.lines;
        if state.segments.back().is_none_or(|segment| segment.bytes >= SEGMENT_BYTES) {
            let path = self.folder.join(format!("{first:020}.log"));
            let file = File::options().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(|error| SpoolError::new(&path, error))?;
            state.segments.push_back(Segment { first, path, file, bytes: 0 });
        }
        let Some(segment) = state.segments.back_mut() else { return Ok(()) };
        // At an offset, so that what a failed write left behind is overwritten by the next.
        let written = segment.file.write_all_at(bytes, segment.bytes);
        written.map_err(|error| SpoolError::new(&segment.path, error))?;
        segment.bytes += bytes.len() as u64;
        state.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Records that the job's image is pushed, and that it goes on to export the cache. That is
    /// reported after the last line so far is acknowledged.
    ///
    /// # Errors
    /// [`SpoolError`]; it is reported all the same.
    pub fn pushed(&self, status: Status) -> Result<(), SpoolError> {
        let mut state = self.state();
        let first = First { status, lines: state.lines, is_acknowledged: false };
        let written = self.write_end(&End { lines: first.lines, status: first.status.clone() });
        state.first = Some(first);
        drop(state);
        self.wake.notify_one();
        written
    }

    /// Core has stored what [`Self::pushed`] recorded.
    pub fn acknowledge_pushed(&self) {
        if let Some(first) = &mut self.state().first {
            first.is_acknowledged = true;
        }
    }

    /// Records the job's end. It is reported after the last line is acknowledged.
    ///
    /// The end counts even when it cannot be written: it is lost only if the agent is killed too.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn finish(&self, status: Status) -> Result<(), SpoolError> {
        let mut state = self.state();
        let status = state.given_up.clone().unwrap_or(status);
        let end = End { lines: state.lines, status };
        let written = self.write_end(&end);
        state.end = Some(end.status);
        drop(state);
        self.wake.notify_one();
        written
    }

    /// Sends no further line, and makes `error` the job's end: core would wait for the lines until the
    /// job's deadline, and take it for a timeout. A job that goes on must be stopped by the caller. One
    /// whose image is pushed is completed nevertheless.
    pub fn give_up(&self, error: &SpoolError) {
        let mut state = self.state();
        let status = state.first.as_ref().map_or_else(|| self.failed(error), First::as_end);
        if state.end.is_some() {
            state.end = Some(status.clone());
        }
        state.given_up = Some(status);
        state.next = state.lines;
        drop(state);
        self.wake.notify_one();
    }

    fn failed(&self, error: &SpoolError) -> Status {
        Status {
            error: Some(error.reason()),
            error_message: Some(format!("its log cannot be sent: {error}")),
            ..Status::new(self.job_id.clone(), StatusState::Failed)
        }
    }

    fn write_end(&self, end: &End) -> Result<(), SpoolError> {
        let (path, temporary) = (self.folder.join(END_FILE), self.folder.join("end.json.new"));
        let write = || {
            let mut file = File::create(&temporary)?;
            serde_json::to_writer(&mut file, end)?;
            file.flush()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| SpoolError::new(&path, error))
    }

    /// Core has stored all lines below `lines`.
    pub fn acknowledge(&self, lines: u64) {
        let mut state = self.state();
        let lines = lines.min(state.lines);
        state.acknowledged = state.acknowledged.max(lines);
        // The segment that is written to stays, and one that is still to be read.
        while state.segments.len() > 1
            && state.segments[1].first <= state.acknowledged.min(state.next)
        {
            if let Some(segment) = state.segments.pop_front()
                && let Err(error) = fs::remove_file(&segment.path)
            {
                tracing::warn!(path = %segment.path.display(), %error, "cannot remove a segment");
            }
        }
    }

    /// Goes on reading at line `next`, and takes all before it as acknowledged. A log that was given
    /// up stays so.
    ///
    /// # Errors
    /// [`SpoolError`]; [`SpoolError::NoLine`] for a line that is no longer here, or not yet.
    pub fn resume(&self, next: u64) -> Result<(), SpoolError> {
        let mut state = self.state();
        if state.given_up.is_some() {
            return Ok(());
        }
        let end = state.lines;
        let first = state.segments.front().map_or(end, |segment| segment.first);
        if !(first..=end).contains(&next) {
            return Err(SpoolError::NoLine { wanted: next, first, end });
        }
        state.seek(next)?;
        drop(state);
        self.acknowledge(next);
        self.wake.notify_one();
        Ok(())
    }

    /// The next lines, up to one batch. `None`: all are read.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn next_batch(&self) -> Result<Option<Batch>, SpoolError> {
        self.state().read_batch(BATCH_LINES_MAX as u64, BATCH_BYTES_MAX)
    }

    /// How many lines wait to be read.
    pub fn waiting(&self) -> u64 {
        let state = self.state();
        state.lines - state.next
    }

    /// Whether a whole batch waits, or the last lines of a job that has ended.
    pub fn is_batch_due(&self) -> bool {
        let state = self.state();
        let is_reporting = match (&state.end, &state.first) {
            (None, Some(first)) => !first.is_acknowledged && state.next < first.lines,
            (end, _) => end.is_some(),
        };
        state.next < state.lines && (is_reporting || state.is_batch_full())
    }

    /// Whether the job's image is pushed, if it has not ended.
    pub fn is_pushed(&self) -> bool {
        let state = self.state();
        state.end.is_none() && state.first.is_some()
    }

    /// Whether the job has ended.
    pub fn is_finished(&self) -> bool {
        self.state().end.is_some()
    }

    /// The STATUS, once the job has ended and its last line is acknowledged, or its log given up.
    /// Before that the one that says that its image is pushed, until that is acknowledged.
    pub fn status_due(&self) -> Option<Status> {
        let state = self.state();
        let (status, lines) = match (&state.end, &state.first) {
            (Some(end), _) => (end, state.lines),
            (None, Some(first)) if !first.is_acknowledged => (&first.status, first.lines),
            (None, _) => return None,
        };
        let is_sent = state.acknowledged >= lines || state.given_up.is_some();
        is_sent.then(|| status.clone())
    }

    /// Removes the spool from disk.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove a spool");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics; were it to, the numbers would still be true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_batch_full(&self) -> bool {
        self.lines - self.next >= BATCH_LINES_MAX as u64
            || self.bytes - self.bytes_read >= BATCH_BYTES_MAX as u64
    }

    /// Reads whole lines from one segment.
    fn read_batch(&mut self, lines_max: u64, text_max: usize) -> Result<Option<Batch>, SpoolError> {
        if self.next >= self.lines {
            return Ok(None);
        }
        let after = self.segments.partition_point(|segment| segment.first <= self.next);
        let Some(segment) = after.checked_sub(1).and_then(|index| self.segments.get(index)) else {
            return Ok(None);
        };
        if segment.first == self.next {
            self.next_offset = 0;
        }
        let size_max = text_max + LINE_BYTES_MAX + HEADER_BYTES * BATCH_LINES_MAX;
        let left = usize::try_from(segment.bytes - self.next_offset).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(size_max)];
        let read = segment.file.read_exact_at(&mut bytes, self.next_offset);
        read.map_err(|error| SpoolError::new(&segment.path, error))?;

        let (mut end, mut count, mut text) = (0, 0, 0);
        // What lies behind the last line is the rest of a write that failed.
        let lines_max = lines_max.min(self.lines - self.next);
        while count < lines_max
            && let Some((line, line_end)) = decode(&bytes, end)
            && (count == 0 || text + line.data.len() <= text_max)
        {
            text += line.data.len();
            (end, count) = (line_end, count + 1);
        }
        if count == 0 {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(SpoolError::Io { path: segment.path.clone(), source });
        }
        bytes.truncate(end);
        let batch = Batch { first: self.next, count, bytes };
        self.next += count;
        self.next_offset += end as u64;
        self.bytes_read += end as u64;
        Ok(Some(batch))
    }

    fn seek(&mut self, line: u64) -> Result<(), SpoolError> {
        let at = self.segments.partition_point(|segment| segment.first <= line).saturating_sub(1);
        let start = self.segments.get(at).map_or(line, |segment| segment.first);
        let later: u64 = self.segments.iter().skip(at).map(|segment| segment.bytes).sum();
        (self.next, self.next_offset, self.bytes_read) = (start, 0, self.bytes - later);
        while self.next < line {
            let lines_max = (line - self.next).min(BATCH_LINES_MAX as u64);
            if self.read_batch(lines_max, BATCH_BYTES_MAX)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl Batch {
    /// The LOG message that carries the lines.
    pub fn log(&self, job_id: &WireId) -> Log<'_> {
        let mut lines = Vec::with_capacity(usize::try_from(self.count).unwrap_or(0));
        let mut at = 0;
        while let Some((line, end)) = decode(&self.bytes, at) {
            lines.push(line);
            at = end;
        }
        Log { job_id: job_id.clone(), first: Some(self.first), lines }
    }
}

fn open_segments(folder: &Path) -> Result<VecDeque<Segment>, SpoolError> {
    let failed = |error| SpoolError::new(folder, error);
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(first) = name.strip_suffix(".log").and_then(|name| name.parse().ok()) else {
            continue;
        };
        let file = File::open(&path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        segments.push(Segment { first, path, file, bytes });
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments.into())
}

/// How many lines there are, counted from what lies in the last segment.
fn lines_in(segments: &VecDeque<Segment>) -> Result<u64, SpoolError> {
    let Some(segment) = segments.back() else { return Ok(0) };
    let bytes = fs::read(&segment.path).map_err(|error| SpoolError::new(&segment.path, error))?;
    let (mut lines, mut at) = (segment.first, 0);
    while let Some((_, end)) = decode(&bytes, at) {
        (lines, at) = (lines + 1, end);
    }
    Ok(lines)
}

fn encode(bytes: &mut Vec<u8>, time: u64, stream: Stream, line: &str) {
    let length = u32::try_from(line.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&time.to_le_bytes());
    bytes.push(u8::from(stream == Stream::Stderr));
    bytes.extend_from_slice(line.as_bytes());
}

/// The line at `at` and where it ends. `None`: no whole line is there.
fn decode(bytes: &[u8], at: usize) -> Option<(LogLine<'_>, usize)> {
    let (length, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (stream, rest) = rest.split_first()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let stream = if *stream == 0 { Stream::Stdout } else { Stream::Stderr };
    let data = String::from_utf8_lossy(rest.get(..length)?);
    Some((LogLine { t: u64::from_le_bytes(*time), stream, data }, at + HEADER_BYTES + length))
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use stagely_protocol::CUT_MARK;

    use super::*;

    fn job() -> WireId {
        "job_1".parse().unwrap()
    }

    fn spool(folder: &Path) -> Spool {
        Spool::create(folder.join("job_1"), job(), Arc::default()).unwrap()
    }

    fn texts(batch: &Batch) -> Vec<String> {
        batch.log(&job()).lines.iter().map(|line| line.data.to_string()).collect()
    }

    fn end() -> Status {
        Status::new(job(), StatusState::Completed)
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let line = "ü".repeat(LINE_BYTES_MAX);
        spool.append([(Stream::Stdout, &*line)]).unwrap();
        let lines = texts(&spool.next_batch().unwrap().unwrap());
        assert!(lines[0].ends_with(CUT_MARK) && lines[0].len() <= LINE_BYTES_MAX);
        assert!(lines[0].len() > LINE_BYTES_MAX - 4);
    }

    #[test]
    fn batches_keep_to_their_limits() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let long = "x".repeat(60_000);
        spool.append((0..2_500).map(|_| (Stream::Stdout, "y"))).unwrap();
        spool.append((0..10).map(|_| (Stream::Stderr, &*long))).unwrap();
        let mut counts = Vec::new();
        while let Some(batch) = spool.next_batch().unwrap() {
            counts.push(batch.count);
        }
        assert_eq!(counts, [1_000, 1_000, 504, 4, 2]);
    }

    #[test]
    fn the_status_waits_for_the_last_acknowledgement_and_survives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = spool(folder.path());
        first.append([(Stream::Stdout, "a"), (Stream::Stderr, "b")]).unwrap();
        assert!(
            Spool::recover(folder.path().join("job_1"), job(), Arc::default()).unwrap().is_none()
        );
        first.finish(end()).unwrap();
        drop(first);

        let spool = Spool::recover(folder.path().join("job_1"), job(), Arc::default());
        let spool = spool.unwrap().unwrap();
        spool.resume(1).unwrap();
        assert_eq!(texts(&spool.next_batch().unwrap().unwrap()), ["b"]);
        assert_eq!(spool.status_due(), None);
        spool.acknowledge(2);
        assert_eq!(spool.status_due(), Some(end()));
        spool.remove();
        assert!(!folder.path().join("job_1").exists());
    }

    #[test]
    fn a_line_that_is_not_here_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        spool.append([(Stream::Stdout, "a")]).unwrap();
        spool.resume(1).unwrap();
        // Acknowledged, and still in its segment.
        spool.resume(0).unwrap();
        let error = spool.resume(2).unwrap_err();
        assert!(matches!(error, SpoolError::NoLine { wanted: 2, first: 0, end: 1 }), "{error}");
    }

    /// What is reported while the cache is exported.
    fn pushed() -> Status {
        let status = Status::new(job(), StatusState::Completed);
        Status { exporting_cache: true, exit_code: Some(0), ..status }
    }

    #[test]
    fn a_pushed_image_is_reported_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        spool.append([(Stream::Stdout, "pushed")]).unwrap();
        spool.pushed(pushed()).unwrap();
        spool.append([(Stream::Stdout, "exporting")]).unwrap();
        assert!(spool.is_batch_due() && spool.is_pushed() && spool.status_due().is_none());
        spool.acknowledge(1);
        assert_eq!(spool.status_due(), Some(pushed()));
        spool.acknowledge_pushed();
        assert!(spool.status_due().is_none() && !spool.is_finished());
        spool.finish(end()).unwrap();
        assert!(spool.status_due().is_none() && !spool.is_pushed());
        spool.acknowledge(2);
        assert_eq!(spool.status_due(), Some(end()));
    }

    #[test]
    fn an_end_that_comes_early_makes_the_first_report_needless() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        spool.pushed(pushed()).unwrap();
        spool.finish(end()).unwrap();
        assert_eq!(spool.status_due(), Some(end()));
    }

    #[test]
    fn a_crash_while_the_cache_is_exported_leaves_a_completed_job() {
        for acknowledged in 0..=3 {
            let folder = tempfile::tempdir().unwrap();
            let first = spool(folder.path());
            first.append([(Stream::Stdout, "pushed")]).unwrap();
            first.pushed(pushed()).unwrap();
            first.append([(Stream::Stdout, "exporting"), (Stream::Stdout, "more")]).unwrap();
            first.acknowledge(acknowledged);
            drop(first);

            let spool = Spool::recover(folder.path().join("job_1"), job(), Arc::default());
            let spool = spool.unwrap().unwrap();
            spool.resume(acknowledged).unwrap();
            let left = spool.next_batch().unwrap().map(|batch| texts(&batch)).unwrap_or_default();
            assert_eq!(
                left,
                ["pushed", "exporting", "more"][usize::try_from(acknowledged).unwrap()..]
            );
            spool.acknowledge(3);
            let end = Status { exporting_cache: false, ..pushed() };
            assert_eq!(spool.status_due(), Some(end));
        }
    }

    #[test]
    fn a_log_that_is_given_up_fails_no_job_whose_image_is_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        spool.append([(Stream::Stdout, "a")]).unwrap();
        spool.pushed(pushed()).unwrap();
        spool.give_up(&SpoolError::DiskFull);
        spool.finish(pushed()).unwrap();
        assert_eq!(spool.status_due(), Some(Status { exporting_cache: false, ..pushed() }));
    }

    #[test]
    fn a_log_that_is_given_up_fails_its_job_whatever_that_reports() {
        let folder = tempfile::tempdir().unwrap();
        for is_ended in [false, true] {
            let spool =
                Spool::create(folder.path().join(is_ended.to_string()), job(), Arc::default());
            let spool = spool.unwrap();
            spool.append([(Stream::Stdout, "a")]).unwrap();
            if is_ended {
                spool.finish(end()).unwrap();
            }
            spool.give_up(&SpoolError::DiskFull);
            assert_eq!((spool.waiting(), spool.is_finished()), (0, is_ended));
            spool.append([(Stream::Stdout, "b")]).unwrap_err();
            if !is_ended {
                assert_eq!(spool.status_due(), None);
                spool.finish(end()).unwrap();
            }
            spool.resume(7).unwrap();
            let status = spool.status_due().unwrap();
            assert_eq!(
                (status.state, status.error),
                (StatusState::Failed, Some(FailureReason::DiskFull))
            );
        }
    }

    #[test]
    fn acknowledged_segments_leave_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let line = "z".repeat(60_000);
        for _ in 0..50 {
            spool.append((0..10).map(|_| (Stream::Stdout, &*line))).unwrap();
        }
        while spool.next_batch().unwrap().is_some() {}
        let files = || fs::read_dir(folder.path().join("job_1")).unwrap().count();
        assert!(files() > 3);
        spool.acknowledge(500);
        assert_eq!(files(), 1);
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(SpoolError::new(Path::new("x"), full), SpoolError::DiskFull));
    }

    #[test]
    fn it_is_faster_than_any_build_writes() {
        let folder = tempfile::tempdir().unwrap();
        let spool = spool(folder.path());
        let (line, started) =
            ("#5 0.123 a line of an ordinary length, say, 60 bytes", Instant::now());
        for _ in 0..100_000 {
            spool.append([(Stream::Stdout, line)]).unwrap();
        }
        let mut bytes = 0;
        while let Some(batch) = spool.next_batch().unwrap() {
            bytes += stagely_protocol::AgentMessage::Log(batch.log(&job())).to_json().len();
        }
        assert!(bytes > 5_000_000);
        // Measured: 0.4 s in a debug build. The limit only finds a slip into another order.
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Append(Vec<String>),
        Send,
        /// Core stores everything sent, and its acknowledgement arrives.
        Acknowledge,
        /// The connection breaks; core stored so many of the lines sent.
        Reconnect(prop::sample::Index),
    }

    fn act() -> impl Strategy<Value = Act> {
        let lines = prop::collection::vec("[a-zü\n]{0,12}", 0..40);
        prop_oneof![
            3 => lines.prop_map(Act::Append),
            3 => Just(Act::Send),
            1 => Just(Act::Acknowledge),
            1 => any::<prop::sample::Index>().prop_map(Act::Reconnect),
        ]
    }

    /// Core's side: stores each line once, whatever is repeated.
    fn store(stored: &mut Vec<String>, batch: &Batch) {
        let known = usize::try_from(batch.first).unwrap();
        assert!(known <= stored.len(), "a gap");
        let repeated = stored.len() - known;
        stored.extend(texts(batch).into_iter().skip(repeated));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_schedule_gives_the_lines_in_order_once(acts in prop::collection::vec(act(), 1..60)) {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = spool(folder.path());
            let (mut written, mut stored, mut sent) = (Vec::new(), Vec::new(), Vec::new());
            for act in acts {
                match act {
                    Act::Append(lines) => {
                        spool.append(lines.iter().map(|line| (Stream::Stdout, &**line))).unwrap();
                        written.extend(lines);
                    }
                    Act::Send => sent.extend(spool.next_batch().unwrap()),
                    Act::Acknowledge => {
                        sent.drain(..).for_each(|batch| store(&mut stored, &batch));
                        spool.acknowledge(stored.len() as u64);
                    }
                    Act::Reconnect(arrived) => {
                        let arrived = arrived.index(sent.len() + 1);
                        sent.drain(..).take(arrived).for_each(|batch| store(&mut stored, &batch));
                        spool.resume(stored.len() as u64).unwrap();
                    }
                }
            }
            spool.finish(end()).unwrap();
            spool = Spool::recover(folder.path().join("job_1"), job(), Arc::default()).unwrap().unwrap();
            spool.resume(stored.len() as u64).unwrap();
            while let Some(batch) = spool.next_batch().unwrap() {
                store(&mut stored, &batch);
            }
            prop_assert_eq!(stored, written);
        }
    }
}
