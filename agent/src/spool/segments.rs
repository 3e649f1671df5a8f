//! The segment files of a spool, and the position of its reader.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use stagely_protocol::{BATCH_BYTES_MAX, BATCH_LINES_MAX, LINE_BYTES_MAX};

use super::batch::{HEADER_BYTES, LineBatch, decode};
use super::error::SpoolError;

/// A segment of this size is closed, and the next one begun.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// All lines of one spool.
#[derive(Debug, Default)]
pub(super) struct SegmentedLog {
    segments: VecDeque<Segment>,
    /// The number of lines written so far, which is the number of the next line.
    lines: u64,
    bytes: u64,
    /// The number of lines acknowledged so far.
    acknowledged: u64,
    /// The number of the next line to be read, and its offset in its segment.
    next: u64,
    next_offset: u64,
    /// The number of bytes read or skipped so far, of the first `bytes` ones.
    bytes_read: u64,
}

#[derive(Debug)]
struct Segment {
    /// The number of its first line.
    first: u64,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl SegmentedLog {
    /// Opens the segments of a log of `lines` lines that a former process left in `folder`. Lines that were
    /// written after the count was recorded are kept if `with_later_lines`.
    pub(super) fn open(
        folder: &Path,
        lines: u64,
        with_later_lines: bool,
    ) -> Result<Self, SpoolError> {
        let segments = open_segments(folder)?;
        let lines = if with_later_lines { lines.max(count_lines(&segments)?) } else { lines };
        let first = segments.front().map_or(lines, |segment| segment.first);
        Ok(Self {
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            lines,
            acknowledged: first,
            next: first,
            ..Self::default()
        })
    }

    pub(super) const fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The number of lines read so far, which is the number of the next one to be read.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// The number of lines that are not read yet.
    pub(super) const fn waiting(&self) -> u64 {
        self.lines - self.next
    }

    /// Whether a full batch is not read yet.
    pub(super) const fn is_batch_full(&self) -> bool {
        self.waiting() >= BATCH_LINES_MAX as u64
            || self.bytes - self.bytes_read >= BATCH_BYTES_MAX as u64
    }

    /// Appends `count` lines, encoded as `bytes`. After an error none of them is there.
    pub(super) fn append(
        &mut self,
        folder: &Path,
        bytes: &[u8],
        count: u64,
    ) -> Result<(), SpoolError> {
        let first = self.lines;
        if self.segments.back().is_none_or(|segment| segment.bytes >= SEGMENT_BYTES) {
            let path = folder.join(format!("{first:020}.log"));
            let file = File::options().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(|error| SpoolError::new(&path, error))?;
            self.segments.push_back(Segment { first, path, file, bytes: 0 });
        }
        if let Some(segment) = self.segments.back_mut() {
            // At an offset, so that the next write overwrites the rest of a failed one.
            let written = segment.file.write_all_at(bytes, segment.bytes);
            written.map_err(|error| SpoolError::new(&segment.path, error))?;
            segment.bytes += bytes.len() as u64;
            self.bytes += bytes.len() as u64;
        }
        self.lines += count;
        Ok(())
    }

    /// Core has stored all lines below `lines`. Removes the segments that are read and acknowledged as a whole.
    pub(super) fn acknowledge(&mut self, lines: u64) {
        self.acknowledged = self.acknowledged.max(lines.min(self.lines));
        // The last segment stays, because it is written to.
        while self.segments.len() > 1 && self.segments[1].first <= self.acknowledged.min(self.next)
        {
            if let Some(segment) = self.segments.pop_front()
                && let Err(error) = fs::remove_file(&segment.path)
            {
                tracing::warn!(path = %segment.path.display(), %error, "cannot remove a segment");
            }
        }
    }

    /// Skips all lines that are not read yet.
    pub(super) const fn skip_all(&mut self) {
        self.next = self.lines;
    }

    /// The next lines, up to one batch. `None`: all are read.
    pub(super) fn next_batch(&mut self) -> Result<Option<LineBatch>, SpoolError> {
        self.read(BATCH_LINES_MAX as u64)
    }

    /// Reads whole lines from one segment, at most `lines_max`, and at most a batch's bytes.
    fn read(&mut self, lines_max: u64) -> Result<Option<LineBatch>, SpoolError> {
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
        let mut bytes = segment.read_at(self.next_offset)?;
        // Bytes behind the last line are the rest of a failed write.
        let (count, end) = whole_lines(&bytes, lines_max.min(self.lines - self.next));
        if count == 0 {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(SpoolError::Io { path: segment.path.clone(), source });
        }
        bytes.truncate(end);
        let batch = LineBatch { first: self.next, count, bytes };
        self.next += count;
        self.next_offset += end as u64;
        self.bytes_read += end as u64;
        Ok(Some(batch))
    }

    /// Continues reading at `line`.
    ///
    /// # Errors
    /// [`SpoolError::NoLine`] if the line is removed already, or not written yet.
    pub(super) fn seek(&mut self, line: u64) -> Result<(), SpoolError> {
        let end = self.lines;
        let first = self.segments.front().map_or(end, |segment| segment.first);
        if !(first..=end).contains(&line) {
            return Err(SpoolError::NoLine { wanted: line, first, end });
        }
        let after = self.segments.partition_point(|segment| segment.first <= line);
        let index = after.saturating_sub(1);
        let start = self.segments.get(index).map_or(line, |segment| segment.first);
        let bytes_after: u64 = self.segments.iter().skip(index).map(|segment| segment.bytes).sum();
        (self.next, self.next_offset, self.bytes_read) = (start, 0, self.bytes - bytes_after);
        while self.next < line {
            let lines_max = (line - self.next).min(BATCH_LINES_MAX as u64);
            if self.read(lines_max)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl Segment {
    /// The bytes from `offset` on, as many as one batch may have.
    fn read_at(&self, offset: u64) -> Result<Vec<u8>, SpoolError> {
        let bytes_max = BATCH_BYTES_MAX + LINE_BYTES_MAX + HEADER_BYTES * BATCH_LINES_MAX;
        let left = usize::try_from(self.bytes - offset).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(bytes_max)];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| SpoolError::new(&self.path, error))?;
        Ok(bytes)
    }
}

/// The number of whole lines at the beginning of `bytes` that fit into a batch, and the offset of their end.
fn whole_lines(bytes: &[u8], lines_max: u64) -> (u64, usize) {
    let (mut count, mut end, mut text_bytes) = (0, 0, 0);
    while count < lines_max
        && let Some((line, line_end)) = decode(bytes, end)
        && (count == 0 || text_bytes + line.data.len() <= BATCH_BYTES_MAX)
    {
        text_bytes += line.data.len();
        (count, end) = (count + 1, line_end);
    }
    (count, end)
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

/// The number of lines in all, counted in the last segment.
fn count_lines(segments: &VecDeque<Segment>) -> Result<u64, SpoolError> {
    let Some(segment) = segments.back() else { return Ok(0) };
    let bytes = fs::read(&segment.path).map_err(|error| SpoolError::new(&segment.path, error))?;
    let (mut lines, mut offset) = (segment.first, 0);
    while let Some((_, end)) = decode(&bytes, offset) {
        (lines, offset) = (lines + 1, end);
    }
    Ok(lines)
}
