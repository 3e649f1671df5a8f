//! Which servers have the files of a repository.

use std::path::Path;

use url::Url;

use super::LargeFiles;
use crate::git::address::over_https;
use crate::git::error::{CloneError, without_credentials};
use crate::git::filters::is_file_inside;
use crate::proxy::is_loopback;

/// The LFS servers to ask: that of `.lfsconfig`, or else the one that belongs to the repository's address. On loopback
/// both, because there the repository may be a folder that has the files.
pub(super) fn endpoints(files: &LargeFiles) -> Result<Vec<Url>, CloneError> {
    let url = files.url.as_str().trim_end_matches('/');
    let url = url.strip_suffix(".git").unwrap_or(url);
    // Servers for Git's own protocol have none of LFS.
    let own = format!("{url}.git/info/lfs").replacen("git://", "https://", 1);
    let texts = match configured_endpoint(&files.root) {
        Some(configured) if is_loopback(&files.url) => vec![own, over_https(&configured)],
        Some(configured) => vec![over_https(&configured)],
        None => vec![own],
    };
    texts.iter().map(|text| endpoint(text)).collect()
}

fn endpoint(text: &str) -> Result<Url, CloneError> {
    let refused = |detail| CloneError::Address { url: without_credentials(text), detail };
    let url: Url = text.parse().map_err(|_| refused("the lfs.url of .lfsconfig is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused("Git LFS files are fetched by https or http"));
    }
    if url.password().is_some() || !url.username().is_empty() {
        return Err(refused("it holds a user name or password; tokens are given apart"));
    }
    Ok(url)
}

/// The server that `.lfsconfig` names.
///
/// Source: Git LFS documentation, `git-lfs-config`.
fn configured_endpoint(root: &Path) -> Option<String> {
    let file = Path::new(".lfsconfig");
    if !is_file_inside(root, file) {
        return None;
    }
    let config = git2::Config::open(&root.join(file)).ok()?;
    let names = ["lfs.url", "remote.origin.lfsurl"];
    names.iter().find_map(|name| config.get_string(name).ok())
}
