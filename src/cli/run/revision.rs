//! Revisions of a local repository: names → commits.

use std::io;
use std::path::{Path, PathBuf};

use git2::{Commit, ErrorCode, ObjectType, Repository};
use thiserror::Error;

/// The revision of a repository to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revision<'a> {
    /// The checked-out commit. Uncommitted changes are refused.
    Head,
    /// The files in the folder, including uncommitted changes.
    Dirty,
    /// A branch, a tag or a commit.
    Ref(&'a str),
}

/// A commit, and the full name of its branch or tag.
pub(super) struct ResolvedRef<'a> {
    pub(super) commit: Commit<'a>,
    pub(super) name: Option<String>,
}

/// Why a folder cannot be built from.
#[derive(Debug, Error)]
pub(super) enum FolderError {
    #[error("{0} is not in a Git repository; `git init` and commit, or give the address of one")]
    NoRepository(PathBuf),
    /// Git does not read repositories of other users.
    #[error(
        "{0} belongs to another user; if you trust it: git config --global --add safe.directory {0}"
    )]
    OtherOwner(PathBuf),
    #[error("{0} has no commit yet: commit first, or build the uncommitted files with --dirty")]
    NoCommit(PathBuf),
    #[error("{folder} has no branch, tag or commit {name:?}")]
    NoSuchRef { folder: PathBuf, name: String },
    #[error(
        "{} changed and not committed: {}; commit them, include them with --dirty, or name a commit \
         with --ref", files(*count), names.join(", ")
    )]
    Uncommitted {
        count: usize,
        /// The first changed files.
        names: Vec<String>,
    },
    /// `--dirty` for a repository without a working tree.
    #[error("{0} is a bare repository, which has no uncommitted changes")]
    Bare(PathBuf),
    #[error("cannot read the repository")]
    Git(#[from] git2::Error),
    #[error("cannot create a temporary repository")]
    Io(#[from] io::Error),
}

fn files(count: usize) -> String {
    if count == 1 { "1 file is".to_owned() } else { format!("{count} files are") }
}

pub(super) fn head<'a>(
    user: &'a Repository,
    origin: &Path,
) -> Result<ResolvedRef<'a>, FolderError> {
    match user.head() {
        Ok(head) => {
            Ok(ResolvedRef { commit: head.peel_to_commit()?, name: checked_out_branch(user) })
        }
        Err(error) if error.code() == ErrorCode::UnbornBranch => {
            Err(FolderError::NoCommit(origin.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The checked-out branch, also a branch without a commit.
pub(super) fn checked_out_branch(user: &Repository) -> Option<String> {
    let head = user.find_reference("HEAD").ok()?;
    let branch = head.symbolic_target().ok().flatten()?;
    branch.starts_with("refs/heads/").then(|| branch.to_owned())
}

/// Finds a branch, a tag or a commit by its name.
pub(super) fn find<'a>(
    user: &'a Repository,
    origin: &Path,
    name: &str,
) -> Result<ResolvedRef<'a>, FolderError> {
    let unknown = |_| FolderError::NoSuchRef { folder: origin.to_owned(), name: name.to_owned() };
    if let Ok(reference) = user.resolve_reference_from_short_name(name) {
        let full_name = reference
            .name()
            .ok()
            .filter(|name| name.starts_with("refs/heads/") || name.starts_with("refs/tags/"));
        return Ok(ResolvedRef {
            commit: reference.peel_to_commit().map_err(unknown)?,
            name: full_name.map(str::to_owned),
        });
    }
    let object = user.revparse_single(name).map_err(unknown)?;
    let commit = object.peel(ObjectType::Commit).map_err(unknown)?;
    Ok(ResolvedRef {
        commit: commit.into_commit().expect("the object was peeled to a commit"),
        name: None,
    })
}

/// The local name of a remote branch: `refs/heads/main` of `origin/main`.
pub(super) fn branch_of_remote(user: &Repository, name: &str) -> Option<String> {
    let reference = user.resolve_reference_from_short_name(name).ok()?;
    let branch = reference.name().ok()?.strip_prefix("refs/remotes/")?.split_once('/')?.1;
    Some(format!("refs/heads/{branch}"))
}

/// The default branch of `origin` when it was cloned, as a local branch.
pub(super) fn default_branch_of_origin(user: &Repository) -> Option<String> {
    let head = user.find_reference("refs/remotes/origin/HEAD").ok()?;
    let target = head.symbolic_target().ok().flatten()?;
    let branch = target.strip_prefix("refs/remotes/origin/")?;
    Some(format!("refs/heads/{branch}"))
}

/// The commit of `branch`, `refs/heads/main`: that of the local branch, or else of the remote branch.
pub(super) fn tip_of(user: &Repository, branch: &str) -> Option<git2::Oid> {
    let of_remote = branch.replacen("refs/heads/", "refs/remotes/origin/", 1);
    let tip = |name: &str| Some(user.find_reference(name).ok()?.peel_to_commit().ok()?.id());
    tip(branch).or_else(|| tip(&of_remote))
}
