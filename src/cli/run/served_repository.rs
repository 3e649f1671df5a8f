//! A bare repository that serves one commit of a local repository to agents.
//!
//! It borrows the objects of the user's repository (Git's alternates): nothing is copied, and only the
//! commit's branch or tag and the default branch are visible. The user's repository is not changed, except that
//! objects which a partial clone lacks are fetched into it; the commit of `--dirty` exists only here.

use std::fs;
use std::io;
use std::path::Path;

use stagely_protocol::CommitSha;
use tempfile::TempDir;

use super::promised_objects::fetch_missing;
use super::revision::{
    ResolvedRef, Revision, branch_of_remote, checked_out_branch, default_branch_of_origin, find,
    head, tip_of,
};
use super::user_git::{GitError, UserGit};
use super::user_repository::{FolderError, UserRepository};
use super::working_tree::commit_all;

/// The branch of a commit without a name: a server only serves commits of its references.
const UNNAMED: &str = "refs/heads/stagely";

/// A bare repository that contains one commit. Dropping the value deletes it.
#[derive(Debug)]
pub(super) struct ServedRepository {
    user: UserRepository,
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
        let user = UserRepository::open(folder)?;
        let bare = borrow(&user)?;
        let ResolvedRef { commit, name } = match revision {
            Revision::Head => {
                user.refuse_uncommitted()?;
                head(&user)?
            }
            Revision::Ref(name) => find(&user, name)?,
            Revision::Dirty => ResolvedRef {
                commit: commit_all(&user, bare.path())?,
                name: checked_out_branch(&user)?,
            },
        };
        fetch_missing(&user, bare.path(), &commit)?;
        let served = Self { user, commit, name, folder: bare };
        served.set_reference(served.reference(), &served.commit)?;
        served.point_head()?;
        Ok(served)
    }

    /// Also serves the commit that `base` names in the user's repository. Returns the name to request: its
    /// branch, which is `main` for `origin/main` too; or the commit's hash if it has no branch, or another
    /// commit has the branch's name.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn add_base(&self, base: &str) -> Result<String, FolderError> {
        let ResolvedRef { commit, name } = find(&self.user, base)?;
        fetch_missing(&self.user, self.path(), &commit)?;
        let branch = match name {
            Some(name) => Some(name),
            None => branch_of_remote(&self.user, base)?,
        };
        let branch = branch.as_deref().filter(|name| name.starts_with("refs/heads/"));
        if let Some(name) = branch
            && (name != self.reference() || commit == self.commit)
        {
            self.set_reference(name, &commit)?;
            return Ok(name.trim_start_matches("refs/heads/").to_owned());
        }
        self.set_reference("refs/heads/stagely-base", &commit)?;
        Ok(commit.to_string())
    }

    /// The user's working tree, or the user's repository if it is bare.
    pub(super) fn origin(&self) -> &Path {
        &self.user.root
    }

    /// The folder of the bare repository.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn reference(&self) -> &str {
        self.name.as_deref().unwrap_or(UNNAMED)
    }

    fn set_reference(&self, name: &str, commit: &CommitSha) -> Result<(), GitError> {
        self.git().run(&["update-ref", name, commit.as_str()]).map(drop)
    }

    fn git(&self) -> UserGit {
        UserGit::isolated(self.path())
    }

    /// Points HEAD to the default branch of the user's repository, as on a remote, so that runs of other branches do
    /// not write the caches that all environments read. The branch is served as well, because servers do not announce
    /// a HEAD without a commit.
    fn point_head(&self) -> Result<(), FolderError> {
        let checked_out = checked_out_branch(&self.user)?;
        let guesses = ["refs/heads/main", "refs/heads/master"].map(str::to_owned);
        let candidates = if self.user.is_bare {
            // HEAD of a bare repository is its default branch.
            checked_out.into_iter().chain(guesses).collect::<Vec<_>>()
        } else {
            let default = default_branch_of_origin(&self.user)?;
            default.into_iter().chain(guesses).chain(checked_out).collect()
        };
        for branch in candidates {
            if branch == self.reference() {
                return Ok(self.set_head(&branch)?);
            }
            if let Some(commit) = tip_of(&self.user, &branch)? {
                // Its objects are only needed if its files are compared with those of the commit to build.
                let _ = fetch_missing(&self.user, self.path(), &commit);
                self.set_reference(&branch, &commit)?;
                return Ok(self.set_head(&branch)?);
            }
        }
        let reference = self.reference();
        if reference.starts_with("refs/heads/") {
            self.set_head(reference)?;
        }
        Ok(())
    }

    fn set_head(&self, branch: &str) -> Result<(), GitError> {
        self.git().run(&["symbolic-ref", "HEAD", branch]).map(drop)
    }
}

/// Creates an empty bare repository that borrows the objects of the user's repository.
fn borrow(user: &UserRepository) -> Result<TempDir, FolderError> {
    let folder = tempfile::Builder::new().prefix("stagely-source-").tempdir()?;
    let git = UserGit::isolated(folder.path());
    git.run(&["init", "--quiet", "--bare", "--template=", "--object-format=sha1", "."])?;
    git.run(&["config", "uploadpack.allowAnySHA1InWant", "true"])?;
    let objects = fs::canonicalize(user.git_path("objects")?)?;
    let info = folder.path().join("objects/info");
    fs::create_dir_all(&info)?;
    fs::write(info.join("alternates"), format!("{}\n", objects.display()))?;
    // The parents of a shallow clone's oldest commits are missing; this file tells Git so.
    copy_if_exists(&user.git_path("shallow")?, &folder.path().join("shallow"))?;
    Ok(folder)
}

fn copy_if_exists(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
