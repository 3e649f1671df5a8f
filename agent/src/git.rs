//! Fetches exactly one commit, and asks a repository which commit a name stands for.
//!
//! libgit2 can neither be interrupted while it waits for a server nor, without `unsafe`, be given
//! time limits. So its work runs on a thread of its own; its callbacks end it when the caller
//! cancels, and a thread that waits for a silent server is left behind rather than waited for.

mod remote;
mod submodules;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::{CloneContext, CloneProblem, CommitSha, FailureReason};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::remote::Access;

/// A server that sends nothing for this long is taken for dead.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// How long a cancelled fetch may show no sign of life before its thread is left behind.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// Which commit to fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The repository, `https://…`, `http://…` or `git://…`, without user name and password.
    pub url: String,
    /// The commit.
    pub commit: CommitSha,
    /// A branch that contains it, for servers that do not serve a bare commit.
    pub branch: Option<String>,
    /// Opens the repository, and submodules on the same server.
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

/// A commit in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The working tree, without `.git`.
    pub root: PathBuf,
    /// What was received over the network, submodules included.
    pub bytes: u64,
    /// Submodules that were checked out.
    pub submodules: u32,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRef {
    /// The commit; that of the tagged commit for an annotated tag.
    pub commit: CommitSha,
    /// The full name, `refs/heads/main`; `None` for a commit that was given as such.
    pub name: Option<String>,
    /// The repository's default branch, `main`; `None` for a commit that was given as such, and where
    /// the server does not say.
    pub default_branch: Option<String>,
}

impl ResolvedRef {
    /// The branch, if the name is one.
    pub fn branch(&self) -> Option<&str> {
        self.name.as_deref()?.strip_prefix("refs/heads/")
    }
}

/// Why a commit could not be had. Messages hold no credentials.
#[derive(Debug, Error)]
pub enum CloneError {
    /// There is no such repository, or the token may not see it.
    #[error("{url} was not found")]
    NotFound {
        /// The repository.
        url: String,
    },
    /// The token was refused, or one is needed.
    #[error("{url} refused the token, or needs one")]
    Authentication {
        /// The repository.
        url: String,
    },
    /// The repository has no such commit, branch or tag.
    #[error("{url} has no {wanted}")]
    CommitGone {
        /// The repository.
        url: String,
        /// What was asked for.
        wanted: String,
    },
    /// The server did not answer, or the connection broke.
    #[error("cannot fetch from {url}: {detail}")]
    Network {
        /// The repository.
        url: String,
        /// What libgit2 says.
        detail: String,
    },
    /// The address cannot be used.
    #[error("{url:?} cannot be cloned: {detail}")]
    Address {
        /// The address, without credentials.
        url: String,
        /// Why.
        detail: &'static str,
    },
    /// The caller cancelled.
    #[error("the clone was cancelled")]
    Cancelled,
    /// No space is left.
    #[error("no space is left for the clone")]
    DiskFull,
    /// Anything else.
    #[error("git failed: {0}")]
    Internal(String),
}

impl CloneError {
    /// Whose fault it is.
    pub const fn reason(&self) -> FailureReason {
        let problem = match self {
            Self::NotFound { .. } | Self::Address { .. } => CloneProblem::NotFound,
            Self::Authentication { .. } => CloneProblem::Authentication,
            Self::CommitGone { .. } => CloneProblem::CommitGone,
            Self::Network { .. } => CloneProblem::Network,
            Self::Cancelled => return FailureReason::Cancelled,
            Self::DiskFull => return FailureReason::DiskFull,
            Self::Internal(_) => return FailureReason::Internal,
        };
        FailureReason::Clone { problem }
    }
}

/// Fetches one commit into `dest`, which must be empty or not exist.
///
/// No `.git` is left, neither there nor in submodules: it differs with every fetch of the same
/// commit, so that no `COPY . .` would ever come from the cache. Docker leaves it out of git contexts
/// as well.
///
/// # Errors
/// [`CloneError`]; `dest` may hold a part of the commit then, or be gone.
pub async fn fetch_commit(
    request: FetchRequest,
    dest: &Path,
    cancel: &CancellationToken,
) -> Result<Checkout, CloneError> {
    fetch(request, dest, None, cancel).await
}

/// Like [`fetch_commit`], but keeps what was received in the folder `objects`, for [`changed_paths`].
/// It must not exist, and must be on the same file system as `dest`.
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
    on_thread(request.url.clone(), cancel, move |watch| {
        let access = Access::new(&request.url, request.token, watch)?;
        remote::fetch(&access, &request.commit, request.branch.as_deref(), &dest)?;
        let submodules =
            if request.submodules { submodules::fetch_all(&access, &dest)? } else { 0 };
        match objects {
            Some(objects) => remote::move_repository(&access, &dest, &objects)?,
            None => remote::remove_repository(&access, &dest)?,
        }
        Ok(Checkout { root: dest, bytes: access.watch.bytes(), submodules })
    })
    .await
}

