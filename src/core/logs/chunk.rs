//! The form in which lines are stored: postcard, then zstd.

use stagely_agent::protocol::{LogLine, Stream, cut_line};

use serde::{Deserialize, Serialize};

use super::StoredLine;

/// Level 1 costs almost nothing next to the commit, and real logs shrink 3 to 8 times.
const LEVEL: i32 = 1;

/// Lines, compressed: those of one message, so 2 MiB of text at most.
#[derive(Debug)]
pub(super) struct Chunk {
    /// How many lines.
    pub(super) lines: u64,
    /// Their text, in bytes.
    pub(super) text_bytes: u64,
    /// What is stored.
    pub(super) bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct ChunkLine<'a> {
    /// Milliseconds after the line before; the first line's are those since the epoch. Wraps, since
    /// clocks go backwards.
    after: u64,
    stream: Stream,
    #[serde(borrow)]
    data: &'a str,
}

/// A chunk that was not written by this program, or has been damaged.
#[derive(Debug)]
pub(super) struct Damaged;

impl Chunk {
    /// Compresses `lines`, each cut at the longest that is kept: not every agent cuts its own.
    pub(super) fn of(lines: &[LogLine<'_>]) -> Self {
        let cut: Vec<_> = lines.iter().map(|line| cut_line(&line.data)).collect();
        let parts = lines.iter().zip(&cut).map(|(line, data)| (line.t, line.stream, &**data));
        Self::from_parts(parts)
    }

    /// Compresses lines that were read back.
    pub(super) fn of_stored(lines: &[StoredLine]) -> Self {
        Self::from_parts(lines.iter().map(|line| (line.t, line.stream, &*line.data)))
    }

    fn from_parts<'a>(parts: impl Iterator<Item = (u64, Stream, &'a str)>) -> Self {
        let (mut before, mut text_bytes) = (0, 0);
        let lines: Vec<ChunkLine<'_>> = parts
            .map(|(t, stream, data)| {
                let after = t.wrapping_sub(before);
                before = t;
                text_bytes += data.len() as u64;
                ChunkLine { after, stream, data }
            })
            .collect();
        let plain = postcard::to_stdvec(&lines).expect("a vector takes every line");
        let bytes = zstd::bulk::compress(&plain, LEVEL).expect("a buffer of the bound's size");
        Self { lines: lines.len() as u64, text_bytes, bytes }
    }

    /// Reads a chunk back.
    pub(super) fn read(bytes: &[u8]) -> Result<Vec<StoredLine>, Damaged> {
        let plain = zstd::stream::decode_all(bytes).map_err(|_| Damaged)?;
        let lines: Vec<ChunkLine<'_>> = postcard::from_bytes(&plain).map_err(|_| Damaged)?;
        let mut t = 0_u64;
        let stored = lines.into_iter().map(|line| {
            t = t.wrapping_add(line.after);
            StoredLine { t, stream: line.stream, data: line.data.to_owned() }
        });
        Ok(stored.collect())
    }
}
