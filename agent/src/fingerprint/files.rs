//! Digests of the files that a build can copy from its context.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stagely_protocol::{ChangedFile, FileChange};
use tokio_util::sync::CancellationToken;

use super::patterns::Ignore;

/// The most files that are recorded one by one. With more files, folders are recorded.
const FILES_MAX: usize = 50_000;

/// The most files that are read. Nothing is recorded of a larger context.
const FILES_READ_MAX: usize = 400_000;

/// The most bytes that are read, which takes some seconds. Nothing is recorded of a larger context.
const BYTES_READ_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// The first bytes of a SHA-256 digest: enough to detect changes, but not attacks.
pub(super) type ShortDigest = [u8; 8];

/// The digest of `parts`. Their lengths count, so that different lists of parts have different digests.
pub(super) fn short_digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> ShortDigest {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    shorten(hash)
}

fn shorten(hash: Sha256) -> ShortDigest {
    let mut digest = ShortDigest::default();
    digest.copy_from_slice(&hash.finalize()[..8]);
    digest
}

/// How detailed a context is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Detail {
    /// Each file. The folder `.git` is one entry.
    Files,
    /// Each folder, with the files directly in it.
    Folders,
    /// Each folder directly in the context, with all files below it.
    TopFolders,
    #[default]
    Nothing,
}

/// The recorded files of a context. Names of folders end in `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContextFiles {
    detail: Detail,
    digests: BTreeMap<String, ShortDigest>,
}

impl ContextFiles {
    /// Reads `context` without the files that `ignore` excludes, until `stop` fires.
    pub(super) fn read(
        context: &Path,
        ignore: &Ignore,
        stop: &CancellationToken,
    ) -> io::Result<Self> {
        let mut entries = Vec::new();
        if !walk(context, ignore, &mut entries, stop)? {
            return Ok(Self::default());
        }
        let digests = digest_all(context, &entries, stop)?;
        let mut files = Self { detail: Detail::Files, digests };
        files.fold(|path| path.starts_with(".git/").then(|| ".git/".to_owned()));
        if files.digests.len() > FILES_MAX {
            files.coarsen();
        }
        Ok(files)
    }

    /// Reduces the detail by one level. `false`: nothing is recorded any more.
    pub(super) fn coarsen(&mut self) -> bool {
        match self.detail {
            Detail::Files => {
                self.detail = Detail::Folders;
                self.fold(|path| match path.rsplit_once('/') {
                    Some((_, "")) => None,
                    Some((folder, _)) => Some(format!("{folder}/")),
                    None => Some("./".to_owned()),
                });
            }
            Detail::Folders => {
                self.detail = Detail::TopFolders;
                self.fold(|path| path.split_once('/').map(|(top, _)| format!("{top}/")));
            }
            Detail::TopFolders => *self = Self::default(),
            Detail::Nothing => return false,
        }
        true
    }

    /// Joins the entries for which `folder` returns the same name.
    fn fold(&mut self, folder: impl Fn(&str) -> Option<String>) {
        let mut folders: BTreeMap<String, Vec<(String, ShortDigest)>> = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for (path, digest) in std::mem::take(&mut self.digests) {
            match folder(&path) {
                Some(folder) => folders.entry(folder).or_default().push((path, digest)),
                None => _ = kept.insert(path, digest),
            }
        }
        for (folder, entries) in folders {
            let parts = entries.iter().flat_map(|(path, digest)| [path.as_bytes(), digest]);
            kept.insert(folder, short_digest(parts));
        }
        self.digests = kept;
    }

    /// The files that differ, of those for which `is_included` returns true, in the order of their paths.
    pub(super) fn changes(
        previous: &Self,
        current: &Self,
        is_included: impl Fn(&str) -> bool,
    ) -> Vec<ChangedFile> {
        let (mut old, mut new) = (previous.clone(), current.clone());
        while old.detail != new.detail {
            if old.detail < new.detail {
                old.coarsen()
            } else {
                new.coarsen()
            };
        }
        let change = |path: &String| match (old.digests.get(path), new.digests.get(path)) {
            (None, _) => Some(FileChange::Added),
            (_, None) => Some(FileChange::Removed),
            (old, new) => (old != new).then_some(FileChange::Changed),
        };
        let mut changes: Vec<ChangedFile> = Vec::new();
        let removed = old.digests.keys().filter(|path| !new.digests.contains_key(*path));
        for path in new.digests.keys().chain(removed) {
            if let Some(change) = change(path)
                && is_included(path)
            {
                changes.push(ChangedFile { path: path.clone(), change });
            }
        }
        changes.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        changes
    }
}

/// A file or symlink of the context.
struct ContextEntry {
    /// Relative to the context.
    path: PathBuf,
    is_link: bool,
    is_executable: bool,
}