/// The paths in which the commit of `request` differs from `head`, in no order: those that are only in
/// one of them, and those whose content or mode is another. `objects` is what
/// [`fetch_commit_and_objects`] kept of `head`; the other commit is fetched into it.
///
/// A commit that the server does not serve by itself is looked for in the last 1000 of `branch` alone.
///
/// # Errors
/// [`CloneError`]; [`CloneError::CommitGone`] when there is no such commit.
pub async fn changed_paths(
    request: FetchRequest,
    head: &CommitSha,
    objects: &Path,
    cancel: &CancellationToken,
) -> Result<Vec<String>, CloneError> {
    let (head, objects) = (head.clone(), objects.to_owned());
    on_thread(request.url.clone(), cancel, move |watch| {
        let access = Access::new(&request.url, request.token, watch)?;
        let branch = request.branch.as_deref();
        remote::changed_paths(&access, &objects, &request.commit, branch, &head)
    })
    .await
}

/// Asks the repository at `url` what `name` stands for: a branch, a tag, a full `refs/…`, or `HEAD`
/// (the default branch). A full commit id is returned as it is, without asking. `scratch` holds a
/// repository of its own meanwhile.
///
/// # Errors
/// [`CloneError`]; [`CloneError::CommitGone`] when there is no such name.
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
    on_thread(url.to_owned(), cancel, move |watch| {
        remote::resolve(&Access::new(&address, token, watch)?, &name, &scratch)
    })
    .await
}

/// What a fetching thread and its caller tell each other.
#[derive(Debug, Default)]
struct Watch {
    cancelled: AtomicBool,
    /// Rises with every sign of life.
    signs: AtomicU64,
    /// Received by transfers that have ended, and by the one that goes on.
    bytes_before: AtomicU64,
    bytes_now: AtomicU64,
    /// The thread writes to the disk and waits for nobody.
    on_disk: AtomicBool,
}

impl Watch {
    /// Notes a sign of life; `false` means to stop.
    fn go_on(&self) -> bool {
        self.signs.fetch_add(1, Ordering::Relaxed);
        !self.cancelled.load(Ordering::Relaxed)
    }

    /// Does `work`, which neither waits for a server nor must be left behind: it writes files.
    fn on_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        self.on_disk.store(true, Ordering::Relaxed);
        let result = work();
        self.on_disk.store(false, Ordering::Relaxed);
        result
    }

    fn received(&self, bytes: u64) {
        self.bytes_now.store(bytes, Ordering::Relaxed);
    }

    fn transfer_ended(&self) {
        let bytes = self.bytes_now.swap(0, Ordering::Relaxed);
        self.bytes_before.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes_before.load(Ordering::Relaxed) + self.bytes_now.load(Ordering::Relaxed)
    }
}

async fn on_thread<T: Send + 'static>(
    url: String,
    cancel: &CancellationToken,
    work: impl FnOnce(Arc<Watch>) -> Result<T, CloneError> + Send + 'static,
) -> Result<T, CloneError> {
    let watch = Arc::new(Watch::default());
    // Dropping this future ends the thread as well.
    let _guard = CancelOnDrop(Arc::clone(&watch));
    let (sender, mut result) = oneshot::channel();
    let for_thread = Arc::clone(&watch);
    // Not `spawn_blocking`: the runtime would wait at its end for a thread that is left behind.
    std::thread::Builder::new()
        .name("git".to_owned())
        .spawn(move || sender.send(work(for_thread)))
        .map_err(|error| CloneError::Internal(error.to_string()))?;

    let died = |_| Err(CloneError::Internal("the fetching thread died".to_owned()));
    tokio::select! {
        result = &mut result => result.unwrap_or_else(died),
        () = cancel.cancelled() => {
            watch.cancelled.store(true, Ordering::Relaxed);
            // Its files are no longer touched once it has answered.
            let mut signs = watch.signs.load(Ordering::Relaxed);
            while timeout(CANCEL_GRACE, &mut result).await.is_err() {
                let now = watch.signs.load(Ordering::Relaxed);
                if now == signs && !watch.on_disk.load(Ordering::Relaxed) {
                    break;
                }
                signs = now;
            }
            Err(CloneError::Cancelled)
        }
        () = silence(&watch) => {
            let detail = format!("nothing was received for {} s", SILENCE_MAX.as_secs());
            Err(CloneError::Network { url: shown(&url), detail })
        }
    }
}

struct CancelOnDrop(Arc<Watch>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Ends once there was no sign of life for [`SILENCE_MAX`].
async fn silence(watch: &Watch) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut signs, mut since) = (0, Instant::now());
    while since.elapsed() < SILENCE_MAX {
        ticks.tick().await;
        let now = watch.signs.load(Ordering::Relaxed);
        if now != signs || watch.on_disk.load(Ordering::Relaxed) {
            (signs, since) = (now, Instant::now());
        }
    }
}

/// `url` without what may be secret in it.
pub(crate) fn shown(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return "the repository".to_owned() };
    // Only an address without a host refuses these, and that has no credentials.
    let _ = parsed.set_password(None);
    let _ = parsed.set_username("");
    parsed.set_query(None);
    parsed.into()
}
