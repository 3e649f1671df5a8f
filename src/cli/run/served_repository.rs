//! A bare repository that serves one commit of a local repository to agents.
//!
//! It borrows the objects of the user's repository (Git's alternates): nothing is copied, and only the
//! commit's branch or tag and the default branch are visible. The user's repository is never written to;
//! the commit of `--dirty` exists only here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use git2::{
    Commit, ErrorCode, IndexAddOption, Repository, RepositoryInitOptions, Signature, StatusOptions,
};
use stagely_protocol::CommitSha;
use tempfile::TempDir;

use super::revision::{
    FolderError, Revision, branch_of_remote, checked_out_branch, default_branch_of_origin, find,
    head, tip_of,
};

/// The most changed files in an error.
const SHOWN_MAX: usize = 5;

/// The branch of a commit without a name: a server only serves commits of its references.
const UNNAMED: &str = "refs/heads/stagely";

/// A bare repository that contains one commit. Dropping the value deletes it.
#[derive(Debug)]
pub(super) struct ServedRepository {
    /// The user's working tree, or the user's repository if it is bare.
    pub(super) origin: PathBuf,
    pub(super) commit: CommitSha,
    /// The full name of the commit's branch or tag, `refs/heads/main`; `None` for a commit without one.
    pub(super) name: Option<String>,
    folder: TempDir,
}

impl ServedRepository {
    /// Serves `revision` of the repository that contains `folder`.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn new(folder: &Path, revision: Revision<'_>) -> Result<Self, FolderError> {
        let user = Repository::discover(folder).map_err(|error| match error.code() {
            ErrorCode::NotFound => FolderError::NoRepository(folder.to_owned()),
            ErrorCode::Owner => FolderError::OtherOwner(folder.to_owned()),
            _ => FolderError::Git(error),
        })?;
        let origin = user.workdir().unwrap_or(user.path()).to_owned();
        let bare = borrow(&user)?;
        let (commit, name) = match revision {
            Revision::Head => {
                refuse_uncommitted(&user)?;
                let head = head(&user, &origin)?;
                (head.commit.id(), head.name)
            }
            Revision::Ref(name) => {
                let found = find(&user, &origin, name)?;
                (found.commit.id(), found.name)
            }
            Revision::Dirty => {
                (commit_all(&user, bare.path(), &origin)?, checked_out_branch(&user))
            }
        };
        let served = Repository::open_bare(bare.path())?;
        let reference = name.as_deref().unwrap_or(UNNAMED);
        served.reference(reference, commit, true, "the commit to build")?;
        point_head(&user, &served, reference)?;
        let commit = commit.to_string().parse().expect("git2 prints object ids");
        Ok(Self { origin, commit, name, folder: bare })
    }

    /// Also serves the commit that `base` names in the user's repository. Returns the name to request: its
    /// branch, which is `main` for `origin/main` too; or the commit's hash if it has no branch, or another
    /// commit has the branch's name.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn add_base(&mut self, base: &str) -> Result<String, FolderError> {
        let user = Repository::open(&self.origin)?;
        let found = find(&user, &self.origin, base)?;
        let commit = found.commit.id();
        let served = Repository::open_bare(self.folder.path())?;
        let branch = found.name.or_else(|| branch_of_remote(&user, base));
        let branch = branch.as_deref().filter(|name| name.starts_with("refs/heads/"));
        if let Some(name) = branch {
            let built = self.name.as_deref().unwrap_or(UNNAMED);
            if name != built || commit.to_string() == self.commit.as_str() {
                served.reference(name, commit, true, "the base to compare with")?;
                return Ok(name.trim_start_matches("refs/heads/").to_owned());
            }
        }
        served.reference("refs/heads/stagely-base", commit, true, "the base to compare with")?;
        Ok(commit.to_string())
    }

    /// The folder of the bare repository.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Points HEAD of `served` to the default branch of the user's repository, as on a remote, so that runs of
