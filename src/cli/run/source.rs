//! The repository that `stagely run` builds: at an address, or in a folder of this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use secrecy::SecretString;
use stagely_agent::git::SERVED_FOLDER;
use stagely_protocol::CommitSha;
use stagely_state::Name;
use url::Url;

use super::git_server::GitServer;
use super::revision::{ResolvedRef, Revision, branch_of_remote, find, head};
use super::served_repository::ServedRepository;
use super::user_repository::{FolderError, UserRepository};
use crate::core::intake::names::environment_of;

/// The repository named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RepositoryLocation {
    /// The address of a repository.
    Address(Url),
    /// A folder of this machine.
    Folder(PathBuf),
}

impl RepositoryLocation {
    /// Reads an address, which has a scheme or the form `git@host:owner/repository`, or else a folder.
    ///
    /// # Errors
    /// Core cannot clone by the scheme.
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
                url.to_file_path()
                    .ok()
                    .with_context(|| format!("{text:?} does not name a folder"))?,
            )),
            scheme => bail!("repositories are cloned by https, http or git, not by {scheme}"),
        }
    }
}

/// The repository part of a request for a run.
#[derive(Debug)]
pub(super) struct RunSource {
    /// The address to clone from.
    pub(super) repository: String,
    /// A branch, a tag or a commit.
    pub(super) reference: Option<String>,
    pub(super) clone_token: Option<SecretString>,
    /// The project's name, unless it can be derived from the address.
    pub(super) project: Option<String>,
    /// The environment's name, unless it can be derived from the reference.
    pub(super) environment: Option<String>,
    /// The branch or commit to compare with.
    pub(super) base: Option<String>,
    /// Keeps the served repository until the run has ended.
    _served: Option<(GitServer, ServedRepository)>,
}

impl RunSource {
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

    /// Sets the base to compare with.
    pub(super) fn compared_with(self, base: Option<String>) -> Self {
        Self { base, ..self }
    }

    /// Serves a folder of this machine to agents on this machine.
    ///
    /// # Errors
    /// The folder cannot be built from or served.
    pub(super) async fn serve(
        folder: &Path,
        revision: Revision<'_>,
        base: Option<&str>,
    ) -> anyhow::Result<Self> {
        let repository = ServedRepository::new(folder, revision)?;
        let base = base.map(|base| repository.add_base(base)).transpose()?;
        let name = Name::nearest(&folder_name(repository.origin()));
        let address = format!("/{SERVED_FOLDER}/{name}.git");
        let server = GitServer::start(repository.paths(&address)?, &address).await?;
        let reference = repository.name.clone().unwrap_or_else(|| repository.commit.to_string());
        Ok(Self {
            repository: server.url.to_string(),
            reference: Some(reference),
            clone_token: Some(server.token.clone()),
            project: Some(name.into()),
            environment: None,
            base,
            _served: Some((server, repository)),
        })
    }

    /// A folder's commit on its remote, for agents that cannot reach this process.
    ///
    /// # Errors
    /// The folder has no remote, or the commit is not pushed.
    pub(super) fn remote_of(
        folder: &Path,
        revision: Revision<'_>,
        base: Option<&str>,
        clone_token: Option<SecretString>,
    ) -> anyhow::Result<Self> {
        if revision == Revision::Dirty {
            bail!(
                "--dirty needs builders on this machine, and no --detach: uncommitted changes cannot be \
                 cloned from elsewhere"
            );
        }
        let user = UserRepository::open(folder)?;
        let ResolvedRef { commit, name } = if let Revision::Ref(name) = revision {
            find(&user, name)?
        } else {
            user.refuse_uncommitted()?;
            head(&user)?
        };
        let base = base.map(|base| base_on_remote(&user, base)).transpose()?;
        // With the user's `insteadOf`.
        let address = user.git.line(&["remote", "get-url", "origin"]).context(
            "the builders cannot clone from this folder, and it has no remote `origin`; give the \
             address of the repository instead of a folder",
        )?;
        let RepositoryLocation::Address(url) = RepositoryLocation::parse(&address)? else {
            bail!("the remote `origin` is {address}, which the builders cannot reach");
        };
        if !is_pushed(&user, &commit)? {
            bail!("commit {commit} is on no branch of `origin`: push it first");
        }
        let branch = name.as_deref().and_then(|name| name.strip_prefix("refs/heads/"));
        Ok(Self {
            environment: branch.map(environment_of),
            ..Self::at(&url, Some(commit.to_string()), clone_token).compared_with(base)
        })
    }
}

/// The name of a repository's folder: `app` of `/home/user/app/` and of `/srv/app.git`.
fn folder_name(origin: &Path) -> String {
    let name = origin.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    name.strip_suffix(".git").unwrap_or(&name).to_owned()
}

/// Converts `git@host:owner/repository.git` and `ssh://git@host/owner/repository.git` to https: agents
/// have no SSH keys, and servers offer the same repository by both.
fn https_of_ssh(text: &str) -> Option<Url> {
    let (host, path) = match text.strip_prefix("ssh://") {
        Some(rest) => rest.split_once('/')?,
        None if text.contains("://") => return None,
        None => text.split_once(':').filter(|(host, _)| host.contains('@'))?,
    };
    let host = host.rsplit('@').next()?.split(':').next()?;
    format!("https://{host}/{}", path.trim_start_matches('/')).parse().ok()
}

/// The name of `base` on the remote: its branch, which is `main` for `origin/main` too, or else the commit.
fn base_on_remote(user: &UserRepository, base: &str) -> Result<String, FolderError> {
    let found = find(user, base)?;
    let branch = match found.name {
        Some(name) => Some(name),
        None => branch_of_remote(user, base)?,
    };
    let branch = branch.as_deref().and_then(|name| name.strip_prefix("refs/heads/"));
    Ok(branch.map_or_else(|| found.commit.to_string(), str::to_owned))
}

fn is_pushed(user: &UserRepository, commit: &CommitSha) -> Result<bool, FolderError> {
    let contains = format!("--contains={commit}");
    let branch =
        user.git.line(&["for-each-ref", "--count=1", &contains, "refs/remotes/origin/"])?;
    Ok(!branch.is_empty())
}

#[cfg(test)]
mod tests;
