//! The user's repository that contains a folder.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::user_git::{GitError, UserGit};

/// The most changed files in an error.
const SHOWN_MAX: usize = 5;

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
    #[error(
        "{folder} is a repository with {format} object names, and Stagely builds only from those with \
         sha1"
    )]
    ObjectFormat { folder: PathBuf, format: String },
    /// A partial clone does not get what it lacks, or the repository is damaged.
    #[error(
        "{folder} lacks {count} objects of commit {commit}, and no remote that would have them: see \
         `git fsck`"
    )]
    MissingObjects { folder: PathBuf, commit: String, count: usize },
    #[error("cannot read the repository")]
    Git(#[from] GitError),
    #[error("cannot create a temporary repository")]
    Io(#[from] io::Error),
}

fn files(count: usize) -> String {
    if count == 1 { "1 file is".to_owned() } else { format!("{count} files are") }
}

/// A repository of the user's. Only the user's own git reads it.
#[derive(Clone, Debug)]
pub(super) struct UserRepository {
    /// The working tree, or the repository if it is bare.
    pub(super) root: PathBuf,
    pub(super) is_bare: bool,
    /// Git in [`Self::root`].
    pub(super) git: UserGit,
}

impl UserRepository {
    /// Opens the repository that contains `folder`.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn open(folder: &Path) -> Result<Self, FolderError> {
        let git = UserGit::in_folder(folder);
        let is_bare = git
            .line(&["rev-parse", "--is-bare-repository"])
            .map_err(|error| refused(error, folder))?;
        let is_bare = is_bare == "true";
        let option = if is_bare { "--absolute-git-dir" } else { "--show-toplevel" };
        let root = path_of(git.run(&["rev-parse", option])?);
        let format = git.line(&["rev-parse", "--show-object-format"])?;
        // Git before 2.25 does not know the question, and no other format.
        if format == "sha256" {
            return Err(FolderError::ObjectFormat { folder: root, format });
        }
        let git = UserGit::in_folder(&root);
        Ok(Self { root, is_bare, git })
    }

    /// The path of a file or folder in the repository, which worktrees may share.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn git_path(&self, name: &str) -> Result<PathBuf, GitError> {
        let path = self.git.run(&["rev-parse", "--git-path", name])?;
        Ok(self.root.join(path_of(path)))
    }

    /// The folders in which Git LFS keeps files: of this repository, and of those whose objects this one borrows.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn large_files(&self) -> Result<Vec<PathBuf>, GitError> {
        let common = self.root.join(path_of(self.git.run(&["rev-parse", "--git-common-dir"])?));
        let storage = self.config(&["--type=path"], "lfs.storage")?;
        let own = common.join(storage.unwrap_or_else(|| "lfs".to_owned()));
        let borrowed = fs::read_to_string(common.join("objects/info/alternates"));
        let borrowed = borrowed.unwrap_or_default();
        let others =
            borrowed.lines().filter_map(|objects| Some(Path::new(objects).parent()?.join("lfs")));
        Ok(std::iter::once(own).chain(others).map(|folder| folder.join("objects")).collect())
    }

    /// One value of the configuration.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn config(&self, options: &[&str], name: &str) -> Result<Option<String>, GitError> {
        let mut arguments = vec!["config"];
        arguments.extend(options);
        arguments.extend(["--get", name]);
        self.git.ask(&arguments)
    }

    /// # Errors
    /// [`FolderError::Uncommitted`]
    pub(super) fn refuse_uncommitted(&self) -> Result<(), FolderError> {
        if self.is_bare {
            return Ok(());
        }
        let arguments = ["status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal"];
        let status = self.git.run(&arguments)?;
        let mut changed: Vec<String> = status
            .split(|byte| *byte == 0)
            .filter_map(|entry| entry.get(3..))
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        changed.sort();
        let names = changed.iter().take(SHOWN_MAX).cloned().collect();
        Err(FolderError::Uncommitted { count: changed.len(), names })
    }
}

fn refused(error: GitError, folder: &Path) -> FolderError {
    let GitError::Failed { words, .. } = &error else { return error.into() };
    // Without the parenthesis a `.git` is there and leads nowhere.
    if words.contains("not a git repository (or any") {
        return FolderError::NoRepository(folder.to_owned());
    }
    match words.split_once("dubious ownership in repository at '") {
        Some((_, rest)) => {
            let path = rest.split('\'').next().unwrap_or_default();
            FolderError::OtherOwner(PathBuf::from(path))
        }
        None => error.into(),
    }
}

/// A path that git printed on a line.
fn path_of(mut line: Vec<u8>) -> PathBuf {
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    PathBuf::from(OsString::from_vec(line))
}
