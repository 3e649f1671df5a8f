//! Content-addressed files in the data folder, apart for each owner. A blob is complete, because it gets its name when it
//! is on the disk.
//!
//! Owners share no files, so nobody gets the content of another owner by naming its digest. All methods block.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stagely_protocol::{Digest, WireId};
use tempfile::NamedTempFile;

/// The folder of blobs that are being written. The ids of owners begin with a prefix and `_`.
const UNFINISHED: &str = "unfinished";

/// A folder of blobs. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct BlobStore {
    folder: Arc<Path>,
}

/// A blob to read.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) file: File,
    pub(crate) bytes: u64,
}

/// A blob that is being written. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    file: NamedTempFile,
    hash: Sha256,
    bytes: u64,
}

/// A blob that is on the disk and belongs to nobody yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct WrittenBlob {
    file: NamedTempFile,
    pub(crate) digest: Digest,
}

impl BlobStore {
    /// Opens or creates `folder`, which no other process uses, and removes what a killed core was writing.
    ///
    /// # Errors
    /// The folder cannot be changed.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        let unfinished = folder.join(UNFINISHED);
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => create_private(&unfinished)?,
        }
        Ok(Self { folder: folder.into() })
    }

    /// Begins a blob.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn create(&self) -> io::Result<BlobWriter> {
        let file = NamedTempFile::new_in(self.folder.join(UNFINISHED))?;
        Ok(BlobWriter { file, hash: Sha256::new(), bytes: 0 })
    }

    /// Gives the blob to `owner`, in place of one with the same content.
    ///
    /// # Errors
    /// The disk's; then the owner may or may not have it.
    pub(crate) fn insert(&self, owner: &WireId, blob: WrittenBlob) -> io::Result<()> {
        let folder = self.folder_of(owner);
        create_private(&folder)?;
        blob.file.persist(folder.join(file_name(&blob.digest))).map_err(|error| error.error)?;
        // The names must be on the disk before a record refers to the blob.
        File::open(&folder)?.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }

    /// Opens a blob of `owner`; `None` if there is no such blob.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn get(&self, owner: &WireId, digest: &Digest) -> io::Result<Option<Blob>> {
        let file = match File::open(self.folder_of(owner).join(file_name(digest))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = file.metadata()?.len();
        Ok(Some(Blob { file, bytes }))
    }

    /// How long ago the newest blob of `owner` was stored; `None` if there is none.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn age(&self, owner: &WireId) -> io::Result<Option<Duration>> {
        let folder = self.folder_of(owner);
        let mut newest: Option<Duration> = None;
        for name in names_in(&folder)? {
            let modified = fs::metadata(folder.join(name))?.modified()?;
            // A clock that was set back makes it new.
            let age = modified.elapsed().unwrap_or_default();
            newest = Some(newest.map_or(age, |newest| newest.min(age)));
        }
        Ok(newest)
    }

    /// The owners that may have blobs.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn owners(&self) -> io::Result<Vec<WireId>> {
        let names = names_in(&self.folder)?.into_iter().filter(|name| name != UNFINISHED);
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes the blobs of `owner` that `is_kept` does not choose, and returns their number.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn retain(
        &self,
        owner: &WireId,
        is_kept: impl Fn(&Digest) -> bool,
    ) -> io::Result<usize> {
        let (folder, mut removed, mut kept) = (self.folder_of(owner), 0, 0);
        for name in names_in(&folder)? {
            if digest_of(&name).is_some_and(|digest| is_kept(&digest)) {
                kept += 1;
            } else {
                fs::remove_file(folder.join(name))?;
                removed += 1;
            }
        }
        if kept == 0 {
            remove_empty(&folder)?;
        }
        Ok(removed)
    }

    fn folder_of(&self, owner: &WireId) -> PathBuf {
        self.folder.join(owner.as_str())
    }
}

impl BlobWriter {
    /// # Errors
    /// The disk's.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The length so far.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until the content is on the disk.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn finish(self) -> io::Result<WrittenBlob> {
        self.file.as_file().sync_all()?;
        let mut digest = "sha256:".to_owned();
        for byte in self.hash.finalize() {
            write!(digest, "{byte:02x}").expect("a String takes every write");
        }
        let digest = digest.parse().expect("32 bytes in hexadecimal are a digest");
        Ok(WrittenBlob { file: self.file, digest })
    }
}

impl WrittenBlob {
    /// Opens it for reading.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn reader(&self) -> io::Result<File> {
        self.file.reopen()
    }
}

/// A colon in a name is the host's end to many tools.
fn file_name(digest: &Digest) -> String {
    digest.as_str().replace(':', "-")
}

fn digest_of(file_name: &str) -> Option<Digest> {
    file_name.replacen('-', ":", 1).parse().ok()
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Core gives no other names.
    entries
        .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
        .collect()
}

fn create_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn remove_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// The SHA-256 of `hello`.
    const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn owner(name: &str) -> WireId {
        name.parse().unwrap()
    }

    fn written(store: &BlobStore, pieces: &[&str]) -> WrittenBlob {
        let mut writer = store.create().unwrap();
        for piece in pieces {
            writer.append(piece.as_bytes()).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_blob_is_read_by_its_owner_and_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path().join("blobs")).unwrap();
        let blob = written(&store, &["hel", "lo"]);
        assert_eq!(blob.digest.as_str(), HELLO);
        let digest = blob.digest.clone();
        store.insert(&owner("prev_1"), blob).unwrap();

        let store = BlobStore::open(folder.path().join("blobs")).unwrap();

        let mut found = store.get(&owner("prev_1"), &digest).unwrap().unwrap();
        let mut text = String::new();
        found.file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), found.bytes), ("hello", 5));
        assert!(store.get(&owner("prev_2"), &digest).unwrap().is_none());
        assert_eq!(store.owners().unwrap(), [owner("prev_1")]);
    }

    #[test]
    fn what_was_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path().to_owned()).unwrap();
        let unfinished = || fs::read_dir(folder.path().join(UNFINISHED)).unwrap().count();
        let mut writer = store.create().unwrap();
        writer.append(b"half").unwrap();
        let whole = written(&store, &["whole"]);
        assert_eq!(unfinished(), 2);
        drop((writer, whole));
        assert_eq!(unfinished(), 0);

        // A killed core removes nothing.
        fs::write(folder.path().join(UNFINISHED).join(".tmp1"), "half").unwrap();
        BlobStore::open(folder.path().to_owned()).unwrap();
        assert_eq!(unfinished(), 0);
    }

    #[test]
    fn blobs_that_are_not_kept_are_removed_and_so_is_an_owner_without_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path().to_owned()).unwrap();
        for text in ["one", "two"] {
            store.insert(&owner("prev_1"), written(&store, &[text])).unwrap();
        }
        let two = written(&store, &["two"]).digest;
        fs::write(folder.path().join("prev_1/no-digest"), "").unwrap();

        assert_eq!(store.retain(&owner("prev_1"), |digest| *digest == two).unwrap(), 2);
        assert!(store.get(&owner("prev_1"), &two).unwrap().is_some());
        assert_eq!(store.retain(&owner("prev_1"), |_| false).unwrap(), 1);
        assert_eq!(store.owners().unwrap(), []);
        assert_eq!(store.retain(&owner("prev_1"), |_| false).unwrap(), 0);
    }
}
