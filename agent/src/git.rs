//! Fetches exactly one commit, and asks a repository which commit a name refers to.
//!
//! libgit2 cannot be interrupted while it waits for a server, and its time limits need `unsafe`. So it runs on a
//! thread of its own. Its callbacks stop it when the caller cancels; a thread that waits for a silent server is left
//! behind.

mod remote;
mod submodules;

mod thread;
mod tree;

mod error;

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use stagely_protocol::{CloneContext, CommitSha};
use tokio_util::sync::CancellationToken;

pub use self::error::CloneError;
pub(crate) use self::error::without_credentials;
use self::remote::Access;
pub use self::remote::ResolvedRef;
use self::submodules::Submodules;
use self::thread::run_on_thread;

/// The commit to fetch, and its repository.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The address, `https://…`, `http://…` or `git://…`, without user name and password.
    pub url: String,
    pub commit: CommitSha,
    /// A branch that contains it, for servers that do not serve a bare commit.
    pub branch: Option<String>,
    /// The credential for the repository, and for submodules on the same server.
    pub token: Option<SecretString>,
    /// Whether to fetch submodules too.
    pub submodules: bool,
}

impl From<CloneContext> for FetchRequest {
    fn from(context: CloneContext) -> Self {
        Self {
            url: context.repo_url,
            commit: context.commit_hash,
            branch: context.branch,
            token: context.clone_token,
            submodules: true,
        }
    }
}

/// A fetched commit in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The working tree, without `.git`.
    pub root: PathBuf,
    /// The number of bytes received over the network, submodules included.
    pub bytes: u64,
    /// The number of submodules that were checked out.
    pub submodules: u32,
    /// The paths of submodules that are not in `.gitmodules`. Their folders are empty.
    pub without_address: Vec<String>,
}

/// Fetches one commit into `dest`, which must be empty or not exist.
///
/// Every `.git` is removed, also those of submodules: it differs with every fetch of the same commit, so no
/// `COPY . .` would come from the cache. Docker removes it from git contexts as well.
///
/// # Errors
/// [`CloneError`]; then `dest` may hold a part of the commit, or may not exist.
pub async fn fetch_commit(
    request: FetchRequest,
    dest: &Path,
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    fetch(request, dest, None, cancel).await
}

/// Like [`fetch_commit`], but keeps the received objects in the folder `objects`, for [`changed_paths`]. The folder
/// must not exist yet, and must be on the same file system as `dest`.
///
/// # Errors
/// [`CloneError`].
pub async fn fetch_commit_and_objects(
    request: FetchRequest,
    dest: &Path,
    objects: &Path,
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    fetch(request, dest, Some(objects.to_owned()), cancel).await
}

async fn fetch(
    request: FetchRequest,
    dest: &Path,
    objects: Option<PathBuf>,
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    let dest = dest.to_owned();
    run_on_thread(request.url.clone(), cancel, move |monitor| {
        let access = Access::new(&request.url, request.token, monitor)?;
        remote::fetch(&access, &request.commit, request.branch.as_deref(), &dest)?;
        let Submodules { fetched, without_address } = if request.submodules {
            submodules::fetch_all(&access, &dest)?
        } else {
            Submodules::default()
        };
        match objects {
            Some(objects) => remote::move_repository(&access, &dest, &objects)?,
            None => remote::remove_repository(&access, &dest)?,
        }
        let bytes = access.monitor.bytes();
        Ok(Checkout { root: dest, bytes, submodules: fetched, without_address })
    })
    .await
}

/// The paths in which the commit of `request` differs from `head`, in no order: paths that only one of them has, and
/// paths whose content or mode differs. `objects` is the folder that [`fetch_commit_and_objects`] made for
/// `head`; the other commit is fetched into it.
///
/// If the server does not serve single commits, only the last 1000 commits of `branch` are searched.
///
/// # Errors
/// [`CloneError`]; [`CloneError::CommitGone`] if there is no such commit.
pub async fn changed_paths(
    request: FetchRequest,
    head: &CommitSha,
    objects: &Path,
    cancel: &CancellationToken,
) -> Result<Vec<String>, CloneError> {
    let (head, objects) = (head.clone(), objects.to_owned());
    run_on_thread(request.url.clone(), cancel, move |monitor| {
        let access = Access::new(&request.url, request.token, monitor)?;
        let branch = request.branch.as_deref();
        remote::changed_paths(&access, &objects, &request.commit, branch, &head)
    })
    .await
}

/// Asks the repository at `url` which commit `name` refers to: a branch, a tag, a full `refs/…`, or `HEAD` (the
/// default branch). A full commit id is returned unchanged, without a request. A temporary repository is created in
/// the folder `scratch`.
///
/// # Errors
/// [`CloneError`]; [`CloneError::CommitGone`] if there is no such name.
pub async fn resolve_ref(
    url: &str,
    token: Option<SecretString>,
    name: &str,
    scratch: &Path,
    cancel: &CancellationToken,
) -> Result<ResolvedRef, CloneError> {
    if let Ok(commit) = name.parse() {
        return Ok(ResolvedRef { commit, name: None, default_branch: None });
    }
    let (address, name, scratch) = (url.to_owned(), name.to_owned(), scratch.to_owned());
    run_on_thread(url.to_owned(), cancel, move |monitor| {
        remote::resolve(&Access::new(&address, token, monitor)?, &name, &scratch)
    })
    .await
}
