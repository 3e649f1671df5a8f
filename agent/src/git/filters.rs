//! Filters that attributes ask for and libgit2 does not have: Git LFS, encodings, and programs of the user's.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{AttrCheckFlags, AttrValue, Repository};

use super::encoding::FileEncoding;
use super::error::CloneError;
use super::pointer::{POINTER_BYTES_MAX, Pointer};
use super::thread::FetchMonitor;

/// The kind of an index entry.
const KIND: u32 = 0o170_000;
const REGULAR_FILE: u32 = 0o100_000;

/// The largest file that is encoded, which happens in memory.
const ENCODED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A filter that was not applied: the files are as they are in Git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnappliedFilter {
    /// The value of the attribute `filter`.
    pub filter: String,
    /// The first of the files.
    pub path: String,
}

/// What is left to do after a checkout.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    /// Files that Git LFS keeps elsewhere, with their paths in the checkout.
    pub(super) pointers: Vec<(PathBuf, Pointer)>,
    pub(super) unapplied: Vec<UnappliedFilter>,
}

/// Encodes the files of the checkout that have another encoding, and finds the other filters.
///
/// # Errors
/// [`CloneError`]
pub(super) fn apply(
    repository: &Repository,
    monitor: &FetchMonitor,
) -> Result<Filtered, CloneError> {
    let mut filtered = Filtered::default();
    let Some(root) = repository.workdir() else { return Ok(filtered) };
    let attribute = |path: &Path, name: &str| -> Result<Option<String>, CloneError> {
        let value = repository.get_attr_bytes(path, name, AttrCheckFlags::NO_SYSTEM);
        let value = value.map_err(CloneError::from_local)?;
        Ok(match AttrValue::always_bytes(value) {
            AttrValue::Bytes(text) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
    };
    let index = repository.index().map_err(CloneError::from_local)?;
    for entry in index.iter().filter(|entry| entry.mode & KIND == REGULAR_FILE) {
        if !monitor.may_continue() {
            return Err(CloneError::Cancelled);
        }
        let path = Path::new(OsStr::from_bytes(&entry.path));
        if let Some(filter) = attribute(path, "filter")? {
            if filter != "lfs" {
                let is_known = filtered.unapplied.iter().any(|known| known.filter == filter);
                if !is_known {
                    let path = path.display().to_string();
                    filtered.unapplied.push(UnappliedFilter { filter, path });
                }
            } else if let Some(pointer) = pointer(repository, entry.id)? {
                filtered.pointers.push((path.to_owned(), pointer));
                continue;
            }
        }
        if let Some(encoding) = attribute(path, "working-tree-encoding")? {
            encode(root, path, &encoding)?;
        }
    }
    Ok(filtered)
}

/// Whether `path` is a regular file in the folder `root`, and no link leads there.
pub(super) fn is_file_inside(root: &Path, path: &Path) -> bool {
    let mut place = root.to_owned();
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        place.push(name);
        let Ok(kind) = place.symlink_metadata() else { return false };
        let is_wanted = if names.peek().is_some() { kind.is_dir() } else { kind.is_file() };
        if !is_wanted {
            return false;
        }
    }
    true
}

fn pointer(repository: &Repository, id: git2::Oid) -> Result<Option<Pointer>, CloneError> {
    let objects = repository.odb().map_err(CloneError::from_local)?;
    let (size, _) = objects.read_header(id).map_err(CloneError::from_local)?;
    if size > POINTER_BYTES_MAX {
        return Ok(None);
    }
    let object = objects.read(id).map_err(CloneError::from_local)?;
    Ok(Pointer::parse(object.data()))
}

fn encode(root: &Path, path: &Path, name: &str) -> Result<(), CloneError> {
    let failed = |detail: String| CloneError::Encoding {
        path: path.display().to_string(),
        encoding: name.to_owned(),
        detail,
    };
    let Some(encoding) = FileEncoding::find(name) else {
        return Err(failed("the encoding is not known".to_owned()));
    };
    if matches!(encoding, FileEncoding::Utf8) {
        return Ok(());
    }
    // The commit may try to lead out of the checkout by links.
    if !is_file_inside(root, path) {
        return Err(failed("it is no regular file".to_owned()));
    }
    let file = root.join(path);
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    if size > ENCODED_BYTES_MAX {
        return Err(failed(format!("it has more than {} MiB", ENCODED_BYTES_MAX >> 20)));
    }
    let bytes = fs::read(&file).map_err(|error| CloneError::from_file("read", path, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(format!("in Git it is {error}")))?;
    let encoded = encoding.encode(&text);
    let encoded =
        encoded.ok_or_else(|| failed("it has characters that the encoding lacks".to_owned()))?;
    // The mode of an existing file stays.
    fs::write(&file, encoded).map_err(|error| CloneError::from_file("write", path, &error))
}
