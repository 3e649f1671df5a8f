//! The event of a delivery, as far as core uses it.

use stagely_protocol::CommitSha;
use stagely_state::{CommandKind, Timestamp};
use thiserror::Error;

use super::command::UnknownCommand;
use crate::core::github::{PullRequest, Repository};

/// The event of a delivery. Times are by GitHub's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WebhookEvent {
    /// The webhook was set up.
    Ping,
    /// `pull_request` with the action `opened`, `reopened`, `ready_for_review` or `synchronize`.
    HeadMoved {
        repository: Repository,
        pull_request: PullRequest,
        /// Whether commits were pushed; otherwise the pull request was opened.
        is_push: bool,
        before: Option<CommitSha>,
    },
    /// `pull_request` with the action `closed`, merged or not.
    PullRequestClosed {
        repository: Repository,
        pull_request: PullRequest,
    },
    /// `pull_request` with the action `labeled`.
    Labeled {
        repository: Repository,
        pull_request: PullRequest,
        label: String,
        sender: String,
    },
    /// `pull_request` with the action `unlabeled`.
    Unlabeled {
        repository: Repository,
        pull_request: PullRequest,
        label: String,
    },
    /// `push` to the default branch.
    BranchPushed {
        repository: Repository,
        head: CommitSha,
        before: Option<CommitSha>,
        at: Timestamp,
    },
    /// `issue_comment`: a new comment on a pull request, with a command in it.
    Commanded {
        repository: Repository,
        /// The pull request.
        number: u64,
        comment: u64,
        author: String,
        command: Result<CommandKind, UnknownCommand>,
        at: Timestamp,
    },
    Irrelevant(Irrelevant),
}

/// The reason why core does not use an event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Irrelevant {
    #[error("core has no use for this event")]
    Event,
    #[error("core has no use for this action of a pull request")]
    Action,
    /// The label was deleted before GitHub wrote the payload.
    #[error("it names no label")]
    NoLabel,
    #[error("it is not a push to the default branch")]
    OtherBranch,
    #[error("the branch was deleted")]
    BranchDeleted,
    #[error("only a new comment can hold a command")]
    CommentChanged,
    #[error("it is a comment of an issue and of no pull request")]
    IssueComment,
    #[error("the comment holds no command")]
    NoCommand,
    #[error("the comment is of nobody who may give commands")]
    NoPerson,
    /// A late delivery whose pull request was in a list that was read after it.
    #[error("the list of pull requests says more")]
    Outdated,
    /// A late delivery that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] InvalidPayload),
}

/// A payload lacks what its event must have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the payload of `{event}` cannot be read: {problem}")]
pub(crate) struct InvalidPayload {
    pub(crate) event: String,
    /// The field, and what is wrong with it.
    pub(crate) problem: String,
}
