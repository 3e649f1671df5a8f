//! Fetches the submodules of a checkout, and theirs.

use std::path::Path;
use std::sync::Arc;

use git2::{Repository, SubmoduleUpdate};
use url::Url;

use super::error::{CloneError, without_credentials};
use super::remote::{self, Access};

/// Deeper nesting counts as a circle.
const DEPTH_MAX: u32 = 8;

/// The submodules of a checkout.
#[derive(Debug, Default)]
pub(super) struct Submodules {
    /// The number of those that were fetched.
    pub(super) fetched: u32,
    /// The paths, from the root of the repository that has them, of those without an address.
    pub(super) without_address: Vec<String>,
}

/// Fetches all submodules of the checkout at `root`.
pub(super) fn fetch_all(access: &Access, root: &Path) -> Result<Submodules, CloneError> {
    let mut submodules = Submodules::default();
    fetch_level(access, root, 0, &mut submodules)?;
    Ok(submodules)
}

fn fetch_level(
    parent: &Access,
    root: &Path,
    depth: u32,
    submodules: &mut Submodules,
) -> Result<(), CloneError> {
    let repository = Repository::open(root).map_err(CloneError::from_local)?;
    for module in repository.submodules().map_err(CloneError::from_local)? {
        // A module without an entry in the tree is only a line of .gitmodules. The path of an entry is a folder of
        // the tree, so it cannot lead out of the checkout.
        let Some(commit) = module.head_id() else { continue };
        if module.update_strategy() == SubmoduleUpdate::None {
            continue;
        }
        // Somebody has added a clone to the tree. Git leaves the folder empty, and so does `docker build`.
        let Some(url) = module.url().ok().flatten() else {
            submodules.without_address.push(module.path().display().to_string());
            continue;
        };
        if depth == DEPTH_MAX {
            let detail = "its submodules are nested too deeply";
            return Err(CloneError::Address {
                url: without_credentials(parent.url.as_str()),
                detail,
            });
        }
        let access = access_to(parent, url)?;
        let commit = commit.to_string().parse();
        let commit = commit.map_err(|error| CloneError::Internal(format!("{error}")))?;
        let dest = root.join(module.path());
        remote::fetch(&access, &commit, module.branch().ok().flatten(), &dest)?;
        submodules.fetched += 1;
        fetch_level(&access, &dest, depth + 1, submodules)?;
        remote::remove_repository(&access, &dest)?;
    }
    Ok(())
}

/// Access to the submodule at `url`, which may be relative. It gets the token if it is on the same server.
fn access_to(parent: &Access, url: &str) -> Result<Access, CloneError> {
    let url = if url.starts_with("./") || url.starts_with("../") {
        join(&parent.url, url).ok_or_else(|| {
            let detail = "the relative address of a submodule leads nowhere";
            CloneError::Address { url: without_credentials(parent.url.as_str()), detail }
        })?
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

/// `git@host:path` and `ssh://git@host/path` as https: the machine has no SSH key, but the token may give access.
fn over_https(url: &str) -> String {
    if let Some(rest) = url.strip_prefix("ssh://") {
        let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
        return format!("https://{rest}");
    }
    match url.strip_prefix("git@").and_then(|rest| rest.split_once(':')) {
        Some((host, path)) => format!("https://{host}/{path}"),
        None => url.to_owned(),
    }
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
