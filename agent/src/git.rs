//! Fetches exactly one commit, and asks a repository which commit a name refers to.
//!
//! libgit2 cannot be interrupted while it waits for a server, and its time limits need `unsafe`. So it runs on a
//! thread of its own. Its callbacks stop it when the caller cancels; a thread that waits for a silent server is left
//! behind.

mod address;
mod remote;
mod submodules;

mod relay;

mod lfs;
mod pointer;

mod filters;

mod encoding;
mod thread;
mod tree;

mod error;

mod ended_server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::{CloneContext, CommitSha, Submodules};
use tokio_util::sync::CancellationToken;

pub use self::ended_server::SERVED_FOLDER;
pub(crate) use self::error::without_credentials;
pub use self::error::{CloneError, LargeFileProblem};
pub use self::filters::UnappliedFilter;
use self::remote::Access;
pub use self::remote::ResolvedRef;
use self::submodules::{Contents, SubmoduleFetcher};
pub use self::thread::BYTES_MAX;
use self::thread::{FetchMonitor, SILENCE_MAX, run_on_thread};

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
    pub submodules: Submodules,
    /// Whether to fetch the files that Git LFS keeps elsewhere.
    pub large_files: bool,
    /// The most bytes that may be received, and the most that may be written, submodules included. [`BYTES_MAX`] is the
    /// limit of every fetch.
    pub bytes_max: u64,
}

impl From<CloneContext> for FetchRequest {
    fn from(context: CloneContext) -> Self {
        Self {
            url: context.repo_url,
            commit: context.commit_hash,
            branch: context.branch,
            token: context.clone_token,
            submodules: context.submodules,
            large_files: true,
            bytes_max: BYTES_MAX,
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
    /// The number of files that were fetched with Git LFS.
    pub large_files: usize,
    /// The paths of submodules that are not in `.gitmodules`. Their folders are empty.
    pub without_address: Vec<String>,
    /// The filters that only the user's Git has.
    pub unapplied_filters: Vec<UnappliedFilter>,
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
    fetch(request, dest, None, |_| {}, cancel).await
}

/// A wait for a server, which ends when the server sends nothing for [`limit`](Self::limit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchWait {
    /// The server has sent nothing for a while.
    Silence,
    /// So many files of Git LFS are being fetched.
    LargeFiles(usize),
}

impl FetchWait {
    pub const fn limit(self) -> Duration {
        SILENCE_MAX
    }
}

/// Like [`fetch_commit`], and reports waits to `on_wait`.
///
/// # Errors
/// [`CloneError`]; then `dest` may hold a part of the commit, or may not exist.
pub async fn fetch_commit_and_report(
    request: FetchRequest,
    dest: &Path,
    on_wait: impl Fn(FetchWait),
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    fetch(request, dest, None, on_wait, cancel).await
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
    fetch(request, dest, Some(objects.to_owned()), |_| {}, cancel).await
}

async fn fetch(
    request: FetchRequest,
    dest: &Path,
    objects: Option<PathBuf>,
    on_wait: impl Fn(FetchWait),
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    let (root, url, with_large_files) = (dest.to_owned(), request.url.clone(), request.large_files);
    let bytes_max = request.bytes_max;
    let work = move |monitor| check_out(request, &root, objects.as_deref(), monitor);
    let on_silence = || on_wait(FetchWait::Silence);
    let (mut bytes, contents) = run_on_thread(url, bytes_max, on_silence, cancel, work).await?;
    let mut large_files = 0;
    if with_large_files {
        lfs::check_size(&contents.large_files)?;
        let count = contents.large_files.iter().map(|files| files.pointers.len()).sum();
        if count > 0 {
            on_wait(FetchWait::LargeFiles(count));
        }
        for files in contents.large_files {
            large_files += files.pointers.len();
            let fetched = cancel.run_until_cancelled(lfs::fetch(files)).await;
            bytes += fetched.unwrap_or(Err(CloneError::Cancelled))?;
        }
    }
    Ok(Checkout {
        root: dest.to_owned(),
        bytes,
        submodules: contents.submodules,
        large_files,
        without_address: contents.without_address,
        unapplied_filters: contents.unapplied,
    })
}

/// Checks out a commit and its submodules, without large files.
fn check_out(
    request: FetchRequest,
    root: &Path,
    objects: Option<&Path>,
    monitor: Arc<FetchMonitor>,
) -> Result<(u64, Contents), CloneError> {
    let access = Access::new(&request.url, request.token, monitor)?;
    let filtered = remote::fetch(&access, &request.commit, request.branch.as_deref(), true, root)?;
    let mut contents = Contents::default();
    contents.add(filtered, &access, root, Path::new(""));
    if request.submodules != Submodules::None {
        let has_search = request.submodules != Submodules::Shallow;
        let mut fetcher = SubmoduleFetcher { root, has_search, contents: &mut contents };
        fetcher.fetch_all(&access, Path::new(""), 0)?;
    }
    match objects {
        Some(objects) => remote::move_repository(&access, root, objects)?,
        None => remote::remove_repository(&access, root)?,
    }
    Ok((access.monitor.bytes(), contents))
}

/// A path in which two commits differ: its content, its mode, or that only one of them has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangedPath {
    /// From the repository's root. That of a submodule ends in `/`: any file in it may differ.
    pub path: String,
    /// Whether only the newer commit has it.
    pub is_added: bool,
}

/// The paths in which the commit of `request` differs from the newer commit `head`, in no order. `objects` is the folder
/// that [`fetch_commit_and_objects`] made for `head`; the other commit is fetched into it.
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
) -> Result<Vec<ChangedPath>, CloneError> {
    let (head, objects) = (head.clone(), objects.to_owned());
    run_on_thread(
        request.url.clone(),
        request.bytes_max,
        || {},
        cancel,
        move |monitor| {
            let access = Access::new(&request.url, request.token, monitor)?;
            let branch = request.branch.as_deref();
            remote::changed_paths(&access, &objects, &request.commit, branch, &head)
        },
    )
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
    run_on_thread(
        url.to_owned(),
        BYTES_MAX,
        || {},
        cancel,
        move |monitor| remote::resolve(&Access::new(&address, token, monitor)?, &name, &scratch),
    )
    .await
}
