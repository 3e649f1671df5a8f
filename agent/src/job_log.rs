//! A job's log: lines go in masked, and the first line that cannot be kept stops the job.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use stagely_protocol::{FailureReason, Status, Stream};
use tokio_util::sync::CancellationToken;

use crate::mask::Masker;
use crate::spool::{Spool, SpoolError};

/// Where lines go.
pub trait LineSink: Send + Sync {
    /// Keeps `lines`, which are masked.
    ///
    /// # Errors
    /// When they cannot be kept.
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError>;

    /// The image is pushed, and the job goes on to export the cache. Nothing is to be done where the
    /// end alone counts.
    ///
    /// # Errors
    /// When that cannot be kept.
    fn pushed(&self, _status: Status) -> Result<(), SpoolError> {
        Ok(())
    }
}

impl LineSink for Spool {
    fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
        Self::append(self, lines.iter().map(|(stream, line)| (*stream, line.as_str())))
    }

    fn pushed(&self, status: Status) -> Result<(), SpoolError> {
        Self::record_pushed(self, status)
    }
}

/// The log of one job.
pub struct JobLog {
    sink: Arc<dyn LineSink>,
    masker: Masker,
    stop: CancellationToken,
    failure: OnceLock<FailureReason>,
    warnings: Mutex<Vec<String>>,
}

impl JobLog {
    /// A log that writes to `sink`, and fires `stop` when it cannot.
    pub fn new(sink: Arc<dyn LineSink>, masker: Masker, stop: CancellationToken) -> Self {
        Self { sink, masker, stop, failure: OnceLock::new(), warnings: Mutex::default() }
    }

    /// The job's masker.
    pub const fn masker(&self) -> &Masker {
        &self.masker
    }

    /// Adds a line of the agent's own.
    pub fn say(&self, text: &str) {
        let text = self.masker.mask(text);
        let lines = text.lines().map(|line| (Stream::Stdout, line.to_owned()));
        self.masked_lines(&lines.collect::<Vec<_>>());
    }

    /// Adds a line of the agent's own that the user sees beside the result, too.
    pub fn warn(&self, text: &str) {
        self.say(&format!("WARNING: {text}"));
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.push(self.masker.mask(text));
    }

    /// Says `new` in the place of the warning `old`: more is known by now.
    pub fn warn_better(&self, old: &str, new: &str) {
        let old = self.masker.mask(old);
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).retain(|it| *it != old);
        self.warn(new);
    }

    /// Reports that the image is pushed, and that the job goes on.
    pub fn pushed(&self, status: Status) {
        if let Err(error) = self.sink.pushed(status) {
            tracing::error!(%error, "it is not on disk that the image is pushed");
        }
    }

    /// Adds lines that are masked already.
    pub fn masked_lines(&self, lines: &[(Stream, String)]) {
        if lines.is_empty() {
            return;
        }
        let Err(error) = self.sink.append(lines) else { return };
        tracing::error!(%error, "the job's log cannot be kept");
        // A second failure is the first one's consequence.
        let _ = self.failure.set(error.reason());
        self.stop.cancel();
    }

    /// Why a line could not be kept.
    pub fn failure(&self) -> Option<FailureReason> {
        self.failure.get().cloned()
    }

    /// All warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
