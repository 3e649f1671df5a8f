//! The state of one vertex of a build, and its output on the way to log lines.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use stagely_protocol::{LINE_BYTES_MAX, Stream};

use crate::mask::{MaskedStream, Masker};

/// `BuildKit` writes this text where it drops output.
const CLIP_MARK: &str = "[output clipped, log limit ";

/// A line that is overwritten again and again is logged after this many seconds.
const STATE_SECONDS: f64 = 5.0;

/// The number of last lines of a failing step that are kept for the error message.
const TAIL_LINES: usize = 20;

/// The state of one vertex, as far as `BuildKit` has reported it.
pub(super) struct VertexProgress {
    /// The position in `Progress::order`, from 1; 0 before the vertex is logged.
    pub(super) number: usize,
    /// Masked.
    pub(super) name: String,
    pub(super) has_ended: bool,
    /// Its end is logged, and nothing of the vertex was logged after that.
    pub(super) is_end_logged: bool,
    pub(super) started: Option<SystemTime>,
    pub(super) seconds: f64,
    origin: Origin,
    /// Masked; empty unless the vertex failed.
    pub(super) error: String,
    /// The last lines of its output, masked.
    pub(super) tail: Vec<String>,
    /// For each of its statuses that is logged, whether it is logged as done.
    pub(super) statuses: HashMap<String, bool>,
    stdout: LineBuffer,
    stderr: LineBuffer,
}

/// Where the result of a vertex comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Unknown,
    /// A report says so.
    Cache,
    /// It printed something, which only a step that runs does.
    Run,
}

/// One output of one vertex: its unfinished line.
struct LineBuffer {
    masked: MaskedStream,
    /// The last state of the line.
    line: Vec<u8>,
    /// Whether the next character overwrites the line.
    is_overwritten: bool,
    /// When the last piece was written, since the vertex started.
    seconds: f64,
    /// The time of the last line or state that was logged.
    logged_seconds: f64,
}

impl LineBuffer {
    /// Adds a part of a line. A progress bar overwrites its line, and a terminal shows only the last state. The states
    /// before it are logged only every few seconds.
    fn push(&mut self, part: &[u8], mut log_state: impl FnMut(f64, &[u8])) {
        for (index, state) in part.split(|&byte| byte == b'\r').enumerate() {
            self.is_overwritten |= index > 0;
            if state.is_empty() {
                continue;
            }
            if std::mem::take(&mut self.is_overwritten) {
                if self.seconds - self.logged_seconds >= STATE_SECONDS && !self.line.is_empty() {
                    log_state(self.seconds, &self.line);
                    self.logged_seconds = self.seconds;
                }
                self.line.clear();
            }
            // The spool cuts longer lines anyway. It marks a cut line only if one byte more is there.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&state[..state.len().min(room)]);
        }
    }

    /// Ends the line and returns it.
    fn take(&mut self) -> String {
        self.is_overwritten = false;
        self.logged_seconds = self.seconds;
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        text
    }
}

impl VertexProgress {
    pub(super) fn new(masker: &Masker) -> Self {
        let buffer = || LineBuffer {
            masked: masker.stream(),
            line: Vec::new(),
            is_overwritten: false,
            seconds: 0.0,
            logged_seconds: 0.0,
        };
        Self {
            number: 0,
            name: String::new(),
            has_ended: false,
            is_end_logged: false,
            started: None,
            seconds: 0.0,
            origin: Origin::Unknown,
            error: String::new(),
            tail: Vec::new(),
            statuses: HashMap::new(),
            stdout: buffer(),
            stderr: buffer(),
        }
    }

    /// Takes note of what a report says.
    pub(super) fn report_cached(&mut self, cached: bool) {
        if cached && self.origin == Origin::Unknown {
            self.origin = Origin::Cache;
        }
    }

    /// Whether it came from the cache. A step also runs if its layers cannot be loaded, after a report that it came from
    /// the cache.
    pub(super) fn is_cached(&self) -> bool {
        self.origin == Origin::Cache
    }

    fn buffer(&mut self, stream: Stream) -> &mut LineBuffer {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Adds a piece of output, written at `timestamp`, and appends the lines that are complete by then.
    /// Returns whether `BuildKit` says that it dropped output.
    pub(super) fn push_output(
        &mut self,
        stream: Stream,
        data: &[u8],
        timestamp: Option<SystemTime>,
        lines: &mut Vec<(Stream, String)>,
    ) -> bool {
        let seconds = timestamp.map(|timestamp| seconds_between(self.started, timestamp));
        let buffer = self.buffer(stream);
        buffer.seconds = seconds.unwrap_or(buffer.seconds);
        let mut masked = Vec::with_capacity(data.len());
        buffer.masked.push(data, &mut masked);
        self.is_end_logged = false;
        self.origin = Origin::Run;
        self.take_lines(stream, &masked, lines)
    }

    /// Appends the unfinished lines. Returns whether `BuildKit` says that it dropped output.
    pub(super) fn finish_output(&mut self, lines: &mut Vec<(Stream, String)>) -> bool {
        let mut is_clipped = false;
        for stream in [Stream::Stdout, Stream::Stderr] {
            let buffer = self.buffer(stream);
            let mut rest = Vec::new();
            buffer.masked.finish(&mut rest);
            if !rest.is_empty() || !buffer.line.is_empty() {
                rest.push(b'\n');
            }
            is_clipped |= self.take_lines(stream, &rest, lines);
        }
        is_clipped
    }

    fn take_lines(
        &mut self,
        stream: Stream,
        data: &[u8],
        lines: &mut Vec<(Stream, String)>,
    ) -> bool {
        let number = self.number;
        let mut is_clipped = false;
        let mut log = |seconds: f64, text: &str| {
            lines.push((stream, format!("#{number} {seconds:.3} {text}")));
        };
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            let buffer = self.buffer(stream);
            let part = piece.strip_suffix(b"\n").unwrap_or(piece);
            buffer.push(part, |seconds, state| log(seconds, &String::from_utf8_lossy(state)));
            if part.len() == piece.len() {
                break;
            }
            let text = buffer.take();
            is_clipped |= text.contains(CLIP_MARK);
            log(buffer.seconds, &text);
            self.tail.push(text);
        }
        let excess = self.tail.len().saturating_sub(TAIL_LINES);
        self.tail.drain(..excess);
        is_clipped
    }
}

pub(super) fn seconds_between(start: Option<SystemTime>, end: SystemTime) -> f64 {
    let duration = start.and_then(|start| end.duration_since(start).ok());
    duration.unwrap_or(Duration::ZERO).as_secs_f64()
}
