//! The files that `docker compose` reads while it reads a compose file. They must be files of the repository, because their
//! contents end up in containers and in messages.
//!
//! Two parsers of YAML may read one text differently: `docker compose` takes U+0085 for a line break, which YAML 1.2 does
//! not. So the compose files are written again from what was checked, in a form in which nothing is ambiguous, and with
//! absolute paths of the files that they name.

mod references;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use thiserror::Error;

use self::references::References;
use self::yaml::{Node, Size};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The most compose files of a preview.
const FILES_MAX: usize = 64;

const VARIABLES_FILE: &str = ".env";

/// Why the files of a compose file cannot be read.
#[derive(Debug, Error)]
pub(crate) enum FilesError {
    #[error("there is no file `{0}` in the repository")]
    Missing(String),
    #[error("cannot read `{path}`")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not valid YAML: {detail}")]
    Syntax { path: String, detail: String },
    #[error("`{path}` is too large")]
    TooLarge { path: String },
    #[error("`{path}` has `{field}: {value}`, {why}")]
    Outside { path: String, field: &'static str, value: String, why: &'static str },
    #[error("`{path}` has {what}, which previews do not support")]
    Unsupported { path: String, what: String },
}

/// The compose file of a checkout, and the `.env` beside it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ComposeFiles {
    pub(crate) main: PathBuf,
    pub(crate) variables: Option<PathBuf>,
}

/// Finds the compose file `path` in `checkout`, a path without symlinks.
///
/// # Errors
/// [`FilesError`], also if a symlink or `..` leads out of the checkout. If `is_checked`, the files that it names must be in
/// the checkout, too, and all compose files are written again.
pub(crate) fn find(
    checkout: &Path,
    path: &str,
    is_checked: bool,
) -> Result<ComposeFiles, FilesError> {
    let main = checkout.join(path).canonicalize().ok();
    let main = main.filter(|main| main.starts_with(checkout) && main.is_file());
    let main = main.ok_or_else(|| FilesError::Missing(path.to_owned()))?;
    let variables = variables(checkout, folder_of(&main))?;
    if is_checked {
        check(checkout, &main)?;
    }
    Ok(ComposeFiles { main, variables })
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

/// A path as messages show it.
fn shown(path: &Path, checkout: &Path) -> String {
    path.strip_prefix(checkout).unwrap_or(path).display().to_string()
}

/// The file `.env` of a folder.
///
/// # Errors
/// [`FilesError::TooLarge`]
fn variables(checkout: &Path, folder: &Path) -> Result<Option<PathBuf>, FilesError> {
    let path = folder.join(VARIABLES_FILE);
    let found = path.canonicalize().ok();
    let Some(found) = found.filter(|file| file.starts_with(checkout) && file.is_file()) else {
        return Ok(None);
    };
    check_size(&found, &shown(&path, checkout))?;
    Ok(Some(found))
}

/// Checks that a file, if there is one, is not too large to be read.
fn check_size(file: &Path, path: &str) -> Result<(), FilesError> {
    let is_too_large =
        |metadata: fs::Metadata| metadata.is_file() && metadata.len() > FILE_BYTES_MAX;
    if fs::metadata(file).is_ok_and(is_too_large) {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    Ok(())
}

/// Checks the files that `main` names, and those that these name, and writes the compose files among them again.
fn check(checkout: &Path, main: &Path) -> Result<(), FilesError> {
    let mut waiting = VecDeque::from([(main.to_owned(), folder_of(main).to_owned())]);
    let mut seen = BTreeSet::new();
    let mut written: BTreeMap<PathBuf, (String, String)> = BTreeMap::new();
    while let Some((file, base)) = waiting.pop_front() {
        if !seen.insert((file.clone(), base.clone())) {
            continue;
        }
        let path = shown(&file, checkout);
        if seen.len() > FILES_MAX {
            return Err(FilesError::TooLarge { path });
        }
        let documents = read(&file, &path)?;
        let mut references =
            References { checkout, base: &base, path: &path, compose_files: Vec::new() };
        let mut text = String::new();
        for document in &documents {
            text.push_str("---\n");
            references.document(document)?.write(&mut text);
            text.push('\n');
        }
        waiting.extend(references.compose_files);
        match written.entry(file) {
            Entry::Vacant(entry) => drop(entry.insert((path, text))),
            Entry::Occupied(entry) if entry.get().1 != text => {
                let what = "paths that are relative to two folders: it is included or extended in two ways";
                return Err(FilesError::Unsupported { path, what: what.to_owned() });
            }
            Entry::Occupied(_) => {}
        }
    }
    for (file, (path, text)) in written {
        fs::write(file, text).map_err(|source| FilesError::Io { path, source })?;
    }
    Ok(())
}

/// The documents of one compose file.
fn read(file: &Path, path: &str) -> Result<Vec<Rc<Node>>, FilesError> {
    check_size(file, path)?;
    let text = fs::read_to_string(file)
        .map_err(|source| FilesError::Io { path: path.to_owned(), source })?;
    let documents = yaml::parse(&text, path)?;
    let mut size = Size::default();
    for document in &documents {
        size.add(document);
    }
    if size.is_too_large() {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    Ok(documents)
}