/// Appends the files of `context` to `entries`. `false`: there are too many.
fn walk(
    context: &Path,
    ignore: &Ignore,
    entries: &mut Vec<ContextEntry>,
    stop: &CancellationToken,
) -> io::Result<bool> {
    let mut folders = vec![PathBuf::new()];
    let mut bytes = 0_u64;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(context.join(&folder))? {
            check(stop)?;
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            let is_ignored = ignore.ignores(&path.to_string_lossy());
            if kind.is_dir() && (!is_ignored || ignore.has_exceptions()) {
                folders.push(path);
            } else if !is_ignored && (kind.is_file() || kind.is_symlink()) {
                let metadata = entry.metadata()?;
                bytes = bytes.saturating_add(metadata.len());
                let is_executable = metadata.permissions().mode() & 0o111 != 0;
                entries.push(ContextEntry { path, is_link: kind.is_symlink(), is_executable });
            }
            if entries.len() > FILES_READ_MAX || bytes > BYTES_READ_MAX {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Digests all files, several at the same time.
fn digest_all(
    context: &Path,
    entries: &[ContextEntry],
    stop: &CancellationToken,
) -> io::Result<BTreeMap<String, ShortDigest>> {
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(BTreeMap::new()));
    let work = || {
        let mut own = Vec::new();
        let result = loop {
            let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break Ok(());
            };
            match digest(context, entry, stop) {
                Ok(digest) => own.push((entry.path.to_string_lossy().into_owned(), digest)),
                Err(error) => break Err(error),
            }
        };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        match (result, &mut *all) {
            (Err(error), _) => *all = Err(error),
            (Ok(()), Ok(all)) => all.extend(own),
            (Ok(()), Err(_)) => {}
        }
    };
    thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a regular file. A symlink is refused, because it could lead to a pipe or a device, whose opening or reading
/// may never end.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// # Errors
/// If `stop` has fired.
fn check(stop: &CancellationToken) -> io::Result<()> {
    if stop.is_cancelled() { Err(io::Error::other("stopped")) } else { Ok(()) }
}

fn digest(
    context: &Path,
    entry: &ContextEntry,
    stop: &CancellationToken,
) -> io::Result<ShortDigest> {
    let path = context.join(&entry.path);
    let mut hash = Sha256::new();
    if entry.is_link {
        hash.update(b"l");
        hash.update(fs::read_link(path)?.as_os_str().as_bytes());
        return Ok(shorten(hash));
    }
    hash.update(if entry.is_executable { b"x" } else { b"f" });
    let (mut file, mut buffer) = (open_regular(&path)?, vec![0; 64 * 1024]);
    loop {
        check(stop)?;
        match file.read(&mut buffer)? {
            0 => return Ok(shorten(hash)),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    use super::*;
    use FileChange::{Added, Changed, Removed};

    fn changes(old: &ContextFiles, new: &ContextFiles) -> Vec<(String, FileChange)> {
        let changes = ContextFiles::changes(old, new, |_| true);
        changes.into_iter().map(|file| (file.path, file.change)).collect()
    }

    #[test]
    fn content_mode_and_link_targets_count_and_ignored_files_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("src/deep")).unwrap();
        fs::create_dir_all(at(".git/objects")).unwrap();
        for path in ["src/a.c", "src/deep/b.c", "run", "gone", "debug.log", ".git/objects/1"] {
            fs::write(at(path), "one").unwrap();
        }
        symlink("src/a.c", at("link")).unwrap();
        let ignore = Ignore::parse("*.log\n");
        let read =
            || ContextFiles::read(folder.path(), &ignore, &CancellationToken::new()).unwrap();
        let old = read();
        fs::write(at("src/deep/b.c"), "two").unwrap();
        fs::set_permissions(at("run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(at("gone")).unwrap();
        fs::write(at("debug.log"), "two").unwrap();
        fs::write(at("src/new"), "").unwrap();
        fs::remove_file(at("link")).unwrap();
        symlink("src/b.c", at("link")).unwrap();
        fs::write(at(".git/objects/2"), "").unwrap();
        let mut new = read();
        let expected = [
            (".git/", Changed),
            ("gone", Removed),
            ("link", Changed),
            ("run", Changed),
            ("src/deep/b.c", Changed),
            ("src/new", Added),
        ];
        assert_eq!(changes(&old, &new), expected.map(|(path, change)| (path.to_owned(), change)));

        // One of them is recorded with less detail.
        new.coarsen();
        let folders = ["./", ".git/", "src/", "src/deep/"];
        assert_eq!(changes(&old, &new), folders.map(|path| (path.to_owned(), Changed)));
        let mut coarse = old.clone();
        coarse.coarsen();
        coarse.coarsen();
        let tops = ["./", ".git/", "src/"];
        assert_eq!(changes(&coarse, &new), tops.map(|path| (path.to_owned(), Changed)));
        assert_eq!(changes(&coarse, &old), []);
        assert_eq!(changes(&ContextFiles::default(), &new), []);
    }

    #[test]
    fn a_large_context_is_read_quickly() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..6_000 {
            let path = folder.path().join(format!("d{}", number % 100));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(format!("f{number}")), vec![7; 16 * 1024]).unwrap();
        }
        let started = Instant::now();
        let (ignore, stop) = (Ignore::default(), CancellationToken::new());
        let files = ContextFiles::read(folder.path(), &ignore, &stop).unwrap();
        println!("6,000 files of 16 KiB: {:?}", started.elapsed());
        assert_eq!(files.digests.len(), 6_000);
        stop.cancel();
        assert!(ContextFiles::read(folder.path(), &ignore, &stop).is_err());
    }
}
