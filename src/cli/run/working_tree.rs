//! Commits the files of a working tree without a change to the user's repository.

use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;

use stagely_protocol::CommitSha;

use super::revision::head;
use super::submodules::{self, ListedSubmodule};
use super::user_git::{GitError, UserGit};
use super::user_repository::{FolderError, UserRepository};

/// The files of a working tree, as `git add --all` takes them, in an index of ours.
pub(super) struct WorkingTree {
    parent: Option<CommitSha>,
    /// Git with our index. New objects go to the repository that borrows those of the user's.
    git: UserGit,
    /// Options of the commands that may write the index. They look again into files that were changed a moment ago.
    options: [String; 4],
}

impl WorkingTree {
    /// Reads the files of the user's working tree. The objects of changed files go to the bare repository `bare`.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn read(user: &UserRepository, bare: &Path) -> Result<Self, FolderError> {
        if user.is_bare {
            return Err(FolderError::Bare(user.root.clone()));
        }
        let parent = match head(user) {
            Ok(head) => Some(head.commit),
            Err(FolderError::NoCommit(_)) => None,
            Err(error) => return Err(error),
        };
        let index = bare.join("index");
        copy_index(&user.git_path("index")?, &index)?;
        let git = user
            .git
            .clone()
            .with("GIT_INDEX_FILE", index)
            .with("GIT_OBJECT_DIRECTORY", bare.join("objects"));
        let large_files = format!("lfs.storage={}", bare.join("lfs").display());
        // Otherwise git writes a part of the index into the user's repository.
        let whole_index = "core.splitIndex=false".to_owned();
        let options = ["-c".to_owned(), whole_index, "-c".to_owned(), large_files];
        let tree = Self { parent, git, options };
        tree.run_on_index(&add_arguments(user)?)?;
        Ok(tree)
    }

    fn run_on_index(&self, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        let mut all: Vec<&str> = self.options.iter().map(String::as_str).collect();
        all.extend(arguments);
        self.git.run(&all)
    }

    /// # Errors
    /// [`GitError`]
    pub(super) fn submodules(&self) -> Result<Vec<ListedSubmodule>, GitError> {
        submodules::of_index(&self.git)
    }

    /// Sets the commit of a submodule.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn set_submodule(&self, path: &Path, commit: &CommitSha) -> Result<(), GitError> {
        let entry = format!("160000,{commit},{}", path.display());
        self.run_on_index(&["update-index", "--cacheinfo", &entry]).map(drop)
    }

    /// Commits the files as a child of HEAD. Returns HEAD if nothing has changed.
    ///
    /// The commit has the time of HEAD, so that the same files make the same commit and find the same caches.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn commit(&self) -> Result<CommitSha, FolderError> {
        let git = &self.git;
        let tree = self.run_on_index(&["write-tree"])?;
        let tree = String::from_utf8_lossy(&tree).trim().to_owned();
        let Some(parent) = &self.parent else {
            return commit_tree(git, &tree, "@0 +0000", &[]);
        };
        if git.line(&["rev-parse", "--verify", &format!("{parent}^{{tree}}")])? == tree {
            return Ok(parent.clone());
        }
        let parent = parent.as_str();
        let show_time = ["rev-list", "--max-count=1", "--format=%cd", "--date=raw", parent];
        let time = git.line(&show_time)?;
        let time = format!("@{}", time.lines().next_back().unwrap_or_default());
        commit_tree(git, &tree, &time, &["-p", parent])
    }
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
    let mut arguments = vec!["-c", no_check, "-c", no_advice, "add", "--all"];
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
