//! Streams between asynchronous code and code that blocks, in pieces, and their digests.

use std::fmt::Write as _;
use std::io::{self, Read};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stagely_protocol::Digest;
use tokio::sync::mpsc;

/// Pieces that wait between two steps. They have at most 128 KiB.
pub(crate) const PIECES_MAX: usize = 16;

#[expect(clippy::expect_used, reason = "32 bytes in hexadecimal are a digest")]
pub(crate) fn digest_of(hash: Sha256) -> Digest {
    let mut text = "sha256:".to_owned();
    for byte in hash.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.parse().expect("a digest")
}

/// Reads the pieces that arrive.
pub(crate) struct PieceReader {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl PieceReader {
    pub(crate) const fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, current: Bytes::new() }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
