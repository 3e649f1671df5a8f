//! The format of archives.
//!
//! An archive is compressed with zstd and consists of frames: a length of 4 bytes, the highest first, and as many bytes. For
//! each volume there is a frame with its name in the compose file, then frames with pieces of a tar archive of the folder
//! `volume`, then an empty frame. An empty frame in place of a name ends the archive. The tar archives are the engine's own,
//! so owners, modes and links stay, those of the volume's folder as well.

use std::io::{self, Read, Write};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stagely_protocol::Digest;
use tokio::sync::mpsc;

use super::ArchiveError;
use crate::pieces::{PIECES_MAX, digest_of};

/// The level of zstd's own command. Higher ones are several times slower for a few percent.
const LEVEL: i32 = 3;

/// The longest frame that is read.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

pub(super) enum Frame {
    Bytes(Bytes),
    /// All frames were sent.
    Finished,
}

pub(super) async fn send(frames: &mpsc::Sender<Frame>, frame: Frame) -> Result<(), ArchiveError> {
    frames.send(frame).await.map_err(|_| ArchiveError::Stopped)
}

/// Compresses frames into pieces of the archive. Returns its digest and its size. Without [`Frame::Finished`] the last piece
/// is an error, so that core does not take the archive for a whole one.
pub(super) fn compress(
    mut frames: mpsc::Receiver<Frame>,
    output: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<(Digest, u64)> {
    let writer = PieceWriter { output: output.clone(), hash: Sha256::new(), bytes: 0 };
    let mut encoder = zstd::Encoder::new(writer, LEVEL)?;
    loop {
        match frames.blocking_recv() {
            Some(Frame::Bytes(bytes)) => write_frame(&mut encoder, &bytes)?,
            Some(Frame::Finished) => break,
            None => {
                let error = || io::Error::other("the volumes could not be read");
                let _ = output.blocking_send(Err(error()));
                return Err(error());
            }
        }
    }
    let writer = encoder.finish()?;
    Ok((digest_of(writer.hash), writer.bytes))
}

fn write_frame(writer: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    writer.write_all(&length.to_be_bytes())?;
    writer.write_all(bytes)
}

/// Reads an archive, and passes on the name of each volume with the pieces of its tar archive.
pub(super) fn unpack(
    reader: impl Read,
    found: &mpsc::Sender<(String, mpsc::Receiver<Bytes>)>,
) -> io::Result<()> {
    let mut decoder = zstd::Decoder::new(reader)?;
    loop {
        let name = read_frame(&mut decoder)?;
        if name.is_empty() {
            // The rest is empty, too, and its checksum is read.
            return match decoder.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(io::Error::other("bytes follow its end")),
            };
        }
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        let (pieces, waiting) = mpsc::channel(PIECES_MAX);
        let is_wanted = found.blocking_send((name, waiting)).is_ok();
        loop {
            let piece = read_frame(&mut decoder)?;
            if piece.is_empty() {
                break;
            }
            // The receiver is gone after an error, which is its own.
            let _ = is_wanted && pieces.blocking_send(piece.into()).is_ok();
        }
    }
}

fn read_frame(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other("a frame is too long"));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Sends what is written as pieces.
struct PieceWriter {
    output: mpsc::Sender<io::Result<Bytes>>,
    hash: Sha256,
    bytes: u64,
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.output.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::spawn_blocking;

    use super::*;

    /// An archive with one volume for each list of pieces.
    fn archive(volumes: &[(&str, &[&[u8]])]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).unwrap();
        for (name, pieces) in volumes {
            write_frame(&mut encoder, name.as_bytes()).unwrap();
            pieces.iter().for_each(|piece| write_frame(&mut encoder, piece).unwrap());
            write_frame(&mut encoder, b"").unwrap();
        }
        write_frame(&mut encoder, b"").unwrap();
        encoder.finish().unwrap()
    }

    async fn unpacked(archive: Vec<u8>) -> (io::Result<()>, Vec<(String, Vec<u8>)>) {
        let (found, mut waiting) = mpsc::channel(1);
        let unpacked = spawn_blocking(move || unpack(&*archive, &found));
        let mut volumes = Vec::new();
        while let Some((name, mut pieces)) = waiting.recv().await {
            let mut content = Vec::new();
            while let Some(piece) = pieces.recv().await {
                content.extend_from_slice(&piece);
            }
            volumes.push((name, content));
        }
        (unpacked.await.unwrap(), volumes)
    }

    #[tokio::test]
    async fn volumes_come_back_and_damage_is_found() {
        let whole = archive(&[("data", &[b"one", b"two"]), ("empty", &[])]);
        let (result, volumes) = unpacked(whole.clone()).await;
        result.unwrap();
        let expected = [("data".to_owned(), b"onetwo".to_vec()), ("empty".to_owned(), Vec::new())];
        assert_eq!(volumes, expected);
        for length in 0..whole.len() {
            let (result, _) = unpacked(whole[..length].to_vec()).await;
            result.unwrap_err();
        }
        let (result, _) = unpacked(b"no archive".to_vec()).await;
        result.unwrap_err();
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_ends_with_an_error() {
        let (frames, waiting) = mpsc::channel(PIECES_MAX);
        let (output, mut body) = mpsc::channel(PIECES_MAX);
        let compressed = spawn_blocking(move || compress(waiting, &output));
        frames.send(Frame::Bytes(Bytes::from_static(b"data"))).await.ok().unwrap();
        drop(frames);
        let mut last = None;
        while let Some(piece) = body.recv().await {
            last = Some(piece);
        }
        last.unwrap().unwrap_err();
        compressed.await.unwrap().unwrap_err();
    }
}
