//! Pictures among the artifacts, for pages and comments.

use std::io::{self, Read, Seek, SeekFrom};

use stagely_protocol::COMMENT_IMAGE_BYTES_MAX;
use thiserror::Error;

use super::index::{Extent, FileIndex};

/// How many bytes tell the kind of a picture.
const SIGNATURE_BYTES: usize = 12;

/// A picture that browsers show and that runs nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// Why a file is not shown as a picture.
#[derive(Debug, Error)]
pub(crate) enum PictureError {
    #[error("the artifacts cannot be read")]
    Io(#[from] io::Error),
    #[error("the artifacts have no such file")]
    Missing,
    #[error("the file has more than {} MiB", COMMENT_IMAGE_BYTES_MAX >> 20)]
    TooLarge,
    #[error("the file is neither PNG, JPEG, GIF nor WebP")]
    OtherKind,
}

/// Reads the file `name` of a checked archive.
///
/// # Errors
/// [`PictureError`]
pub(super) fn read(mut archive: impl Read + Seek, name: &str) -> Result<Picture, PictureError> {
    let index = FileIndex::read(&mut archive)?;
    let Extent { first, bytes: length } = index.file(name).ok_or(PictureError::Missing)?;
    if length > COMMENT_IMAGE_BYTES_MAX {
        return Err(PictureError::TooLarge);
    }
    let mut bytes = Vec::new();
    archive.seek(SeekFrom::Start(first))?;
    archive.take(length).read_to_end(&mut bytes)?;
    let content_type = kind_of(&bytes).ok_or(PictureError::OtherKind)?;
    Ok(Picture { content_type, bytes })
}

/// The media type by the first bytes, whatever the name says. SVG is left out: it is a document with scripts.
fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(SIGNATURE_BYTES)];
    match start {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tar::{Builder, Header};

    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Cursor<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        Cursor::new(builder.into_inner().unwrap())
    }

    #[test]
    fn the_first_bytes_tell_the_kind_and_not_the_name() {
        let webp = b"RIFF\x10\0\0\0WEBPVP8 ";
        let long = format!("shots/{}.png", "long".repeat(60));
        let pictures: [(&str, &[u8], &str); 5] = [
            ("shots/a.jpg", b"\x89PNG\r\n\x1a\nIHDR", "image/png"),
            ("shots/b c.png", b"\xff\xd8\xff\xe0JFIF", "image/jpeg"),
            ("c.gif", b"GIF89a,", "image/gif"),
            ("c.webp", webp, "image/webp"),
            (&long, b"\x89PNG\r\n\x1a\n", "image/png"),
        ];
        let files = pictures.map(|(name, bytes, _)| (name, bytes));
        for (name, bytes, content_type) in pictures {
            let picture = read(archive(&files), name).unwrap();
            assert_eq!(picture, Picture { content_type, bytes: bytes.to_vec() });
        }
    }

    #[test]
    fn what_is_no_picture_is_not_shown() {
        let svg: &[u8] = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>";
        for bytes in [svg, b"<html>", b"", b"\x89PNG", b"RIFF\x10\0\0\0WAVEfmt ", b"GIF88a"] {
            let error = read(archive(&[("a.png", bytes)]), "a.png").unwrap_err();
            assert!(matches!(error, PictureError::OtherKind), "{bytes:?}: {error}");
        }
        let large = vec![0; usize::try_from(COMMENT_IMAGE_BYTES_MAX).unwrap() + 1];
        let error = read(archive(&[("a.png", &large)]), "a.png").unwrap_err();
        assert!(matches!(error, PictureError::TooLarge), "{error}");
        for name in ["b.png", "", "a.png/", "./a.png", "../a.png"] {
            let error = read(archive(&[("a.png", b"x")]), name).unwrap_err();
            assert!(matches!(error, PictureError::Missing), "{name}: {error}");
        }
    }
}
