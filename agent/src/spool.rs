//! Keeps a job's numbered log lines on disk until core has stored them, and then its final STATUS.
//!
//! Lines lie in segment files named after the number of their first line. A segment whose lines are all
//! acknowledged is removed, so that a log of any length needs little memory, and disk space only for lines that
//! core does not have. The spool outlives a killed agent but not a crash of the machine, so it never waits for
//! the disk: core does not ask a crashed machine for its log.

mod batch;
mod error;
mod phase;
mod segments;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use stagely_protocol::{Status, StatusState, Stream, WireId, cut_line};
use tokio::sync::Notify;

pub use self::batch::LineBatch;
use self::batch::encode;
pub use self::error::SpoolError;
use self::phase::{Phase, PushReport};
use self::segments::SegmentedLog;

/// The file of the job's end, beside its segments.
const END_FILE: &str = "end.json";

/// The content of [`END_FILE`]: the final STATUS, or that of the push while the cache is exported.
#[derive(Debug, Serialize, Deserialize)]
struct EndRecord {
    /// The number of lines before the STATUS.
    lines: u64,
    status: Status,
}

/// The log of one job. The job appends, and the session reads batches.
pub struct Spool {
    job_id: WireId,
    folder: PathBuf,
    wake: Arc<Notify>,
    state: Mutex<SpoolState>,
}

#[derive(Debug, Default)]
struct SpoolState {
    segments: SegmentedLog,
    phase: Phase,
}

impl SpoolState {
    /// Replaces the phase by what `transition` makes of it.
    fn change_phase(&mut self, transition: impl FnOnce(Phase) -> Phase) {
        self.phase = transition(std::mem::take(&mut self.phase));
    }
}

