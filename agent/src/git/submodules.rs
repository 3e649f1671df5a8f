//! Fetches the submodules of a checkout, and theirs.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use git2::{Repository, Submodule, SubmoduleUpdate};
use stagely_protocol::SUBMODULE_LEFT_EMPTY;
use url::Url;

use super::address::over_https;
use super::error::{CloneError, without_credentials};
use super::filters::{Filtered, UnappliedFilter};
use super::lfs::LargeFiles;
use super::remote::{self, Access};

/// Deeper nesting counts as a circle.
const DEPTH_MAX: usize = 8;

/// What was found in a checkout and its submodules. Paths start at the root of the whole checkout.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) large_files: Vec<LargeFiles>,
    pub(super) unapplied: Vec<UnappliedFilter>,
    /// The number of submodules that were fetched.
    pub(super) submodules: u32,
    /// The submodules without an address.
    pub(super) without_address: Vec<String>,
}

impl Contents {
    /// Adds what a checkout at `root` has, of the repository of `access`.
    pub(super) fn add(&mut self, filtered: Filtered, access: &Access, root: &Path, prefix: &Path) {
        if !filtered.pointers.is_empty() {
            self.large_files.push(LargeFiles {
                root: root.to_owned(),
                prefix: prefix.to_owned(),
                url: access.url.clone(),
                token: access.token.clone(),
                pointers: filtered.pointers,
            });
        }
        self.unapplied.extend(filtered.unapplied.into_iter().map(|unapplied| {
            let path = prefix.join(unapplied.path).display().to_string();
            UnappliedFilter { path, ..unapplied }
        }));
    }
}

/// Fetches submodules.
pub(super) struct SubmoduleFetcher<'a> {
    /// The whole checkout.
    pub(super) root: &'a Path,
    /// Whether a commit is searched in the history if the server does not serve single commits.
    pub(super) has_search: bool,
    pub(super) contents: &'a mut Contents,
}

impl SubmoduleFetcher<'_> {
    /// Fetches all submodules of the checkout at `path`, which is empty for the whole checkout and has the address of
    /// `parent`, and theirs. There are `depth` checkouts around it.
    pub(super) fn fetch_all(
        &mut self,
        parent: &Access,
        path: &Path,
        depth: usize,
    ) -> Result<(), CloneError> {
        let repository = Repository::open(self.root.join(path)).map_err(CloneError::from_local)?;
        let repository = Access::isolated(repository)?;
        let modules = repository.submodules().map_err(CloneError::from_local)?;
        if modules.is_empty() {
            return Ok(());
        }
        let addresses = remote::submodule_addresses(parent, &repository)?;
        for module in modules {
            let address = addresses.get(module.path().as_os_str().as_bytes());
            self.fetch(parent, path, &module, address.map(String::as_str), depth)?;
        }
        Ok(())
    }

    /// Fetches one submodule, from `address` if there is one, and from that of `.gitmodules` otherwise.
    fn fetch(
        &mut self,
        parent: &Access,
        parent_path: &Path,
        module: &Submodule<'_>,
        address: Option<&str>,
        depth: usize,
    ) -> Result<(), CloneError> {
        let path = parent_path.join(module.path());
        // A module without an entry in the tree is only a line of .gitmodules. The path of an entry is a folder of
        // the tree, so it cannot lead out of the checkout.
        let Some(commit) = module.head_id() else { return Ok(()) };
        let is_left_empty = address == Some(SUBMODULE_LEFT_EMPTY);
        if is_left_empty || module.update_strategy() == SubmoduleUpdate::None {
            return Ok(());
        }
        // Somebody has added a clone to the tree. Git leaves the folder empty, and so does `docker build`.
        let Some(url) = module.url().ok().flatten() else {
            self.contents.without_address.push(path.display().to_string());
            return Ok(());
        };
        let result = access_to(parent, address.unwrap_or(url)).and_then(|access| {
            if depth == DEPTH_MAX {
                let url = without_credentials(access.url.as_str());
                let detail = "submodules are nested too deeply";
                return Err(CloneError::Address { url, detail });
            }
            let commit = commit.to_string().parse();
            let commit = commit.map_err(|error| CloneError::Internal(format!("{error}")))?;
            let (branch, dest) = (module.branch().ok().flatten(), self.root.join(&path));
            let filtered = remote::fetch(&access, &commit, branch, self.has_search, &dest)?;
            self.contents.add(filtered, &access, &dest, &path);
            Ok((access, dest))
        });
        let (access, dest) = result.map_err(|error| in_submodule(error, &path, url))?;
        self.contents.submodules += 1;
        self.fetch_all(&access, &path, depth + 1)?;
        remote::remove_repository(&access, &dest)
    }
}

