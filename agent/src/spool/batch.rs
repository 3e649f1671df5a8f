//! The form of lines on disk, and batches of them.

use stagely_protocol::{Log, LogLine, Stream, WireId};

/// Before each line: its length (4 bytes), its time (8), its stream (1).
pub(super) const HEADER_BYTES: usize = 13;

/// Lines in the form that they have on disk.
#[derive(Debug)]
pub struct LineBatch {
    pub first: u64,
    pub count: u64,
    pub(super) bytes: Vec<u8>,
}

impl LineBatch {
    /// The LOG message that carries the lines.
    pub fn log(&self, job_id: &WireId) -> Log<'_> {
        let mut lines = Vec::with_capacity(usize::try_from(self.count).unwrap_or(0));
        let mut offset = 0;
        while let Some((line, end)) = decode(&self.bytes, offset) {
            lines.push(line);
            offset = end;
        }
        Log { job_id: job_id.clone(), first: Some(self.first), lines }
    }
}

/// Appends a line to `bytes`. `time_ms` is in milliseconds since the Unix epoch.
pub(super) fn encode(bytes: &mut Vec<u8>, time_ms: u64, stream: Stream, line: &str) {
    let length = u32::try_from(line.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&time_ms.to_le_bytes());
    bytes.push(u8::from(stream == Stream::Stderr));
    bytes.extend_from_slice(line.as_bytes());
}

/// The line that begins at `offset`, and the offset of its end. `None`: `bytes` does not hold all of it.
pub(super) fn decode(bytes: &[u8], offset: usize) -> Option<(LogLine<'_>, usize)> {
    let (length, rest) = bytes.get(offset..)?.split_first_chunk::<4>()?;
    let (time_ms, rest) = rest.split_first_chunk::<8>()?;
    let (stream, rest) = rest.split_first()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let stream = if *stream == 0 { Stream::Stdout } else { Stream::Stderr };
    let data = String::from_utf8_lossy(rest.get(..length)?);
    let line = LogLine { t: u64::from_le_bytes(*time_ms), stream, data };
    Some((line, offset + HEADER_BYTES + length))
}
