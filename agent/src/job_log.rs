//! A job's log: masks lines and appends them. The first line that cannot be kept stops the job.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stagely_protocol::{ErrorChain, FailureReason, Status, Stream};
use tokio_util::sync::CancellationToken;

use crate::mask::Masker;
use crate::spool::{Spool, SpoolError};

/// Stores or prints the lines of a job.
pub trait LineSink: Send + Sync {
    /// Keeps `lines`, which are masked.
    ///
    /// # Errors
    /// If the lines cannot be kept.
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError>;

    /// Records that the image is pushed and that the job goes on to export its cache. A sink that needs only
    /// the final STATUS ignores this.
    ///
    /// # Errors
    /// If this cannot be recorded.
    fn record_pushed(&self, _status: Status) -> Result<(), SpoolError> {
        Ok(())
    }
}

impl LineSink for Spool {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        Self::append(self, lines.iter().map(|(stream, line)| (*stream, line.as_str())))
    }

    fn record_pushed(&self, status: Status) -> Result<(), SpoolError> {
        Self::record_pushed(self, status)
    }
}

pub struct JobLog {
    sink: Arc<dyn LineSink>,
    masker: Masker,
    stop: CancellationToken,
    /// Why the first line that could not be kept was lost.
    failure: OnceLock<FailureReason>,
    warnings: Mutex<Vec<String>>,
}

impl JobLog {
    /// Creates a log that writes to `sink`, and that fires `stop` if a line cannot be kept.
    pub fn new(sink: Arc<dyn LineSink>, masker: Masker, stop: CancellationToken) -> Self {
        Self { sink, masker, stop, failure: OnceLock::new(), warnings: Mutex::default() }
    }

    pub const fn masker(&self) -> &Masker {
        &self.masker
    }

    /// Adds a line of the agent's own.
    pub fn info(&self, text: &str) {
        let text = self.masker.mask(text);
        let lines = text.lines().map(|line| (Stream::Stdout, line.to_owned()));
        self.append_masked(&lines.collect::<Vec<_>>());
    }

    /// Adds a line of the agent's own, and a warning to the job's result.
    pub fn warn(&self, text: &str) {
        self.info(&format!("WARNING: {text}"));
        self.lock_warnings().push(self.masker.mask(text));
    }

    /// Adds the warning `new`, and removes `old`, which is less precise, from the job's result.
    pub fn replace_warning(&self, old: &str, new: &str) {
        let old = self.masker.mask(old);
        self.lock_warnings().retain(|warning| *warning != old);
        self.warn(new);
    }

    /// Reports that the image is pushed and that the job goes on to export its cache.
    pub fn report_pushed(&self, status: Status) {
        if let Err(error) = self.sink.record_pushed(status) {
            let error = anyhow::Error::new(error);
            tracing::error!("cannot record on disk that the image is pushed: {error:#}");
        }
    }

    pub fn append_masked(&self, lines: &[(Stream, String)]) {
        if lines.is_empty() {
            return;
        }
        let Err(error) = self.sink.append(lines) else { return };
        // Later failures have the same cause, so the first reason is kept.
        let _ = self.failure.set(error.reason());
        self.stop.cancel();
        tracing::error!(error = %ErrorChain(&error), "cannot keep the job's log");
    }

    /// Why a line could not be kept, if one was lost.
    pub fn failure(&self) -> Option<FailureReason> {
        self.failure.get().cloned()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.lock_warnings().clone()
    }

    fn lock_warnings(&self) -> MutexGuard<'_, Vec<String>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
