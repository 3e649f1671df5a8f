//! The form in which lines are stored: a chunk is a row of parts, each some lines as postcard, then
//! zstd, behind a header that lets a reader skip it.

use std::borrow::Cow;
use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use stagely_protocol::{LogLine, Stream, cut_line};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::get_frame_content_size;

use super::StoredLine;

/// Costs little next to the commit and takes 3 % less than level 1. Real logs shrink 3 to 8 times.
const LEVEL: i32 = 3;

/// No part is larger once it is decompressed, in bytes: the text of a message, and some bytes a line.
const PLAIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Parts are added to a chunk up to this size, in bytes. redb keeps a value that does not fit into
/// 4 KiB in pages of 8, 16, 32… KiB, alone; so a chunk of 100 lines by itself wastes up to half of
/// its page, and one just below 16 KiB nothing.
pub(super) const GROW_BYTES_MAX: usize = 16 * 1024 - 128;

/// And up to this much text, in bytes, however well it shrinks: a reader takes a chunk as a whole.
const GROW_TEXT_BYTES_MAX: u64 = 256 * 1024;

/// A message is cut into chunks of so much text, in bytes: an agent's usual batch is one chunk.
const PIECE_TEXT_BYTES_MAX: usize = 512 * 1024;

/// A line counts as its text and so many bytes more, since an empty line takes time and memory as well.
const LINE_BYTES: usize = 16;

/// A part with less text than this, in bytes, is compressed anew together with the lines that follow,
/// so that the lines of an agent that sends each by itself shrink as others do.
const JOIN_BELOW_BYTES: u32 = 8 * 1024;

thread_local! {
    // Setting one up takes longer than to compress 100 lines.
    static COMPRESSOR: RefCell<Compressor<'static>> =
        RefCell::new(Compressor::new(LEVEL).expect("the level is one of zstd's"));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("there is memory for it"));
}

/// Lines, compressed: those of one message, so 2 MiB of text at most.
#[derive(Debug)]
pub(super) struct Chunk {
    /// How many lines.
    pub(super) lines: u64,
    /// Their text as it counts, in bytes.
    pub(super) text_bytes: u64,
    /// What is stored.
    pub(super) bytes: Vec<u8>,
}

/// The lines of a part, in columns: 100-byte lines shrink to 17 bytes so, and to 20 with the small
/// numbers between the texts.
#[derive(Default, Serialize, Deserialize)]
struct Columns<'a> {
    /// Milliseconds after the line before; the first line's are those since the epoch. Wraps, since
    /// clocks go backwards.
    after: Vec<u64>,
    streams: Vec<Stream>,
    /// The lengths of the texts, in bytes, where one of them holds a line feed.
    lengths: Vec<u32>,
    /// The texts, a line feed behind each.
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// A chunk that was not written by this program, or has been damaged.
#[derive(Debug)]
pub(super) struct Damaged;

impl Chunk {
    /// Compresses `lines`, each cut at the longest that is kept: not every agent cuts its own.
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

    /// What is stored when this chunk's lines are added to the chunk `before`; `None` if there is no
    /// room for them.
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

/// A part of a chunk.
struct Part<'a> {
    lines: u32,
    /// The text of the lines, in bytes.
    text_bytes: u32,
    frame: &'a [u8],
}

impl<'a> Part<'a> {
    const HEADER_BYTES: usize = 12;

    /// Takes the first part off the front of `bytes`.
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

    /// Adds its lines to `stored`, without the first `skip`.
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

/// The parts of a chunk; ends after one that is damaged.
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

/// The bytes that a line counts, wherever text is limited.
pub(super) const fn counted_bytes(text: &str) -> usize {
    text.len() + LINE_BYTES
}

/// Sizes come from messages, which are smaller by far.
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

    /// Adds batches to a chunk while there is room.
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
        fn lines_come_back_as_they_were_however_they_were_added(
            batches in vec(vec(line(), 1..60), 1..12),
            skip in 0..400_usize,
        ) {
            let (bytes, lines) = grown(&batches);
            let rest = &lines[skip.min(lines.len())..];
            prop_assert_eq!(Chunk::read(&bytes, skip as u64).unwrap(), rest);
        }

        #[test]
        fn a_chunk_that_is_cut_off_is_damaged(
            batches in vec(vec(line(), 1..60), 1..12),
            cut in 1..12_usize,
        ) {
            let (bytes, _) = grown(&batches);
            prop_assert!(Chunk::read(&bytes[..bytes.len() - cut], 0).is_err());
        }
    }

    #[test]
    fn a_chunk_grows_to_its_page_and_to_so_much_text_and_no_further() {
        let line = |data: String| StoredLine { t: 0, stream: Stream::Stdout, data };
        let same: Vec<_> = (0..100).map(|_| line("x".repeat(100))).collect();
        let unlikely = |n: u64| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let unlike: Vec<_> = (0..100)
            .map(|n| line((n * 8..n * 8 + 8).map(unlikely).collect::<Vec<_>>().concat()))
            .collect();
        for (batch, text_bytes_max) in [(same, GROW_TEXT_BYTES_MAX), (unlike, 64 * 1024)] {
            let (bytes, lines) = grown(&vec![batch; 1_000]);
            assert!(bytes.len() <= GROW_BYTES_MAX);
            let text_bytes: usize = lines.iter().map(|line| line.data.len()).sum();
            assert!(text_bytes as u64 <= text_bytes_max);
            assert!(text_bytes > 0);
        }
    }
}
