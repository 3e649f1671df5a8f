//! The only code that speaks with GitHub's API.

use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use stagely_agent::protocol::CommitSha;
use thiserror::Error;

use super::hook::{PullRequest, Repository};
use crate::config::GithubConfig;
use crate::core::effects::Secrets;
use crate::core::state::{CommitStatus, DeliveryId, Project, Timestamp};

/// What GitHub did not do.
#[derive(Debug, Error)]
pub enum GithubError {
    /// It did not answer, or with a 5xx: it may later.
    #[error("GitHub does not answer: {0}")]
    Unavailable(String),
    /// It answers again after a moment.
    #[error("GitHub allows no more requests until {until:?}")]
    RateLimited {
        /// The moment.
        until: Timestamp,
    },
    /// It is not there, or not for these credentials.
    #[error("GitHub has no {0}, or does not show it to these credentials")]
    NotFound(String),
    /// It refuses.
    #[error("GitHub refuses ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// Core lacks what it takes, or it cannot be read.
    #[error("{0}")]
    Credentials(String),
}

impl GithubError {
    /// Whether the same request may succeed later without anybody doing something.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::RateLimited { .. } => true,
            Self::NotFound(_) | Self::Refused { .. } | Self::Credentials(_) => false,
        }
    }
}

/// What an account may do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Push.
    Write,
    /// All.
    Admin,
}

/// A delivery that no core answered well.
#[derive(Clone, Debug)]
pub struct FailedDelivery {
    /// GitHub's number of this try.
    pub id: u64,
    /// What all its tries have in common.
    pub delivery: DeliveryId,
    /// When.
    pub at: Timestamp,
}

/// How core gets on with GitHub: `GET /github`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubHealth {
    /// Requests left in this hour, of the credentials that have the fewest.
    pub remaining: Option<u64>,
    /// When these are as many as at the start again.
    pub resets_at: Option<Timestamp>,
    /// Nothing is asked before this moment: GitHub's limit is reached.
    pub blocked_until: Option<Timestamp>,
    /// The last failure, for people; `None` after a success.
    pub problem: Option<String>,
}

/// Asks GitHub. Clones share limits and tokens.
#[derive(Clone, Debug)]
pub struct Github {
    config: Arc<GithubConfig>,
}

impl Github {
    /// Makes the client. Files that hold secrets are read when they are needed.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(config: &GithubConfig, secrets: Secrets) -> anyhow::Result<Self> {
        let _ = secrets;
        Ok(Self { config: Arc::new(config.clone()) })
    }

    /// Reads a file of a commit; `None` where it has none of that name.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn file(
        &self,
        project: &Project,
        path: &str,
        commit: &CommitSha,
    ) -> Result<Option<Vec<u8>>, GithubError> {
        unimplemented!("the client's helper")
    }

    /// A token that only reads the contents of this repository, for one job. `None` where nothing but a
    /// person's own token is known and `is_foreign` says that the commit is a fork's.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn clone_token(
        &self,
        project: &Project,
        is_foreign: bool,
    ) -> Result<Option<SecretString>, GithubError> {
        unimplemented!("the client's helper")
    }

    /// What `account` may do in the repository.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn permission(
        &self,
        project: &Project,
        account: &str,
    ) -> Result<Permission, GithubError> {
        unimplemented!("the client's helper")
    }

    /// The repository as it is now.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn repository(&self, project: &Project) -> Result<Repository, GithubError> {
        unimplemented!("the client's helper")
    }

    /// All open pull requests.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn open_pull_requests(
        &self,
        project: &Project,
    ) -> Result<Vec<PullRequest>, GithubError> {
        unimplemented!("the client's helper")
    }

    /// One pull request.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn pull_request(
        &self,
        project: &Project,
        number: u64,
    ) -> Result<PullRequest, GithubError> {
        unimplemented!("the client's helper")
    }

    /// The comment of a pull request that holds `marker`.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn find_comment(
        &self,
        project: &Project,
        number: u64,
        marker: &str,
    ) -> Result<Option<u64>, GithubError> {
        unimplemented!("the client's helper")
    }

    /// Writes a comment and returns its id. Waits for the budget of writes first.
    ///
    /// # Errors
    /// [`GithubError`]; it may be written all the same.
    pub async fn create_comment(
        &self,
        project: &Project,
        number: u64,
        body: &str,
    ) -> Result<u64, GithubError> {
        unimplemented!("the client's helper")
    }

    /// Writes a comment anew.
    ///
    /// # Errors
    /// [`GithubError`]; [`GithubError::NotFound`] if somebody deleted it.
    pub async fn edit_comment(
        &self,
        project: &Project,
        comment: u64,
        body: &str,
    ) -> Result<(), GithubError> {
        unimplemented!("the client's helper")
    }

    /// Sets a status of a commit.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn set_status(
        &self,
        project: &Project,
        commit: &CommitSha,
        context: &str,
        status: &CommitStatus,
    ) -> Result<(), GithubError> {
        unimplemented!("the client's helper")
    }

    /// The deliveries since `since` that failed, the oldest first; none without a GitHub App.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn failed_deliveries(
        &self,
        since: Timestamp,
    ) -> Result<Vec<FailedDelivery>, GithubError> {
        unimplemented!("the client's helper")
    }

    /// The event and the payload of a delivery.
    ///
    /// # Errors
    /// [`GithubError`].
    pub async fn delivery(&self, id: u64) -> Result<(String, Vec<u8>), GithubError> {
        unimplemented!("the client's helper")
    }

    /// How core gets on with it.
    pub fn health(&self) -> GithubHealth {
        unimplemented!("the client's helper")
    }
}
