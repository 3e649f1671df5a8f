//! Splits the output of `docker buildx build --progress=rawjson` into status reports and plain lines.
//!
//! Source: `BuildKit`, `client.SolveStatus`.

use std::time::SystemTime;

use serde::Deserialize;

/// A longer JSON object does not come from `BuildKit`, whose pieces of log have at most 32 KiB.
const OBJECT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One item of the command's output.
#[derive(Debug)]
pub(crate) enum OutputItem {
    /// A status report of `BuildKit`.
    Status(SolveStatus),
    /// A line between or after the reports, without its line end.
    Text(String),
}

/// One status report of `BuildKit`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SolveStatus {
    pub(super) vertexes: Vec<Vertex>,
    pub(super) statuses: Vec<VertexStatus>,
    pub(super) logs: Vec<VertexLog>,
    pub(super) warnings: Vec<VertexWarning>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Vertex {
    pub(super) digest: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default, with = "go_time")]
    pub(super) started: Option<SystemTime>,
    #[serde(default, with = "go_time")]
    pub(super) completed: Option<SystemTime>,
    #[serde(default)]
    pub(super) cached: bool,
    #[serde(default)]
    pub(super) error: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct VertexStatus {
    pub(super) id: String,
    pub(super) vertex: String,
    #[serde(default)]
    pub(super) total: i64,
    #[serde(default)]
    pub(super) current: i64,
    #[serde(default, with = "go_time")]
    pub(super) started: Option<SystemTime>,
    #[serde(default, with = "go_time")]
    pub(super) completed: Option<SystemTime>,
}

#[derive(Debug, Deserialize)]
pub(super) struct VertexLog {
    pub(super) vertex: String,
    #[serde(default)]
    pub(super) stream: i32,
    /// Base64.
    #[serde(default)]
    pub(super) data: String,
    #[serde(default, with = "go_time")]
    pub(super) timestamp: Option<SystemTime>,
}

#[derive(Debug, Deserialize)]
pub(super) struct VertexWarning {
    /// Base64.
    #[serde(default)]
    pub(super) short: String,
}

/// Go writes times as RFC 3339.
mod go_time {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<std::borrow::Cow<'de, str>>::deserialize(from)?;
        // A time in an unknown format only loses a duration; it must not fail the build.
        Ok(text.and_then(|text| humantime::parse_rfc3339(&text).ok()))
    }
}

/// Splits the command's output into JSON objects and plain lines.
#[derive(Debug, Default)]
pub(crate) struct RawJsonDecoder {
    buffer: Vec<u8>,
    /// How many bytes of `buffer` are scanned. The other fields are the scanner's state after them.
    scanned: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl RawJsonDecoder {
    /// Adds `bytes` to the input and appends the items that are complete by then.
    pub(crate) fn push(&mut self, bytes: &[u8], items: &mut Vec<OutputItem>) {
        self.buffer.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(end) = self.scan(start) {
            push_item(&self.buffer[start..end], items);
            start = end;
            self.scanned = end;
        }
        self.buffer.drain(..start);
        self.scanned -= start;
    }

    /// Appends the rest of the input: the output has ended.
    pub(crate) fn finish(&mut self, items: &mut Vec<OutputItem>) {
        push_item(&std::mem::take(&mut self.buffer), items);
        *self = Self::default();
    }

    /// The end of the item that begins at `start`, if the input holds all of it.
    fn scan(&mut self, start: usize) -> Option<usize> {
        let is_object = self.buffer.get(start) == Some(&b'{');
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            let ended = if is_object { self.step(byte) } else { byte == b'\n' };
            if ended || self.scanned - start >= OBJECT_BYTES_MAX {
                (self.depth, self.in_string, self.escaped) = (0, false, false);
                return Some(self.scanned);
            }
        }
        None
    }

    /// Scans one byte of an object. `true` after its last byte.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' => self.depth += 1,
            b'}' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}

fn push_item(piece: &[u8], items: &mut Vec<OutputItem>) {
    if piece.starts_with(b"{")
        && let Ok(status) = serde_json::from_slice(piece)
    {
        items.push(OutputItem::Status(status));
        return;
    }
    let text = String::from_utf8_lossy(piece);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    items.extend(lines.map(|line| OutputItem::Text(line.to_owned())));
}
