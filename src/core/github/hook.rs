//! What a webhook says, as far as core has use for it: the signature first, then the payload.

use secrecy::SecretString;
use stagely_agent::protocol::CommitSha;
use thiserror::Error;

use crate::core::state::{CommandKind, GithubRepository, Timestamp};

/// A pull request, as deliveries and GitHub's lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number.
    pub number: u64,
    /// Whether it is open.
    pub is_open: bool,
    /// Whether its author says that it is not ready.
    pub is_draft: bool,
    /// The commit that it is at.
    pub head: CommitSha,
    /// The branch of that commit, in its own repository.
    pub head_branch: String,
    /// Whether that repository is another one, or is gone.
    pub is_from_fork: bool,
    /// The branch that it is to be merged into.
    pub base_branch: String,
    /// Who opened it.
    pub author: String,
    /// Whether GitHub has seen commits of the author in the repository before.
    pub is_known_contributor: bool,
    /// When it last changed, by GitHub's clock.
    pub updated_at: Timestamp,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
}

/// A repository, as deliveries show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`.
    pub full_name: GithubRepository,
    /// Its default branch.
    pub default_branch: String,
    /// Whether it can be cloned with a token only.
    pub is_private: bool,
}

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The webhook was set up.
    Ping,
    /// `pull_request` with the action `opened`, `reopened`, `ready_for_review` or `synchronize`.
    Head {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
        /// Whether commits were pushed; else it was opened.
        is_push: bool,
        /// The commit that it was at, if commits were pushed.
        before: Option<CommitSha>,
    },
    /// `pull_request` with the action `closed`, merged or not.
    Closed {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
    },
    /// `pull_request` with the action `labeled`.
    Labeled {
        /// The repository.
        repository: Repository,
        /// The pull request.
        pull_request: PullRequest,
        /// The label.
        label: String,
        /// Who attached it.
        sender: String,
    },
    /// `push` to the default branch.
    Push {
        /// The repository.
        repository: Repository,
        /// The commit that the branch is at.
        head: CommitSha,
        /// The commit that it was at.
        before: Option<CommitSha>,
        /// When, by GitHub's clock.
        at: Timestamp,
    },
    /// `issue_comment`: a new comment of a pull request with a command in it.
    Command {
        /// The repository.
        repository: Repository,
        /// The pull request.
        number: u64,
        /// The comment's id.
        comment: u64,
        /// Who wrote it.
        author: String,
        /// What is asked for; `Err`: it begins with `/stagely` and says nothing that is known.
        command: Result<CommandKind, String>,
        /// When it was written, by GitHub's clock.
        at: Timestamp,
    },
    /// Anything else, with the reason why core has no use for it, for people.
    Ignored(String),
}

/// The signature is missing or not that of the body.
#[derive(Debug, Error)]
#[error("the signature is not that of the body under the webhook's secret")]
pub struct BadSignature;

/// A payload that does not hold what its event must.
#[derive(Debug, Error)]
#[error("the payload of `{event}` cannot be read: {problem}")]
pub struct InvalidPayload {
    /// The event.
    pub event: String,
    /// What is missing or wrong, and where.
    pub problem: String,
}

/// Checks `X-Hub-Signature-256` in constant time.
///
/// # Errors
/// [`BadSignature`].
pub fn verify(
    secret: &SecretString,
    body: &[u8],
    signature: Option<&str>,
) -> Result<(), BadSignature> {
    let _ = (secret, body, signature);
    unimplemented!("the webhook's helper")
}

/// Reads the payload of `event`.
///
/// # Errors
/// [`InvalidPayload`].
pub fn parse(event: &str, body: &[u8]) -> Result<Hook, InvalidPayload> {
    let _ = (event, body);
    unimplemented!("the webhook's helper")
}
