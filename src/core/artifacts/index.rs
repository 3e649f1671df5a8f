//! Where the files of an archive are in it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

use tar::Archive;

/// The files of an archive, by their path. There are at most
/// [`ARTIFACT_FILES_MAX`](stagely_protocol::ARTIFACT_FILES_MAX).
#[derive(Debug, Default)]
pub(crate) struct FileIndex(BTreeMap<String, Extent>);

/// A part of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) first: u64,
    pub(crate) bytes: u64,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    File(Extent),
    /// What is directly in the folder: the names of files with their bytes, and those of folders, which end in `/`.
    Folder(BTreeMap<&'a str, Option<u64>>),
    Nothing,
}

impl FileIndex {
    /// Reads a checked archive. Contents are skipped, not read.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn read(archive: impl Read + Seek) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in Archive::new(archive).entries_with_seek()? {
            let entry = entry?;
            let extent = Extent { first: entry.raw_file_position(), bytes: entry.size() };
            // The check has refused other paths.
            if let Some(path) = entry.path()?.to_str() {
                files.insert(path.to_owned(), extent);
            }
        }
        Ok(Self(files))
    }

    pub(crate) fn file(&self, path: &str) -> Option<Extent> {
        self.0.get(path).copied()
    }

    /// What `path` names, with or without a `/` at its end. The empty path is the folder of all.
    pub(crate) fn find(&self, path: &str) -> Found<'_> {
        if let Some(file) = self.file(path) {
            return Found::File(file);
        }
        let folder = match path.trim_end_matches('/') {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let mut inside = BTreeMap::new();
        let below =
            self.0.range(folder.clone()..).take_while(|(path, _)| path.starts_with(&folder));
        for (path, extent) in below {
            let rest = &path[folder.len()..];
            match rest.find('/') {
                Some(end) => inside.insert(&rest[..=end], None),
                None => inside.insert(rest, Some(extent.bytes)),
            };
        }
        if inside.is_empty() { Found::Nothing } else { Found::Folder(inside) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, SeekFrom};

    use tar::{Builder, Header};

    use super::*;

    #[test]
    fn a_path_names_a_file_a_folder_or_nothing() {
        let long = format!("report/{}.txt", "long".repeat(60));
        let files = ["a.txt", "report/index.html", "report/data/x y.png", "reports", &*long];
        let mut builder = Builder::new(Vec::new());
        for name in files {
            let mut header = Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, name.as_bytes()).unwrap();
        }
        let mut archive = Cursor::new(builder.into_inner().unwrap());
        let index = FileIndex::read(&mut archive).unwrap();
        for name in files {
            let Extent { first, bytes } = index.file(name).unwrap();
            let mut content = String::new();
            archive.seek(SeekFrom::Start(first)).unwrap();
            archive.by_ref().take(bytes).read_to_string(&mut content).unwrap();
            assert_eq!(content, name);
        }
        let all = [("a.txt", Some(5)), ("report/", None), ("reports", Some(7))];
        assert_eq!(index.find(""), Found::Folder(all.into()));
        let data = || Found::Folder([("x y.png", Some(19))].into());
        assert_eq!((index.find("report/data"), index.find("report/data/")), (data(), data()));
        assert!(matches!(index.find("report"), Found::Folder(inside) if inside.len() == 3));
        assert!(matches!(index.find("reports"), Found::File(_)));
        for path in ["rep", "a.txt/", "../a.txt", "/a.txt", "report//index.html", "./a.txt", "\0"] {
            assert_eq!(index.find(path), Found::Nothing, "{path}");
        }
    }
}
