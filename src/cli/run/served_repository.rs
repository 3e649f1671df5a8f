//! A bare repository that serves one commit of a local repository to agents.
//!
//! It borrows the objects of the user's repository (Git's alternates): nothing is copied, and only the
//! commit's branch or tag and the default branch are visible. The user's repository is not changed, except that
//! objects which a partial clone lacks are fetched into it; the commit of `--dirty` exists only here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use stagely_protocol::{CommitSha, SUBMODULE_ADDRESSES_REF, SUBMODULE_LEFT_EMPTY};
use tempfile::TempDir;

use super::promised_objects::fetch_missing;
use super::revision::{
    ResolvedRef, Revision, branch_of_remote, checked_out_branch, default_branch_of_origin, find,
    head, tip_of,
};
use super::submodules::{self, ListedSubmodule};
use super::user_git::{GitError, UserGit};
use super::user_repository::{FolderError, UserRepository};
use super::working_tree::WorkingTree;

/// The branch of a commit without a name: a server only serves commits of its references.
const UNNAMED: &str = "refs/heads/stagely";

/// A bare repository that contains one commit. Dropping the value deletes it.
#[derive(Debug)]
pub(super) struct ServedRepository {
    user: UserRepository,
    pub(super) commit: CommitSha,
    /// The full name of the commit's branch or tag, `refs/heads/main`; `None` for a commit without one.
    pub(super) name: Option<String>,
    /// The submodules that are on this machine.
    submodules: Vec<Self>,
    folder: TempDir,
}

/// A repository of a server: its path in addresses, and its places on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServedPath {
    pub(super) address: String,
    pub(super) repository: PathBuf,
    /// Folders of files that Git LFS keeps.
    pub(super) large_files: Vec<PathBuf>,
}

impl ServedRepository {
    /// Serves `revision` of the repository that contains `folder`.
    ///
    /// # Errors
    /// [`FolderError`]
    pub(super) fn new(folder: &Path, revision: Revision<'_>) -> Result<Self, FolderError> {
        let user = UserRepository::open(folder)?;
        let bare = borrow(&user)?;
        let mut submodules = Submodules::of(&user);
        let ResolvedRef { commit, name } = match revision {
            Revision::Head => {
                user.refuse_uncommitted()?;
                head(&user)?
            }
            Revision::Ref(name) => find(&user, name)?,
            Revision::Dirty => {
                let files = WorkingTree::read(&user, bare.path())?;
                for submodule in files.submodules()? {
                    if let Some(commit) = submodules.add_dirty(&submodule)? {
                        files.set_submodule(&submodule.path, &commit)?;
                    }
                }
                ResolvedRef { commit: files.commit()?, name: checked_out_branch(&user)? }
            }
        };
        fetch_missing(&user, bare.path(), &commit)?;
        let git = UserGit::isolated(bare.path());
        for submodule in submodules::of_commit(&git, commit.as_str())? {
            submodules.add(&submodule)?;
        }
        submodules.write_addresses(&git)?;
        let submodules = submodules.served;
        let served = Self { user, commit, name, submodules, folder: bare };
        served.set_reference(served.reference(), &served.commit)?;
        served.point_head()?;
        Ok(served)
    }

    /// What a server has at `address`: this repository and its submodules.
    ///
    /// # Errors
    /// [`GitError`]
    pub(super) fn paths(&self, address: &str) -> Result<Vec<ServedPath>, GitError> {
        let mut large_files = vec![self.path().join("lfs/objects")];
        large_files.extend(self.user.large_files()?);
        let (address, repository) = (address.to_owned(), self.path().to_owned());
        let mut paths = Vec::new();
        for (number, submodule) in self.submodules.iter().enumerate() {
            paths.extend(submodule.paths(&format!("{address}/{}", address_of_served(number)))?);
        }
        paths.push(ServedPath { address, repository, large_files });
        Ok(paths)
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

/// The submodules of one repository.
struct Submodules<'a> {
    user: &'a UserRepository,
    served: Vec<ServedRepository>,
    /// The address of each path.
    addresses: BTreeMap<PathBuf, String>,
}

impl<'a> Submodules<'a> {
    fn of(user: &'a UserRepository) -> Self {
        Self { user, served: Vec::new(), addresses: BTreeMap::new() }
    }

    /// Serves the files of a checked-out submodule. Returns their commit.
    fn add_dirty(&mut self, submodule: &ListedSubmodule) -> Result<Option<CommitSha>, FolderError> {
        let Some(folder) = self.checkout(submodule) else { return Ok(None) };
        let served = ServedRepository::new(&folder, Revision::Dirty)?;
        let commit = served.commit.clone();
        self.serve(submodule, served);
        Ok(Some(commit))
    }

    /// Serves the commit of a submodule if it is on this machine. Otherwise agents fetch it from its address.
    fn add(&mut self, submodule: &ListedSubmodule) -> Result<(), FolderError> {
        if self.addresses.contains_key(&submodule.path) {
            return Ok(());
        }
        let revision = Revision::Ref(&submodule.commit);
        if let Some(folder) = self.checkout(submodule)
            && let Some(served) = if_there(ServedRepository::new(&folder, revision))?
        {
            self.serve(submodule, served);
            return Ok(());
        }
        if !submodules::is_fetched(self.user, submodule)? {
            self.addresses.insert(submodule.path.clone(), SUBMODULE_LEFT_EMPTY.to_owned());
            return Ok(());
        }
        let address = submodules::address_of(self.user, submodule)?;
        if let Some(folder) = submodules::folder_of(&address).filter(|folder| folder.is_dir())
            && let Some(served) = if_there(ServedRepository::new(folder, revision))?
        {
            self.serve(submodule, served);
            return Ok(());
        }
        self.addresses.insert(submodule.path.clone(), address);
        Ok(())
    }

    fn checkout(&self, submodule: &ListedSubmodule) -> Option<PathBuf> {
        let folder = self.user.root.join(&submodule.path);
        (!self.user.is_bare && folder.join(".git").exists()).then_some(folder)
    }

    fn serve(&mut self, submodule: &ListedSubmodule, served: ServedRepository) {
        let address = format!("./{}", address_of_served(self.served.len()));
        self.addresses.insert(submodule.path.clone(), address);
        self.served.push(served);
    }

    /// Writes the addresses into the repository of `git`, see [`SUBMODULE_ADDRESSES_REF`].
    fn write_addresses(&self, git: &UserGit) -> Result<(), GitError> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for (path, address) in &self.addresses {
            for part in [path.as_os_str().as_bytes(), address.as_bytes()] {
                text.extend_from_slice(part);
                text.push(0);
            }
        }
        let blob = git.feed(&["hash-object", "-w", "--stdin"], &text)?;
        let blob = String::from_utf8_lossy(&blob);
        git.run(&["update-ref", SUBMODULE_ADDRESSES_REF, blob.trim()]).map(drop)
    }
}

/// The address of the submodule with this number, below that of the repository that has it.
fn address_of_served(number: usize) -> String {
    format!("modules/{number}.git")
}

/// `None` if the repository lacks the commit, or is none.
fn if_there(
    served: Result<ServedRepository, FolderError>,
) -> Result<Option<ServedRepository>, FolderError> {
    match served {
        Err(FolderError::NoSuchRef { .. } | FolderError::NoRepository(_)) => Ok(None),
        result => result.map(Some),
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
