//! The stored form of lines. A chunk is a sequence of parts. A part is a header, by which a reader can skip the part,
//! and lines that are serialized with postcard and compressed with zstd.

use std::borrow::Cow;
use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use stagely_protocol::{LogLine, Stream, cut_line};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::get_frame_content_size;

use super::StoredLine;

/// Takes little time compared with the commit. The result is 3 % smaller than with level 1; real logs shrink to between
/// a third and an eighth.
const LEVEL: i32 = 3;

/// The largest decompressed part, in bytes: the text of one message, and a few bytes for each line.
const PLAIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Parts are added to a chunk up to this size, in bytes. redb gives each value of more than 4 KiB a page of its own, of
/// 8, 16, 32… KiB. A chunk of 100 lines would waste up to half of its page; one just below 16 KiB wastes nothing.
pub(super) const GROW_BYTES_MAX: usize = 16 * 1024 - 128;

/// Parts are added to a chunk up to this much uncompressed text, in bytes, because a reader decompresses whole chunks.
const GROW_TEXT_BYTES_MAX: u64 = 256 * 1024;

/// A message is split into chunks of at most this much text, in bytes. A usual batch of an agent is one chunk.
const PIECE_TEXT_BYTES_MAX: usize = 512 * 1024;

/// Counted for each line in addition to its text, because an empty line takes time and memory, too.
const LINE_BYTES: usize = 16;

/// A part with less text than this, in bytes, is compressed again together with the next lines. Otherwise the lines of
/// an agent that sends them one by one would hardly shrink.
const JOIN_BELOW_BYTES: u32 = 8 * 1024;

thread_local! {
    // Kept, because creating a compressor takes longer than compressing 100 lines.
    static COMPRESSOR: RefCell<Compressor<'static>> =
        RefCell::new(Compressor::new(LEVEL).expect("zstd has this level"));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("the allocator never fails"));
}

/// Compressed lines of one message.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) lines: u64,
    /// The sum of [`counted_bytes`].
    pub(super) text_bytes: u64,
    /// The stored form.
    pub(super) bytes: Vec<u8>,
}

/// The lines of a part, in columns. A line of 100 bytes shrinks to 17 bytes in this form, and to 20 bytes if the small
/// numbers stand between the texts.
#[derive(Default, Serialize, Deserialize)]
struct Columns<'a> {
    /// Milliseconds since the previous line; those of the first line count from the epoch. Wraps, because clocks may
    /// be set back.
    after: Vec<u64>,
    streams: Vec<Stream>,
    /// The lengths of the texts, in bytes. Empty if no text contains a line feed.
    lengths: Vec<u32>,
    /// The texts, each followed by a line feed.
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// A chunk that this program has not written, or that has been damaged since.
#[derive(Debug)]
pub(super) struct Damaged;