/// other branches do not write the caches that all environments read. The branch is served as well,
/// because servers do not announce a HEAD without a commit. `reference` is the reference to build.
fn point_head(user: &Repository, served: &Repository, reference: &str) -> Result<(), git2::Error> {
    let checked_out = checked_out_branch(user);
    let guesses = ["refs/heads/main", "refs/heads/master"].map(str::to_owned);
    let candidates = if user.is_bare() {
        // HEAD of a bare repository is its default branch.
        checked_out.into_iter().chain(guesses).collect::<Vec<_>>()
    } else {
        default_branch_of_origin(user).into_iter().chain(guesses).chain(checked_out).collect()
    };
    for branch in candidates {
        if branch == reference {
            return served.set_head(&branch);
        }
        if let Some(commit) = tip_of(user, &branch) {
            served.reference(&branch, commit, true, "the default branch")?;
            return served.set_head(&branch);
        }
    }
    if reference.starts_with("refs/heads/") { served.set_head(reference) } else { Ok(()) }
}

/// Creates an empty bare repository that borrows the objects of the user's repository.
fn borrow(user: &Repository) -> Result<TempDir, FolderError> {
    let folder = tempfile::Builder::new().prefix("stagely-source-").tempdir()?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    let bare = Repository::init_opts(folder.path(), &options)?;
    bare.config()?.set_bool("uploadpack.allowAnySHA1InWant", true)?;
    let common = fs::canonicalize(user.commondir())?;
    let alternates = folder.path().join("objects/info/alternates");
    fs::create_dir_all(alternates.parent().unwrap_or(folder.path()))?;
    fs::write(alternates, format!("{}\n", common.join("objects").display()))?;
    // The parents of a shallow clone's oldest commits are missing; this file tells Git so.
    copy_if_exists(&common.join("shallow"), &folder.path().join("shallow"))?;
    Ok(folder)
}

fn copy_if_exists(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn refuse_uncommitted(user: &Repository) -> Result<(), FolderError> {
    if user.is_bare() {
        return Ok(());
    }
    let mut options = StatusOptions::new();
    options.include_untracked(true).exclude_submodules(true);
    let statuses = user.statuses(Some(&mut options))?;
    if statuses.is_empty() {
        return Ok(());
    }
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let names = statuses.iter().take(SHOWN_MAX).map(|entry| name(entry.path_bytes())).collect();
    Err(FolderError::Uncommitted { count: statuses.len(), names })
}

/// Commits all files of the working tree into the repository `bare`, as a child of HEAD.
///
/// The commit has the time of HEAD, so that the same files make the same commit and find the same caches.
fn commit_all(user: &Repository, bare: &Path, origin: &Path) -> Result<git2::Oid, FolderError> {
    if user.is_bare() {
        return Err(FolderError::Bare(origin.to_owned()));
    }
    // The same files are ignored as in the user's repository.
    fs::create_dir_all(bare.join("info"))?;
    copy_if_exists(&user.commondir().join("info/exclude"), &bare.join("info/exclude"))?;
    let writing = Repository::open_bare(bare)?;
    writing.set_workdir(origin, false)?;
    let parent = match head(user, origin) {
        Ok(head) => Some(writing.find_commit(head.commit.id())?),
        Err(FolderError::NoCommit(_)) => None,
        Err(error) => return Err(error),
    };
    let mut index = writing.index()?;
    if let Some(parent) = &parent {
        index.read_tree(&parent.tree()?)?;
    }
    index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
    let tree = writing.find_tree(index.write_tree()?)?;
    let when = parent.as_ref().map_or(git2::Time::new(0, 0), Commit::time);
    let author = Signature::new("stagely", "stagely@localhost", &when)?;
    let parents: Vec<&Commit<'_>> = parent.iter().collect();
    Ok(writing.commit(None, &author, &author, "uncommitted changes", &tree, &parents)?)
}

#[cfg(test)]
mod tests;
