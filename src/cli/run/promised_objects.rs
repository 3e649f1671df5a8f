//! Objects that a partial clone does not have yet.

use std::path::Path;

use stagely_protocol::CommitSha;

use super::user_git::{GitError, UserGit};
use super::user_repository::{FolderError, UserRepository};
use crate::cli::output::note;

/// Fetches the objects of the tree of `commit` that the user's partial clone lacks, from the remote that promised them.
/// The repository at `bare` borrows the user's objects.
///
/// # Errors
/// [`FolderError`]; in git's words if the remote does not give them.
pub(super) fn fetch_missing(
    user: &UserRepository,
    bare: &Path,
    commit: &CommitSha,
) -> Result<(), FolderError> {
    let remotes = promisors(user)?;
    if remotes.is_empty() {
        return Ok(());
    }
    // Git itself fetches missing trees during the walk, but one by one, and no missing blobs.
    let mut missing = missing_objects(bare, commit)?;
    for remote in &remotes {
        // Each round may find trees that name further objects.
        while !missing.is_empty() {
            let count = missing.len();
            note(&format!("Fetching {count} objects that the partial clone lacks from {remote}"));
            fetch(user, remote, &missing)?;
            let left = missing_objects(bare, commit)?;
            if left == missing {
                break;
            }
            missing = left;
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (folder, count) = (user.root.clone(), missing.len());
    Err(FolderError::MissingObjects { folder, commit: commit.to_string(), count })
}

/// The remotes of partial clones.
fn promisors(user: &UserRepository) -> Result<Vec<String>, GitError> {
    let pattern = r"^remote\..*\.promisor$";
    let list = user.git.ask(&["config", "--type=bool", "--get-regexp", pattern])?;
    let lines = list.unwrap_or_default();
    let names = lines.lines().filter_map(|line| {
        line.strip_suffix(" true")?.strip_prefix("remote.")?.strip_suffix(".promisor")
    });
    Ok(names.map(str::to_owned).collect())
}

fn missing_objects(bare: &Path, commit: &CommitSha) -> Result<Vec<String>, GitError> {
    // The bare repository promises nothing, so nothing is fetched here.
    let arguments = ["rev-list", "--objects", "--no-walk", "--missing=print", commit.as_str()];
    let listed = UserGit::isolated(bare).run(&arguments)?;
    let missing = listed.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"?"));
    Ok(missing.map(|id| String::from_utf8_lossy(id).into_owned()).collect())
}

/// The command that git runs itself for a missing object, for all at once.
fn fetch(user: &UserRepository, remote: &str, objects: &[String]) -> Result<(), GitError> {
    let ids = objects.join("\n") + "\n";
    let arguments = [
        "-c",
        "fetch.negotiationAlgorithm=noop",
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--recurse-submodules=no",
        "--filter=blob:none",
        "--stdin",
        remote,
    ];
    without_ssh_prompt(user)?.feed(&arguments, ids.as_bytes()).map(drop)
}

/// SSH asks on the terminal, whatever git says.
fn without_ssh_prompt(user: &UserRepository) -> Result<UserGit, GitError> {
    let is_chosen =
        ["GIT_SSH_COMMAND", "GIT_SSH"].iter().any(|name| std::env::var_os(name).is_some())
            || user.config(&[], "core.sshCommand")?.is_some();
    Ok(if is_chosen {
        user.git.clone()
    } else {
        user.git.clone().with("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    })
}
