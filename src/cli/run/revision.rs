//! Revisions of the user's repository: names → commits.

use stagely_protocol::CommitSha;

use super::user_git::GitError;
use super::user_repository::{FolderError, UserRepository};

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
pub(super) struct ResolvedRef {
    pub(super) commit: CommitSha,
    pub(super) name: Option<String>,
}

/// The checked-out commit and its branch.
pub(super) fn head(user: &UserRepository) -> Result<ResolvedRef, FolderError> {
    let Some(commit) = commit_of(user, "HEAD")? else {
        return Err(FolderError::NoCommit(user.root.clone()));
    };
    Ok(ResolvedRef { commit, name: checked_out_branch(user)? })
}

/// The checked-out branch, also a branch without a commit.
pub(super) fn checked_out_branch(user: &UserRepository) -> Result<Option<String>, GitError> {
    let head = user.git.ask(&["symbolic-ref", "--quiet", "HEAD"])?;
    Ok(head.filter(|branch| branch.starts_with("refs/heads/")))
}

/// Finds a branch, a tag or a commit by its name.
pub(super) fn find(user: &UserRepository, name: &str) -> Result<ResolvedRef, FolderError> {
    let Some(commit) = commit_of(user, name)? else {
        let folder = user.root.clone();
        return Err(FolderError::NoSuchRef { folder, name: name.to_owned() });
    };
    let name = full_name(user, name)?
        .filter(|name| name.starts_with("refs/heads/") || name.starts_with("refs/tags/"));
    Ok(ResolvedRef { commit, name })
}

/// The local name of a remote branch: `refs/heads/main` of `origin/main`.
pub(super) fn branch_of_remote(
    user: &UserRepository,
    name: &str,
) -> Result<Option<String>, GitError> {
    let name = full_name(user, name)?;
    let branch = name.as_deref().and_then(|name| name.strip_prefix("refs/remotes/"));
    Ok(branch
        .and_then(|name| name.split_once('/'))
        .map(|(_, branch)| format!("refs/heads/{branch}")))
}

/// The default branch of `origin` when it was cloned, as a local branch.
pub(super) fn default_branch_of_origin(user: &UserRepository) -> Result<Option<String>, GitError> {
    let target = user.git.ask(&["symbolic-ref", "--quiet", "refs/remotes/origin/HEAD"])?;
    let branch = target.as_deref().and_then(|name| name.strip_prefix("refs/remotes/origin/"));
    Ok(branch.map(|branch| format!("refs/heads/{branch}")))
}

/// The commit of `branch`, `refs/heads/main`: that of the local branch, or else of the remote branch.
pub(super) fn tip_of(user: &UserRepository, branch: &str) -> Result<Option<CommitSha>, GitError> {
    let of_remote = branch.replacen("refs/heads/", "refs/remotes/origin/", 1);
    match commit_of(user, branch)? {
        Some(commit) => Ok(Some(commit)),
        None => commit_of(user, &of_remote),
    }
}

fn commit_of(user: &UserRepository, name: &str) -> Result<Option<CommitSha>, GitError> {
    // An option of git's, which no name is.
    if name.starts_with('-') {
        return Ok(None);
    }
    let commit = user.git.ask(&["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]);
    Ok(commit?.and_then(|commit| commit.parse().ok()))
}

/// The full name of a reference; `None` for a commit.
fn full_name(user: &UserRepository, name: &str) -> Result<Option<String>, GitError> {
    let name = user.git.ask(&["rev-parse", "--verify", "--quiet", "--symbolic-full-name", name])?;
    Ok(name.filter(|name| !name.is_empty()))
}