impl Chunk {
    /// Compresses `lines`. Cuts long ones, because not every agent does.
    fn of(lines: &[LogLine<'_>]) -> Self {
        let cut: Vec<_> = lines.iter().map(|line| cut_line(&line.data)).collect();
        let parts = lines.iter().zip(&cut).map(|(line, data)| (line.t, line.stream, &**data));
        Self::from_parts(parts)
    }

    /// Compresses lines that were read back.
    pub(super) fn of_stored(lines: &[StoredLine]) -> Self {
        Self::from_parts(lines.iter().map(|line| (line.t, line.stream, &*line.data)))
    }

    fn from_parts<'a>(parts: impl Iterator<Item = (u64, Stream, &'a str)>) -> Self {
        let mut columns = Columns::default();
        let (mut before, mut text_bytes, mut has_line_feed) = (0_u64, 0, false);
        for (t, stream, data) in parts {
            columns.after.push(t.wrapping_sub(before));
            columns.streams.push(stream);
            columns.lengths.push(small(data.len()));
            let text = columns.text.to_mut();
            text.push_str(data);
            text.push('\n');
            before = t;
            text_bytes += counted_bytes(data);
            has_line_feed |= data.contains('\n');
        }
        if !has_line_feed {
            columns.lengths.clear();
        }
        let count = columns.after.len();
        let plain = postcard::to_stdvec(&columns).expect("a vector takes every line");
        let frame = COMPRESSOR
            .with_borrow_mut(|compressor| compressor.compress(&plain))
            .expect("a buffer of the bound's size");
        let part = Part { lines: small(count), text_bytes: small(text_bytes), frame: &frame };
        let mut bytes = Vec::with_capacity(Part::HEADER_BYTES + frame.len());
        part.write(&mut bytes);
        Self { lines: count as u64, text_bytes: text_bytes as u64, bytes }
    }

    /// Compresses `lines` into as many chunks as their text needs.
    pub(super) fn several_of(lines: &[LogLine<'_>]) -> Vec<Self> {
        let (mut chunks, mut start, mut text_bytes) = (Vec::new(), 0, 0);
        for (index, line) in lines.iter().enumerate() {
            let line_bytes = counted_bytes(&line.data);
            if text_bytes + line_bytes > PIECE_TEXT_BYTES_MAX && index > start {
                chunks.push(Self::of(&lines[start..index]));
                (start, text_bytes) = (index, 0);
            }
            text_bytes += line_bytes;
        }
        chunks.push(Self::of(&lines[start..]));
        chunks
    }

    /// Reads a chunk back, without its first `skip` lines.
    pub(super) fn read(bytes: &[u8], skip: u64) -> Result<Vec<StoredLine>, Damaged> {
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut stored = Vec::new();
        for part in parts(bytes) {
            let part = part?;
            let count = part.lines as usize;
            if skip < count {
                part.read(skip, &mut stored)?;
            }
            skip = skip.saturating_sub(count);
        }
        Ok(stored)
    }

    /// The text of a stored chunk, as far as it can be read: the sum of [`counted_bytes`].
    pub(super) fn text_bytes_of(bytes: &[u8]) -> u64 {
        parts(bytes).map_while(Result::ok).map(|part| u64::from(part.text_bytes)).sum()
    }

    /// The stored form of the chunk `before` with the lines of this one added; `None` if they do not fit.
    pub(super) fn added_to(&self, before: &[u8]) -> Result<Option<Vec<u8>>, Damaged> {
        let kept = parts(before).collect::<Result<Vec<_>, _>>()?;
        let text_bytes: u64 = kept.iter().map(|part| u64::from(part.text_bytes)).sum();
        if text_bytes + self.text_bytes > GROW_TEXT_BYTES_MAX {
            return Ok(None);
        }
        let grown = match kept.split_last() {
            Some((last, kept)) if last.is_small() && self.text_bytes < JOIN_BELOW_BYTES.into() => {
                let mut lines = Vec::new();
                last.read(0, &mut lines)?;
                lines.extend(Self::read(&self.bytes, 0)?);
                let mut grown = Vec::with_capacity(before.len() + self.bytes.len());
                for part in kept {
                    part.write(&mut grown);
                }
                grown.extend(Self::of_stored(&lines).bytes);
                grown
            }
            _ => [before, &self.bytes].concat(),
        };
        Ok((grown.len() <= GROW_BYTES_MAX).then_some(grown))
    }
}

struct Part<'a> {
    lines: u32,
    /// The sum of [`counted_bytes`].
    text_bytes: u32,
    frame: &'a [u8],
}

impl<'a> Part<'a> {
    const HEADER_BYTES: usize = 12;

    /// Removes the first part from `bytes`.
    fn take(bytes: &mut &'a [u8]) -> Result<Self, Damaged> {
        let mut number = || {
            let (number, rest) = bytes.split_first_chunk().ok_or(Damaged)?;
            *bytes = rest;
            Ok(u32::from_le_bytes(*number))
        };
        let (lines, text_bytes, length) = (number()?, number()?, number()?);
        let (frame, rest) = bytes.split_at_checked(length as usize).ok_or(Damaged)?;
        *bytes = rest;
        Ok(Self { lines, text_bytes, frame })
    }

    fn write(&self, to: &mut Vec<u8>) {
        for number in [self.lines, self.text_bytes, small(self.frame.len())] {
            to.extend(number.to_le_bytes());
        }
        to.extend(self.frame);
    }

    const fn is_small(&self) -> bool {
        self.text_bytes < JOIN_BELOW_BYTES
    }

    /// Appends the lines of the part to `stored`, without the first `skip`.
    fn read(&self, skip: usize, stored: &mut Vec<StoredLine>) -> Result<(), Damaged> {
        let plain = decompress(self.frame)?;
        let columns: Columns<'_> = postcard::from_bytes(&plain).map_err(|_| Damaged)?;
        let Columns { after, streams, lengths, text } = columns;
        let mut text = &*text;
        let mut t = 0_u64;
        for (number, (after, stream)) in after.into_iter().zip(streams).enumerate() {
            let length = match lengths.get(number) {
                Some(length) => *length as usize,
                None => text.find('\n').ok_or(Damaged)?,
            };
            let (data, rest) = text.split_at_checked(length).ok_or(Damaged)?;
            text = rest.strip_prefix('\n').ok_or(Damaged)?;
            t = t.wrapping_add(after);
            if number >= skip {
                stored.push(StoredLine { t, stream, data: data.to_owned() });
            }
        }
        Ok(())
    }
}

