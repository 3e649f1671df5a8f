//! Reads the log of one container from the engine.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;
use stagely_protocol::{Stream, WireId};

use super::ServiceLogs;
use crate::job_log::LineStream;
use crate::mask::Masker;

/// A longer line of a container with a terminal, in bytes, becomes several.
const TERMINAL_LINE_BYTES_MAX: usize = 64 * 1024;

/// Reads the log of a container until it ends.
pub(super) struct Reader {
    pub(super) logs: Arc<ServiceLogs>,
    pub(super) preview: WireId,
    pub(super) container: String,
    /// Goes before each line.
    pub(super) prefix: String,
    /// The time of the last line that was read before.
    pub(super) after: Option<String>,
}

impl Reader {
    pub(super) async fn run(self, engine: Docker, masker: Masker) {
        let since = self.after.as_deref().map_or(0, milliseconds) / 1_000;
        let options = LogsOptionsBuilder::new()
            .follow(true)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(i32::try_from(since).unwrap_or(i32::MAX))
            .build();
        let mut output = Box::pin(engine.logs(&self.container, Some(options)));
        let mut pieces = Pieces::new(&masker, self.after.clone());
        loop {
            self.logs.wait_for_space(&self.preview).await;
            let (lines, is_over) = match output.next().await {
                Some(Ok(output)) => (pieces.take(output), false),
                Some(Err(error)) => {
                    tracing::debug!(container = self.container, %error, "a log ends");
                    (pieces.finish(), true)
                }
                None => (pieces.finish(), true),
            };
            self.append(&pieces, lines);
            if is_over {
                return;
            }
        }
    }

    fn append(&self, pieces: &Pieces, lines: Vec<(Stream, String)>) {
        let Some(time) = pieces.time.as_deref().filter(|_| !lines.is_empty()) else { return };
        let prefixed = |(stream, line)| (stream, format!("{}{line}", self.prefix));
        let lines = lines.into_iter().map(prefixed).collect();
        self.logs.append(&self.preview, &self.container, time, lines);
    }
}

/// What the engine sends, on its way to masked lines.
struct Pieces {
    stdout: LineStream,
    stderr: LineStream,
    /// The beginning of a line of a container with a terminal, which the engine sends in any pieces.
    terminal: Vec<u8>,
    /// Lines up to this time were read before.
    after: Option<String>,
    /// The time of the last piece.
    time: Option<String>,
}

impl Pieces {
    fn new(masker: &Masker, after: Option<String>) -> Self {
        Self {
            stdout: LineStream::new(masker),
            stderr: LineStream::new(masker),
            terminal: Vec::new(),
            after,
            time: None,
        }
    }

    /// Takes a piece of output, and returns the lines that are complete.
    fn take(&mut self, output: LogOutput) -> Vec<(Stream, String)> {
        match output {
            LogOutput::StdOut { message } => self.take_timed(Stream::Stdout, &message),
            LogOutput::StdErr { message } => self.take_timed(Stream::Stderr, &message),
            LogOutput::Console { message } => {
                self.terminal.extend_from_slice(&message);
                let mut lines = Vec::new();
                while let Some(length) = self.terminal_line() {
                    let line: Vec<u8> = self.terminal.drain(..length).collect();
                    lines.extend(self.take_timed(Stream::Stdout, &line));
                }
                lines
            }
            LogOutput::StdIn { .. } => Vec::new(),
        }
    }

    /// The length of the first line of a terminal, if it has an end.
    fn terminal_line(&self) -> Option<usize> {
        let end = self.terminal.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
        end.or_else(|| {
            (self.terminal.len() >= TERMINAL_LINE_BYTES_MAX).then_some(self.terminal.len())
        })
    }

    /// Takes a line, or a piece of a long one, that begins with its time.
    fn take_timed(&mut self, stream: Stream, piece: &[u8]) -> Vec<(Stream, String)> {
        let text = match split_time(piece) {
            Some((time, _)) if self.after.as_deref().is_some_and(|after| time <= after) => {
                return Vec::new();
            }
            Some((time, text)) => {
                self.time = Some(time.to_owned());
                text
            }
            None => piece,
        };
        let lines = match stream {
            Stream::Stdout => self.stdout.push(text),
            Stream::Stderr => self.stderr.push(text),
        };
        lines.into_iter().map(|line| (stream, line)).collect()
    }

    /// The last lines.
    fn finish(&mut self) -> Vec<(Stream, String)> {
        let rest = std::mem::take(&mut self.terminal);
        let mut lines =
            if rest.is_empty() { Vec::new() } else { self.take_timed(Stream::Stdout, &rest) };
        lines.extend(self.stdout.finish().into_iter().map(|line| (Stream::Stdout, line)));
        lines.extend(self.stderr.finish().into_iter().map(|line| (Stream::Stderr, line)));
        lines
    }
}

/// The engine's time before a line, and the line.
fn split_time(piece: &[u8]) -> Option<(&str, &[u8])> {
    let end = piece.iter().take(40).position(|byte| *byte == b' ')?;
    let time = std::str::from_utf8(&piece[..end]).ok()?;
    parse_time(time).map(|_| (time, &piece[end + 1..]))
}

fn parse_time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// A time of the engine in milliseconds since the Unix epoch; 0 if it is none.
pub(super) fn milliseconds(time: &str) -> u64 {
    let since = parse_time(time).and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::MaskerBuilder;

    fn time(seconds: u32) -> String {
        format!("2026-11-30T09:00:{seconds:02}.000000001Z")
    }

    fn stdout(text: &str) -> LogOutput {
        LogOutput::StdOut { message: text.to_owned().into() }
    }

    fn texts(lines: Vec<(Stream, String)>) -> Vec<String> {
        lines.into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn lines_lose_their_times_and_their_secrets() {
        let mut secrets = MaskerBuilder::default();
        secrets.credential("hunter2hunter2");
        let mut pieces = Pieces::new(&secrets.build().unwrap(), None);
        let lines = pieces.take(stdout(&format!("{} key hunter2hunter2 \n", time(1))));
        assert_eq!(texts(lines), ["key *** "]);
        assert_eq!(pieces.time, Some(time(1)));
        assert_eq!(milliseconds(&time(1)), 1_796_029_201_000);
        let error = LogOutput::StdErr { message: format!("{} failed\n", time(2)).into() };
        assert_eq!(pieces.take(error), [(Stream::Stderr, "failed".to_owned())]);
    }

    #[test]
    fn lines_that_were_read_before_are_skipped() {
        let mut pieces = Pieces::new(&MaskerBuilder::default().build().unwrap(), Some(time(2)));
        let mut take = |seconds| texts(pieces.take(stdout(&format!("{} x\n", time(seconds)))));
        assert!(take(1).is_empty() && take(2).is_empty());
        assert_eq!(take(3), ["x"]);
    }

    #[test]
    fn pieces_of_long_lines_and_of_terminals_are_joined() {
        let mut pieces = Pieces::new(&MaskerBuilder::default().build().unwrap(), None);
        assert!(pieces.take(stdout(&format!("{} be", time(1)))).is_empty());
        assert_eq!(texts(pieces.take(stdout(&format!("{} gun\n", time(1))))), ["begun"]);
        let console = |text: &str| LogOutput::Console { message: text.to_owned().into() };
        let (first, second) = (format!("{} one\r\n{}", time(2), time(3)), " two\r\nrest");
        assert_eq!(texts(pieces.take(console(&first))), ["one"]);
        assert_eq!(texts(pieces.take(console(second))), ["two"]);
        assert_eq!(texts(pieces.finish()), ["rest"]);
    }
}
