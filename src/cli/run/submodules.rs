//! The submodules of a folder: which commits they have, and from where an agent gets them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::user_git::{GitError, UserGit};
use super::user_repository::UserRepository;

/// The mode of a submodule in a tree and in an index.
const GITLINK: &[u8] = b"160000";

/// A submodule that is in the tree and in `.gitmodules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListedSubmodule {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// The address in `.gitmodules`.
    pub(super) url: String,
    /// The commit in the tree.
    pub(super) commit: String,
}

/// The submodules of a commit.
///
/// # Errors
/// [`GitError`]
pub(super) fn of_commit(git: &UserGit, commit: &str) -> Result<Vec<ListedSubmodule>, GitError> {
    let blob = format!("{commit}:.gitmodules");
    listed(git, &blob, &["ls-tree", "-r", "-z", "--full-tree", commit], 2)
}

/// The submodules of the index of `git`.
///
/// # Errors
/// [`GitError`]
pub(super) fn of_index(git: &UserGit) -> Result<Vec<ListedSubmodule>, GitError> {
    listed(git, ":.gitmodules", &["ls-files", "--stage", "-z"], 1)
}

/// `list` prints one entry for each file: the mode, the id as the word `id_at`, a tabulator, and the path.
fn listed(
    git: &UserGit,
    blob: &str,
    list: &[&str],
    id_at: usize,
) -> Result<Vec<ListedSubmodule>, GitError> {
    // Most repositories have no submodules, and many files.
    if git.ask(&["rev-parse", "--verify", "--quiet", blob])?.is_none() {
        return Ok(Vec::new());
    }
    let mut commits = BTreeMap::new();
    for entry in git.run(list)?.split(|byte| *byte == 0) {
        let mut parts = entry.splitn(2, |byte| *byte == b'\t');
        let (Some(words), Some(path)) = (parts.next(), parts.next()) else { continue };
        let words: Vec<&[u8]> = words.split(|byte| *byte == b' ').collect();
        if words.first() == Some(&GITLINK)
            && let Some(id) = words.get(id_at)
        {
            commits.insert(path.to_vec(), String::from_utf8_lossy(id).into_owned());
        }
    }
    let mut modules: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let fields = r"^submodule\..*\.(path|url|update)$";
    let config = ["config", "--blob", blob, "-z", "--get-regexp", fields];
    for entry in git.run_or_nothing(&config)?.split(|byte| *byte == 0) {
        let mut parts = entry.splitn(2, |byte| *byte == b'\n');
        let (Some(key), Some(value)) = (parts.next(), parts.next()) else { continue };
        let key = String::from_utf8_lossy(key).into_owned();
        let named = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.'));
        if let Some((name, field)) = named {
            modules.entry(name.to_owned()).or_default().insert(field.to_owned(), value.to_vec());
        }
    }
    let submodule = |(name, mut fields): (String, BTreeMap<String, Vec<u8>>)| {
        if fields.get("update").is_some_and(|update| update == b"none") {
            return None;
        }
        let (path, url) = (fields.remove("path")?, fields.remove("url")?);
        let commit = commits.remove(&path)?;
        let url = String::from_utf8_lossy(&url).into_owned();
        Some(ListedSubmodule { name, path: PathBuf::from(OsStr::from_bytes(&path)), url, commit })
    };
    Ok(modules.into_iter().filter_map(submodule).collect())
}

/// Whether the user's git would fetch a submodule. The configuration of the user's repository has precedence over
/// `.gitmodules`.
///
/// Source: Git documentation, `gitsubmodules`, "Active submodules", and `git-config`, `submodule.<name>.update`.
///
/// # Errors
/// [`GitError`]
pub(super) fn is_fetched(
    user: &UserRepository,
    submodule: &ListedSubmodule,
) -> Result<bool, GitError> {
    let setting = |options: &[&str], name: &str| {
        user.config(options, &format!("submodule.{}.{name}", submodule.name))
    };
    Ok(setting(&[], "update")?.as_deref() != Some("none")
        && setting(&["--type=bool"], "active")?.as_deref() != Some("false"))
}

/// The address from which the user's git would fetch a submodule: with the user's configuration, resolved if it is
/// relative, and with `insteadOf`.
///
/// Source: Git documentation, `git-submodule`, "add" and "init".
///
/// # Errors
/// [`GitError`]
pub(super) fn address_of(
    user: &UserRepository,
    submodule: &ListedSubmodule,
) -> Result<String, GitError> {
    let address = match user.config(&[], &format!("submodule.{}.url", submodule.name))? {
        Some(address) => address,
        None if submodule.url.starts_with("./") || submodule.url.starts_with("../") => {
            let base = match user.config(&[], "remote.origin.url")? {
                Some(base) => base,
                // Git takes the folder itself for the origin.
                None => user.root.display().to_string(),
            };
            resolve(&base, &submodule.url)
        }
        None => submodule.url.clone(),
    };
    user.git.line(&["ls-remote", "--get-url", &address])
}

/// The folder that `address` names, if it names one.
pub(super) fn folder_of(address: &str) -> Option<&Path> {
    let path = address.strip_prefix("file://").unwrap_or(address);
    path.starts_with('/').then(|| Path::new(path))
}

/// Resolves `relative` as Git does, also from a path and from `host:path`.
fn resolve(base: &str, relative: &str) -> String {
    let mut base = base.trim_end_matches('/').to_owned();
    let (mut rest, mut separator) = (relative, '/');
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            rest = after;
            if let Some(at) = base.rfind('/') {
                base.truncate(at);
            } else if let Some(at) = base.rfind(':') {
                base.truncate(at);
                separator = ':';
            }
        } else {
            return format!("{base}{separator}{}", rest.trim_end_matches('/'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_are_resolved_as_git_does() {
        let cases = [
            ("https://host/team/app.git", "../lib.git", "https://host/team/lib.git"),
            ("https://host/team/app.git/", "../../x/lib/", "https://host/x/lib"),
            ("git@host:team/app.git", "../lib.git", "git@host:team/lib.git"),
            ("git@host:app.git", "../lib.git", "git@host:lib.git"),
            ("/srv/app", "./lib", "/srv/app/lib"),
            ("/srv/app", "../lib.git", "/srv/lib.git"),
        ];
        for (base, relative, address) in cases {
            assert_eq!(resolve(base, relative), address, "{base} {relative}");
        }
    }
}
