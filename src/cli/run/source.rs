//! What `stagely run` builds: a repository at an address, or a folder of this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use git2::Repository;
use secrecy::SecretString;
use stagely_protocol::CommitSha;
use stagely_state::Name;
use url::{Host, Url};

use super::git_server::GitServer;
use super::snapshot::{Snapshot, Wanted};
use crate::core::intake::names::environment_of;

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A repository that is served somewhere.
    Address(Url),
    /// A folder.
    Folder(PathBuf),
}

impl Named {
    /// An address has a scheme, or is what Git takes for one: `git@host:owner/repository`.
    ///
    /// # Errors
    /// A scheme that core does not clone from.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(url) = https_of_ssh(text) {
            return Ok(Self::Address(url));
        }
        if !text.contains("://") {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let url: Url = text.parse().with_context(|| format!("{text:?} is not an address"))?;
        match url.scheme() {
            "http" | "https" | "git" => Ok(Self::Address(url)),
            "file" => Ok(Self::Folder(
                url.to_file_path().ok().with_context(|| format!("{text:?} names no file"))?,
            )),
            scheme => bail!("repositories are cloned by https, http or git, not by {scheme}"),
        }
    }
}

/// What goes into the request for a run.
#[derive(Debug)]
pub(super) struct Source {
    /// Where to clone from.
    pub(super) repository: String,
    /// A branch, a tag or a commit.
    pub(super) reference: Option<String>,
    /// Opens the repository.
    pub(super) clone_token: Option<SecretString>,
    /// The project's name, where the address does not give a good one.
    pub(super) project: Option<String>,
    /// The environment's name, where the reference does not give a good one.
    pub(super) environment: Option<String>,
    /// The branch or commit to compare with.
    pub(super) base: Option<String>,
    /// What is served while the run goes on.
    _served: Option<(GitServer, Snapshot)>,
}

impl Source {
    /// A repository at an address.
    pub(super) fn at(
        repository: &Url,
        reference: Option<String>,
        clone_token: Option<SecretString>,
    ) -> Self {
        let repository = repository.to_string();
        Self {
            repository,
            reference,
            clone_token,
            project: None,
            environment: None,
            base: None,
            _served: None,
        }
    }

    /// The same, compared with `base`.
    pub(super) fn compared_with(self, base: Option<String>) -> Self {
        Self { base, ..self }
    }

    /// A folder of this machine, served to agents of this machine.
    ///
    /// # Errors
    /// A folder that cannot be built from, or not be served.
    pub(super) async fn serve(
        folder: &Path,
        wanted: Wanted<'_>,
        base: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut snapshot = Snapshot::take(folder, wanted)?;
        let base = base.map(|base| snapshot.add_base(base)).transpose()?;
        let name = Name::nearest(&folder_name(&snapshot.origin));
        let server = GitServer::start(snapshot.path().to_owned(), name.as_str()).await?;
        let reference = snapshot.name.clone().unwrap_or_else(|| snapshot.commit.to_string());
        Ok(Self {
            repository: server.url.to_string(),
            reference: Some(reference),
            clone_token: Some(server.token.clone()),
            project: Some(name.into()),
            environment: None,
            base,
            _served: Some((server, snapshot)),
        })
    }

    /// A folder's commit as its remote has it, for agents that do not reach this machine, or not
    /// any more.
    ///
    /// # Errors
    /// A folder without a remote, or a commit that was not pushed.
    pub(super) fn remote_of(
        folder: &Path,
        wanted: Wanted<'_>,
        base: Option<&str>,
        clone_token: Option<SecretString>,
    ) -> anyhow::Result<Self> {
        if wanted == Wanted::Dirty {
            bail!(
                "--dirty needs builders on this machine and a command that stays: what is not pushed \
                 cannot be cloned elsewhere"
            );
        }
        let mut snapshot = Snapshot::take(folder, wanted)?;
        let base = base.map(|base| snapshot.add_base(base)).transpose()?;
        let user = Repository::open(&snapshot.origin)?;
        let origin = user.find_remote("origin").context(
            "the builders cannot clone from this folder, and it has no remote `origin`; give the \
             address of the repository instead of a folder",
        )?;
        let address = origin.url().context("the address of the remote `origin` is not text")?;
        let Named::Address(url) = Named::parse(address)? else {
            bail!("the remote `origin` is {address}, which the builders do not reach");
        };
        if !is_pushed(&user, &snapshot.commit)? {
            bail!("commit {} is on no branch of `origin`: push it first", snapshot.commit);
        }
        let branch = snapshot.name.as_deref().and_then(|name| name.strip_prefix("refs/heads/"));
        Ok(Self {
            environment: branch.map(environment_of),
            ..Self::at(&url, Some(snapshot.commit.to_string()), clone_token).compared_with(base)
        })
    }
}

/// Whether agents of the core at `server` reach loopback ports of this machine.
pub(super) fn is_on_this_machine(server: &Url) -> bool {
    match server.host() {
        Some(Host::Domain(domain)) => domain == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The name of a repository's folder: `app` of `/home/me/app/` and of `/srv/app.git`.
fn folder_name(origin: &Path) -> String {
    let name = origin.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.strip_suffix(".git").unwrap_or(&name).to_owned()
}

/// `git@host:owner/repository.git` and `ssh://git@host/owner/repository.git` as https: agents have no
/// SSH keys, and servers that take both show the same repository at both.
fn https_of_ssh(text: &str) -> Option<Url> {
    let (host, path) = match text.strip_prefix("ssh://") {
        Some(rest) => rest.split_once('/')?,
        None if text.contains("://") => return None,
        None => text.split_once(':').filter(|(host, _)| host.contains('@'))?,
    };
    let host = host.rsplit('@').next()?.split(':').next()?;
    format!("https://{host}/{}", path.trim_start_matches('/')).parse().ok()
}

fn is_pushed(user: &Repository, commit: &CommitSha) -> Result<bool, git2::Error> {
    let commit = git2::Oid::from_str(commit.as_str())?;
    for reference in user.references_glob("refs/remotes/origin/*")? {
        let Some(tip) = reference?.resolve()?.target() else { continue };
        if tip == commit || user.graph_descendant_of(tip, commit)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_addresses_are_told_apart() {
        let address = |text| match Named::parse(text).unwrap() {
            Named::Address(url) => url.to_string(),
            Named::Folder(path) => format!("folder {}", path.display()),
        };
        assert_eq!(address("https://host/o/r"), "https://host/o/r");
        assert_eq!(address("git@host:o/r.git"), "https://host/o/r.git");
        assert_eq!(address("ssh://git@host:22/o/r"), "https://host/o/r");
        assert_eq!(address("."), "folder .");
        assert_eq!(address("a:b"), "folder a:b");
        assert_eq!(address("file:///srv/r"), "folder /srv/r");
        assert!(Named::parse("ftp://host/r").is_err());
    }
}
