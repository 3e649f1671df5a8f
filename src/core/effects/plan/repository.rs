//! Reads a run's repository with git. Requests are repeated after network errors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use stagely_agent::git::{self, CloneError, FetchRequest, ResolvedRef};
use stagely_protocol::{CloneProblem, FailureReason};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::core::disk::DiskGuard;
use crate::core::retry::{Retry, RetryPolicy};

/// Attempts follow after 1, 4, 16 and 45 seconds.
const GIT_RETRIES: RetryPolicy =
    RetryPolicy::new(Duration::from_secs(1), Duration::from_secs(45)).factor(4.0).retries_max(4);

/// A commit on the disk.
pub(in crate::core::effects) struct Checkout {
    /// Deleted with the value.
    folder: TempDir,
}

impl Checkout {
    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("src")
    }

    /// The received objects, for comparisons.
    pub(in crate::core::effects) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }
}

/// Fetches into folders of `scratch`.
#[derive(Debug)]
pub(crate) struct RepositoryReader {
    pub(super) scratch: PathBuf,
    disk: DiskGuard,
}

impl RepositoryReader {
    /// `scratch` is the folder for short-lived checkouts.
    pub(crate) fn new(scratch: &Path, disk: DiskGuard) -> Self {
        Self { scratch: scratch.to_owned(), disk }
    }

    /// The most bytes that one fetch may receive, and the most that it may write: together they may take up the free space.
    pub(in crate::core::effects) async fn bytes_max(&self) -> u64 {
        self.disk.free_above_reserve().await / 2
    }

    pub(super) async fn resolve(
        &self,
        url: &str,
        wanted: &str,
        token: Option<SecretString>,
        cancel: &CancellationToken,
    ) -> Result<ResolvedRef, CloneError> {
        let inputs =
            (url.to_owned(), token, wanted.to_owned(), self.scratch.clone(), cancel.clone());
        retry("looking up the commit", cancel, move || {
            let (url, token, wanted, scratch, cancel) = inputs.clone();
            async move { git::resolve_ref(&url, token, &wanted, &scratch, &cancel).await }
        })
        .await
    }

    pub(in crate::core::effects) async fn check_out(
        &self,
        request: FetchRequest,
        cancel: &CancellationToken,
    ) -> Result<Checkout, CloneError> {
        let (scratch, stop) = (self.scratch.clone(), cancel.clone());
        retry("fetching the commit", cancel, move || {
            let (request, scratch, stop) = (request.clone(), scratch.clone(), stop.clone());
            async move {
                let folder = TempDir::with_prefix_in("plan-", &scratch)
                    .map_err(|error| CloneError::Internal(error.to_string()))?;
                let checkout = Checkout { folder };
                let (root, objects) = (checkout.root(), checkout.objects());
                git::fetch_commit_and_objects(request, &root, &objects, &stop).await?;
                Ok(checkout)
            }
        })
        .await
    }
}

/// Repeats `attempt` after network errors.
async fn retry<T, F: Future<Output = Result<T, CloneError>>>(
    what: &str,
    cancel: &CancellationToken,
    mut attempt: impl FnMut() -> F,
) -> Result<T, CloneError> {
    let attempt = || {
        let attempt = attempt();
        async { attempt.await.map_err(CloneError::or_ended_server) }
    };
    let network = FailureReason::Clone { problem: CloneProblem::Network };
    let is_transient = |error: &CloneError| Retry::if_transient(error.reason() == network);
    let result = GIT_RETRIES.run_until(cancel, what, is_transient, attempt).await;
    result.map_err(|error| if cancel.is_cancelled() { CloneError::Cancelled } else { error })
}
