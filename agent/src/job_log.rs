//! A job's log: masks lines and appends them. The first line that cannot be kept stops the job.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stagely_protocol::{ErrorChain, FailureReason, Status, Stream};
use tokio_util::sync::CancellationToken;

use crate::mask::{MaskedStream, Masker};
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

/// The most bytes of a line of a command. A longer one becomes several.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Turns the output of a command into lines of a job's log.
pub(crate) struct CommandLog<'a> {
    log: &'a JobLog,
    stdout: LineStream,
    stderr: LineStream,
}

/// Turns masked bytes into lines.
pub(crate) struct LineStream {
    masker: Masker,
    masked: MaskedStream,
    /// The beginning of a line whose end has not been read, masked.
    begun: Vec<u8>,
}

impl<'a> CommandLog<'a> {
    pub(crate) fn new(log: &'a JobLog) -> Self {
        let stream = || LineStream::new(log.masker());
        Self { log, stdout: stream(), stderr: stream() }
    }

    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let lines = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let lines = lines.push(bytes);
        self.append(stream, lines);
    }

    /// The command has ended.
    pub(crate) fn finish(mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let lines = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            let lines = lines.finish();
            self.append(stream, lines);
        }
    }

    fn append(&self, stream: Stream, lines: Vec<String>) {
        let lines: Vec<_> = lines.into_iter().map(|line| (stream, line)).collect();
        self.log.append_masked(&lines);
    }
}

impl LineStream {
    pub(crate) fn new(masker: &Masker) -> Self {
        Self { masker: masker.clone(), masked: masker.stream(), begun: Vec::new() }
    }

    /// Adds bytes, and returns the lines that are complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.masked.push(bytes, &mut self.begun);
        self.take_lines(false)
    }

    /// The last lines: the stream has ended.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.masked.finish(&mut self.begun);
        self.take_lines(true)
    }

    fn take_lines(&mut self, is_last: bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let end = self.begun.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n');
            let (length, skipped) = match end {
                Some(end) => (end, 1),
                None if self.begun.len() >= LINE_BYTES_MAX => (LINE_BYTES_MAX, 0),
                None if is_last && !self.begun.is_empty() => (self.begun.len(), 0),
                None => return lines,
            };
            let line = String::from_utf8_lossy(&self.begun[..length]);
            let line = self.masker.mask_shown(line.trim_end_matches('\r'));
            lines.push(line.into_owned());
            self.begun.drain(..length + skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::MaskerBuilder;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl LineSink for Kept {
        fn append(&self, lines: &[(Stream, String)]) -> Result<(), SpoolError> {
            self.0.lock().unwrap().extend(lines.iter().map(|(_, line)| line.clone()));
            Ok(())
        }
    }

    #[test]
    fn output_becomes_masked_lines_however_it_is_cut() {
        let (kept, mut secrets) = (Arc::new(Kept::default()), MaskerBuilder::default());
        secrets.credential("hunter2hunter2");
        let coloured = "key hunter2\u{1b}[31mhunter2\u{1b}[0m end\n\u{1b}[32mgreen\u{1b}[0m";
        let mut lines = LineStream::new(&secrets.build().unwrap());
        assert_eq!(lines.push(coloured.as_bytes()), ["key *** end"]);
        assert_eq!(lines.finish(), ["\u{1b}[32mgreen\u{1b}[0m"]);
        let mut secrets = MaskerBuilder::default();
        secrets.credential("hunter2hunter2");
        let sink: Arc<dyn LineSink> = Arc::clone(&kept) as _;
        let log = JobLog::new(sink, secrets.build().unwrap(), CancellationToken::new());
        let mut command = CommandLog::new(&log);
        for piece in ["one\r\nkey hunter2", "hunter2 end\n\n", "last"] {
            command.push(Stream::Stdout, piece.as_bytes());
        }
        command.push(Stream::Stderr, "e".repeat(LINE_BYTES_MAX + 1).as_bytes());
        command.finish();
        let lines = kept.0.lock().unwrap().clone();
        let cut = "e".repeat(LINE_BYTES_MAX);
        assert_eq!(lines, ["one", "key *** end", "", &cut, "last", "e"]);
    }
}