impl Spool {
    /// Creates the log of a new job in `folder`. `wake` is notified when there is something to send.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn create(folder: PathBuf, job_id: WireId, wake: Arc<Notify>) -> Result<Self, SpoolError> {
        fs::create_dir_all(&folder).map_err(|error| SpoolError::new(&folder, error))?;
        Ok(Self { job_id, folder, wake, state: Mutex::default() })
    }

    /// Opens the log that a former process left in `folder`. `None`: its job had not ended. A job that was
    /// exporting its cache has ended, because its image is pushed.
    ///
    /// # Errors
    /// [`SpoolError`], also if a file of the folder does not have the spool's format.
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
        let EndRecord { lines, mut status } = serde_json::from_slice(&text)
            .map_err(|error| SpoolError::new(&path, io::Error::from(error)))?;
        // Core may have acknowledged lines that were written after the STATUS of the push.
        let was_exporting = std::mem::take(&mut status.exporting_cache);
        let segments = SegmentedLog::open(&folder, lines, was_exporting)?;
        let phase = Phase::default().end(status);
        let state = Mutex::new(SpoolState { segments, phase });
        Ok(Some(Self { job_id, folder, wake, state }))
    }

    /// Appends lines, each cut at [`LINE_BYTES_MAX`](stagely_protocol::LINE_BYTES_MAX).
    ///
    /// # Errors
    /// [`SpoolError`]; then none of the lines is kept.
    pub fn append<'a>(
        &self,
        lines: impl IntoIterator<Item = (Stream, &'a str)>,
    ) -> Result<(), SpoolError> {
        let (mut bytes, mut count, time_ms) = (Vec::new(), 0, unix_time_ms());
        for (stream, line) in lines {
            encode(&mut bytes, time_ms, stream, &cut_line(line));
            count += 1;
        }
        let mut state = self.lock();
        if state.phase.is_abandoned() {
            return Err(SpoolError::Abandoned);
        }
        let was_waiting = state.segments.waiting() > 0;
        state.segments.append(&self.folder, &bytes, count)?;
        // A reader that has seen a waiting line has set a timer. It needs a wake-up only for a full batch.
        let wakes = !was_waiting || state.segments.is_batch_full();
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Records that the job's image is pushed, and that it goes on to export the cache. `status` is sent once
    /// all lines so far are acknowledged.
    ///
    /// # Errors
    /// [`SpoolError`]; `status` is sent nevertheless.
    pub fn record_pushed(&self, status: Status) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let lines = state.segments.lines();
        let written = self.write_end(&EndRecord { lines, status: status.clone() });
        let report = PushReport { status, lines, is_acknowledged: false };
        state.change_phase(|phase| phase.push(report));
        drop(state);
        self.wake.notify_one();
        written
    }

    /// Core has stored the STATUS that [`Self::record_pushed`] recorded.
    pub fn acknowledge_pushed(&self) {
        self.lock().phase.acknowledge_push();
    }

    /// Records the job's end. Its STATUS is sent once the last line is acknowledged.
    ///
    /// # Errors
    /// [`SpoolError`]; the STATUS is sent nevertheless, unless the agent is killed before.
    pub fn finish(&self, status: Status) -> Result<(), SpoolError> {
        let mut state = self.lock();
        state.change_phase(|phase| phase.end(status));
        let written = match state.phase.final_status() {
            Some(status) => {
                let (lines, status) = (state.segments.lines(), status.clone());
                self.write_end(&EndRecord { lines, status })
            }
            None => Ok(()),
        };
        drop(state);
        self.wake.notify_one();
        written
    }

    /// Sends no further line and makes `error` the job's end. Without an end, core would wait for the lines until
    /// the job's deadline and report a timeout. The caller must stop a running job. A job whose image is
    /// pushed has completed.
    pub fn abandon_log(&self, error: &SpoolError) {
        let failure = Status {
            error: Some(error.reason()),
            error_message: Some(format!("its log cannot be sent: {error}")),
            ..Status::new(self.job_id.clone(), StatusState::Failed)
        };
        let mut state = self.lock();
        state.change_phase(|phase| phase.abandon(failure));
        state.segments.skip_all();
        drop(state);
        self.wake.notify_one();
    }

    fn write_end(&self, end: &EndRecord) -> Result<(), SpoolError> {
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
        self.lock().segments.acknowledge(lines);
    }

    /// Continues reading at line `next`, and takes all lines before it as acknowledged. An abandoned log stays
    /// abandoned.
    ///
    /// # Errors
    /// [`SpoolError`]; [`SpoolError::NoLine`] for a line that is removed already, or not written yet.
    pub fn resume(&self, next: u64) -> Result<(), SpoolError> {
        let mut state = self.lock();
        if state.phase.is_abandoned() {
            return Ok(());
        }
        state.segments.seek(next)?;
        state.segments.acknowledge(next);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next lines, up to one batch. `None`: all lines are read.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub fn next_batch(&self) -> Result<Option<LineBatch>, SpoolError> {
        self.lock().segments.next_batch()
    }

    /// The number of lines that are not read yet.
    pub fn waiting(&self) -> u64 {
        self.lock().segments.waiting()
    }

    /// Whether lines should be sent at once: a full batch waits, or a STATUS waits for lines.
    pub fn is_batch_due(&self) -> bool {
        let state = self.lock();
        let next_status = state.phase.next_status(state.segments.lines());
        let status_waits = next_status.is_some_and(|(_, lines)| state.segments.next() < lines);
        state.segments.waiting() > 0 && (status_waits || state.segments.is_batch_full())
    }

    /// Whether the job's image is pushed and the job has not ended.
    pub fn is_pushed(&self) -> bool {
        self.lock().phase.is_pushed()
    }

    pub fn is_finished(&self) -> bool {
        self.lock().phase.final_status().is_some()
    }

    /// The STATUS to send now: that of the push until core has acknowledged it, and the final one after the
    /// job's end. Each is due once core has acknowledged the lines before it, or if the log is abandoned.
    pub fn status_due(&self) -> Option<Status> {
        let state = self.lock();
        let (status, lines) = state.phase.next_status(state.segments.lines())?;
        (state.segments.acknowledged() >= lines).then(|| status.clone())
    }

    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove a spool");
        }
    }

    fn lock(&self) -> MutexGuard<'_, SpoolState> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_time_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
