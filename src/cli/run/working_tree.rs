//! Commits the files of a working tree without a change to the user's repository.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;

use stagely_protocol::CommitSha;

use super::revision::head;
use super::user_git::UserGit;
use super::user_repository::{FolderError, UserRepository};

/// Otherwise git writes a part of our copy of the index into the user's repository.
const WHOLE_INDEX: &str = "core.splitIndex=false";

/// Commits all files of the working tree into the bare repository `bare`, as a child of HEAD, as `git add --all` and
/// `git commit` would. Returns HEAD if nothing has changed.
///
/// The commit has the time of HEAD, so that the same files make the same commit and find the same caches.
///
/// # Errors
/// [`FolderError`]
pub(super) fn commit_all(user: &UserRepository, bare: &Path) -> Result<CommitSha, FolderError> {
    if user.is_bare {
        return Err(FolderError::Bare(user.root.clone()));
    }
    let parent = match head(user) {
        Ok(head) => Some(head.commit),
        Err(FolderError::NoCommit(_)) => None,
        Err(error) => return Err(error),
    };
    let git = writing_to(user, bare)?;
    git.run(&add_arguments(user)?)?;
    let tree = git.line(&["-c", WHOLE_INDEX, "write-tree"])?;
    let Some(parent) = parent else {
        return commit_tree(&git, &tree, "@0 +0000", &[]);
    };
    let parent = parent.as_str();
    if git.line(&["rev-parse", "--verify", &format!("{parent}^{{tree}}")])? == tree {
        return Ok(parent.parse().expect("it was a commit id before"));
    }
    let show_time = ["rev-list", "--max-count=1", "--format=%cd", "--date=raw", parent];
    let time = git.line(&show_time)?;
    let time = format!("@{}", time.lines().next_back().unwrap_or_default());
    commit_tree(&git, &tree, &time, &["-p", parent])
}

/// Git with a copy of the user's index. New objects go to `bare`, which borrows those of the user's repository.
fn writing_to(user: &UserRepository, bare: &Path) -> Result<UserGit, FolderError> {
    let index = bare.join("index");
    copy_index(&user.git_path("index")?, &index)?;
    Ok(user
        .git
        .clone()
        .with("GIT_INDEX_FILE", index)
        .with("GIT_OBJECT_DIRECTORY", bare.join("objects")))
}

/// Copies the index with its time: git looks again into files that are not older than the index.
fn copy_index(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let modified = from.metadata()?.modified()?;
            File::options().write(true).open(to)?.set_times(FileTimes::new().set_modified(modified))
        }
    }
}

fn add_arguments(user: &UserRepository) -> Result<Vec<&'static str>, FolderError> {
    // Otherwise a file with two kinds of line ends may be an error.
    let no_check = "core.safecrlf=false";
    let no_advice = "advice.addEmbeddedRepo=false";
    let mut arguments = vec!["-c", WHOLE_INDEX, "-c", no_check, "-c", no_advice, "add", "--all"];
    let is_sparse = user.config(&["--type=bool"], "core.sparseCheckout")?;
    if is_sparse.as_deref() == Some("true") {
        // Also files that are there although the sparse checkout leaves their folder out.
        arguments.push("--sparse");
    }
    Ok(arguments)
}

fn commit_tree(
    git: &UserGit,
    tree: &str,
    time: &str,
    parents: &[&str],
) -> Result<CommitSha, FolderError> {
    let mut arguments = vec!["-c", "i18n.commitEncoding=UTF-8", "commit-tree"];
    arguments.extend(["-m", "uncommitted changes"]);
    arguments.extend(parents);
    arguments.push(tree);
    let mut git = git.clone();
    for role in ["AUTHOR", "COMMITTER"] {
        git = git
            .with(&format!("GIT_{role}_NAME"), "stagely")
            .with(&format!("GIT_{role}_EMAIL"), "stagely@localhost")
            .with(&format!("GIT_{role}_DATE"), time);
    }
    Ok(git.line(&arguments)?.parse().expect("git prints commit ids"))
}