/// The parts of a chunk. Ends after a damaged part.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Result<Part<'_>, Damaged>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let part = Part::take(&mut bytes);
        if part.is_err() {
            bytes = &[];
        }
        Some(part)
    })
}

/// The size of a line, in bytes, for all limits of text.
pub(super) const fn counted_bytes(text: &str) -> usize {
    text.len() + LINE_BYTES
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("a message is smaller than 4 GiB")
}

fn decompress(frame: &[u8]) -> Result<Vec<u8>, Damaged> {
    let length = get_frame_content_size(frame).ok().flatten();
    let length = length.filter(|length| *length <= PLAIN_BYTES_MAX).ok_or(Damaged)?;
    let length = usize::try_from(length).map_err(|_| Damaged)?;
    DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.decompress(frame, length))
        .map_err(|_| Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn line() -> impl Strategy<Value = StoredLine> {
        let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
        (any::<u64>(), stream, "[a-z\n\u{e4} ]{0,40}").prop_map(|(t, stream, data)| StoredLine {
            t,
            stream,
            data,
        })
    }

    /// Adds batches to a chunk until one does not fit.
    fn grown(batches: &[Vec<StoredLine>]) -> (Vec<u8>, Vec<StoredLine>) {
        let mut bytes = Vec::new();
        let mut lines = Vec::new();
        for batch in batches {
            match Chunk::of_stored(batch).added_to(&bytes).unwrap() {
                Some(grown) => bytes = grown,
                None => break,
            }
            lines.extend_from_slice(batch);
        }
        (bytes, lines)
    }

    proptest! {
        #[test]
        fn a_damaged_chunk_is_read_or_refused(
            lines in vec((any::<u64>(), "[ -~\n]{0,60}"), 1..40),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            end: prop::sample::Index,
            skip in 0..50_u64,
        ) {
            let line = |(t, data): &(u64, String)| {
                StoredLine { t: *t, stream: Stream::Stdout, data: data.clone() }
            };
            let chunk = Chunk::of_stored(&lines.iter().map(line).collect::<Vec<_>>());
            let mut bytes = chunk.bytes.clone();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for bytes in [&bytes[..], &bytes[..end.index(bytes.len())], &[&*bytes, &bytes].concat()] {
                if let Ok(read) = Chunk::read(bytes, skip) {
                    let text: usize = read.iter().map(|line| line.data.len()).sum();
                    prop_assert!(text as u64 <= 2 * PLAIN_BYTES_MAX);
                }
                let _ = chunk.added_to(bytes);
            }
        }

        #[test]
        fn lines_are_read_as_they_were_written_for_any_batches(
            batches in vec(vec(line(), 1..60), 1..12),
            skip in 0..400_usize,
        ) {
            let (bytes, lines) = grown(&batches);
            let rest = &lines[skip.min(lines.len())..];
            prop_assert_eq!(Chunk::read(&bytes, skip as u64).unwrap(), rest);
        }

        #[test]
        fn a_truncated_chunk_is_damaged(
            batches in vec(vec(line(), 1..60), 1..12),
            cut in 1..12_usize,
        ) {
            let (bytes, _) = grown(&batches);
            prop_assert!(Chunk::read(&bytes[..bytes.len() - cut], 0).is_err());
        }
    }

    #[test]
    fn a_chunk_grows_up_to_one_page_and_to_the_limit_of_text() {
        let line = |data: String| StoredLine { t: 0, stream: Stream::Stdout, data };
        let repeated: Vec<_> = (0..100).map(|_| line("x".repeat(100))).collect();
        let random_word = |n: u64| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let incompressible: Vec<_> = (0..100)
            .map(|n| line((n * 8..n * 8 + 8).map(random_word).collect::<Vec<_>>().concat()))
            .collect();
        for (batch, text_bytes_max) in
            [(repeated, GROW_TEXT_BYTES_MAX), (incompressible, 64 * 1024)]
        {
            let (bytes, lines) = grown(&vec![batch; 1_000]);
            assert!(bytes.len() <= GROW_BYTES_MAX);
            let text_bytes: usize = lines.iter().map(|line| line.data.len()).sum();
            assert!(text_bytes as u64 <= text_bytes_max);
            assert!(text_bytes > 0);
        }
    }
}
