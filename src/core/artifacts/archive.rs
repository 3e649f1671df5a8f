//! What an archive of artifacts may hold: regular files with paths that stay where it is unpacked.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek};

use stagely_protocol::{ARTIFACT_BYTES_MAX, ARTIFACT_FILES_MAX, is_artifact_path};
use tar::{Archive, EntryType};
use thiserror::Error;

/// The longest entry that holds the name of the file after it, in bytes.
const NAME_BYTES_MAX: u64 = 4 * 1024;

/// The archive has something that nobody should unpack.
#[derive(Debug, Error)]
pub(crate) enum InvalidArchive {
    #[error("the artifacts are no tar archive")]
    Unreadable(#[source] io::Error),
    #[error("the artifacts have more than {ARTIFACT_FILES_MAX} files")]
    TooManyFiles,
    #[error("the artifacts have more than {ARTIFACT_BYTES_MAX} bytes")]
    TooManyBytes,
    #[error("the artifacts have {0:?}, which is no regular file")]
    NoFile(String),
    #[error("the artifacts have the name of a file with {0} bytes")]
    LongName(u64),
    #[error("the artifacts have the path {0:?}, which is not relative, plain and short")]
    Path(String),
    #[error("the artifacts have the path {0:?} twice")]
    Twice(String),
}

/// Checks an archive that an agent has sent.
///
/// # Errors
/// [`InvalidArchive`]
pub(super) fn check(mut archive: impl Read + Seek) -> Result<(), InvalidArchive> {
    let unreadable = InvalidArchive::Unreadable;
    check_names(&mut archive)?;
    archive.rewind().map_err(unreadable)?;
    let (mut files, mut bytes) = (0_u64, 0_u64);
    let mut paths = BTreeSet::new();
    let mut archive = Archive::new(archive);
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        let shown = || path.to_string_lossy().chars().take(200).collect::<String>();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(InvalidArchive::NoFile(shown()));
        }
        if !path.to_str().is_some_and(is_artifact_path) {
            return Err(InvalidArchive::Path(shown()));
        }
        files += 1;
        bytes = bytes.saturating_add(entry.size());
        if files > ARTIFACT_FILES_MAX {
            return Err(InvalidArchive::TooManyFiles);
        }
        if bytes > ARTIFACT_BYTES_MAX {
            return Err(InvalidArchive::TooManyBytes);
        }
        if !paths.insert(path.clone()) {
            return Err(InvalidArchive::Twice(shown()));
        }
    }
    Ok(())
}

/// Names that do not fit into a header are entries by themselves, which the library reads into memory.
fn check_names(archive: impl Read + Seek) -> Result<(), InvalidArchive> {
    let unreadable = InvalidArchive::Unreadable;
    let mut archive = Archive::new(archive);
    for entry in archive.entries_with_seek().map_err(unreadable)?.raw(true) {
        let entry = entry.map_err(unreadable)?;
        let is_name =
            matches!(entry.header().entry_type(), EntryType::GNULongName | EntryType::XHeader);
        if is_name && entry.size() > NAME_BYTES_MAX {
            return Err(InvalidArchive::LongName(entry.size()));
        }
        if matches!(entry.header().entry_type(), EntryType::GNULongLink | EntryType::XGlobalHeader)
        {
            return Err(InvalidArchive::NoFile("a link or settings".to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tar::{Builder, Header};

    use super::*;

    fn header(path: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        // Past the checks of the library, as an agent of other make might.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        header
    }

    fn archive(entries: &[(&str, EntryType)]) -> Result<(), InvalidArchive> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind) in entries {
            builder.append(&header(path, *kind, 3), &b"abc"[..]).unwrap();
        }
        check(Cursor::new(builder.into_inner().unwrap()))
    }

    #[test]
    fn regular_files_with_plain_paths_are_taken() {
        let regular = EntryType::Regular;
        archive(&[("report/index.html", regular), ("a b.txt", regular)]).unwrap();
        archive(&[]).unwrap();
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for path in ["/etc/passwd", "../x", "a/../../x", "./a", "a//b", "a\\b", "a\nb", ".."] {
            let error = archive(&[(path, EntryType::Regular)]).unwrap_err();
            assert!(matches!(error, InvalidArchive::Path(_)), "{path}: {error}");
        }
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Directory, EntryType::Fifo] {
            let error = archive(&[("a", kind)]).unwrap_err();
            assert!(matches!(error, InvalidArchive::NoFile(_)), "{kind:?}: {error}");
        }
        let twice = [("a", EntryType::Regular), ("a", EntryType::Regular)];
        assert!(matches!(archive(&twice).unwrap_err(), InvalidArchive::Twice(_)));
    }

    #[test]
    fn an_archive_of_too_many_files_or_bytes_is_refused() {
        let mut builder = Builder::new(Vec::new());
        for number in 0..=ARTIFACT_FILES_MAX {
            let header = header(&format!("f{number}"), EntryType::Regular, 0);
            builder.append(&header, io::empty()).unwrap();
        }
        let many = builder.into_inner().unwrap();
        assert!(matches!(check(Cursor::new(many)).unwrap_err(), InvalidArchive::TooManyFiles));

        let large = header("large", EntryType::Regular, ARTIFACT_BYTES_MAX + 1);
        let large = Cursor::new(large.as_bytes().to_vec());
        assert!(matches!(check(large).unwrap_err(), InvalidArchive::TooManyBytes));
    }

    #[test]
    fn names_that_would_fill_the_memory_are_refused() {
        for kind in [EntryType::GNULongName, EntryType::XHeader] {
            let large = header("././@LongLink", kind, 1 << 30);
            let error = check(Cursor::new(large.as_bytes().to_vec())).unwrap_err();
            assert!(matches!(error, InvalidArchive::LongName(_)), "{kind:?}: {error}");
        }
        for kind in [EntryType::GNULongLink, EntryType::XGlobalHeader] {
            let error = archive(&[("a", kind)]).unwrap_err();
            assert!(matches!(error, InvalidArchive::NoFile(_)), "{kind:?}: {error}");
        }
        let mut builder = Builder::new(Vec::new());
        let mut long = Header::new_gnu();
        long.set_size(3);
        let name = "long/".repeat(150) + "a";
        builder.append_data(&mut long, name, &b"abc"[..]).unwrap();
        check(Cursor::new(builder.into_inner().unwrap())).unwrap();
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let error = check(Cursor::new(vec![b'x'; 4096])).unwrap_err();
        assert!(matches!(error, InvalidArchive::Unreadable(_)), "{error}");
    }
}