/// Adds to an error which submodule has it.
fn in_submodule(error: CloneError, path: &Path, url: &str) -> CloneError {
    match error {
        CloneError::Cancelled | CloneError::DiskFull => error,
        error => {
            // Relative addresses and those of SSH are no URLs, and have no credentials that Git would use.
            let is_url = Url::parse(url).is_ok();
            let address = if is_url { without_credentials(url) } else { url.to_owned() };
            let path = path.display().to_string();
            CloneError::Submodule { path, address, source: Box::new(error) }
        }
    }
}

/// Access to the submodule at `url`, which may be relative. It gets the token if it is on the same server.
fn access_to(parent: &Access, url: &str) -> Result<Access, CloneError> {
    let url = if url.starts_with("./") || url.starts_with("../") {
        join(&parent.url, url).ok_or_else(|| {
            let detail = "the relative address of a submodule leads nowhere";
            CloneError::Address { url: without_credentials(parent.url.as_str()), detail }
        })?
    } else if url.starts_with('/') || url.starts_with("file:") {
        let detail = "it is a folder; `git submodule update --init` checks it out for a local run";
        return Err(CloneError::Address { url: url.to_owned(), detail });
    } else {
        without_user(over_https(url))
    };
    let mut access = Access::new(&url, None, Arc::clone(&parent.monitor))?;
    if access.url.origin() == parent.url.origin() {
        access.token.clone_from(&parent.token);
    }
    Ok(access)
}

/// Resolves `relative` as git does: the repository's address counts as a folder.
fn join(base: &Url, relative: &str) -> Option<String> {
    let mut base = base.clone();
    let path = format!("{}/", base.path().trim_end_matches('/'));
    base.set_path(&path);
    base.join(relative).ok().map(String::from)
}

/// Bitbucket puts the name of the user who adds a submodule into its address.
fn without_user(url: String) -> String {
    let Ok(mut parsed) = Url::parse(&url) else { return url };
    // This fails only for an address without a host, which has no user. A password is refused later.
    let _ = parsed.set_username("");
    parsed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(url: &str) -> Access {
        Access::new(url, Some("token".into()), Arc::default()).unwrap()
    }

    #[test]
    fn the_token_stays_on_its_server() {
        let parent = parent("https://git.example/team/app.git");
        let has_token = |url| access_to(&parent, url).unwrap().token.is_some();
        assert!(has_token("https://git.example/team/lib.git"));
        assert!(has_token("../lib.git"));
        assert!(has_token("git@git.example:team/lib.git"));
        assert!(has_token("https://alice@git.example/team/lib.git"));
        assert!(!has_token("https://evil.example/team/lib.git"));
        assert!(!has_token("http://git.example/team/lib.git"));
        assert!(!has_token("https://git.example:8443/team/lib.git"));
    }

    #[test]
    fn relative_addresses_are_taken_from_the_repository() {
        let parent = parent("https://git.example/team/app.git");
        let address = |url| access_to(&parent, url).unwrap().url.to_string();
        assert_eq!(address("../lib.git"), "https://git.example/team/lib.git");
        assert_eq!(address("ssh://git@git.example/a/b"), "https://git.example/a/b");
    }

    #[test]
    fn files_are_refused() {
        let parent = parent("https://git.example/team/app.git");
        assert!(matches!(access_to(&parent, "/srv/git/x"), Err(CloneError::Address { .. })));
        assert!(matches!(access_to(&parent, "file:///srv/x"), Err(CloneError::Address { .. })));
    }
}
