//! Why GitHub's news makes no event.

use stagely_state::GithubRepository;
use thiserror::Error;

use crate::core::github::webhook::command::UnknownCommand;
use crate::core::github::webhook::event::Irrelevant;
use crate::core::intake::fields::InvalidRequest;

/// The reason why news makes no event, for people.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum Ignored {
    #[error("GitHub reaches this core")]
    Ping,
    #[error(transparent)]
    Irrelevant(#[from] Irrelevant),
    #[error("no project is of {0}; see `stagely project add`")]
    NoProject(GithubRepository),
    #[error("nothing was built for pull request {0}")]
    NothingBuilt(u64),
    #[error("the pull request is closed")]
    ClosedPullRequest,
    #[error("drafts are not built; github.drafts changes that")]
    Draft,
    #[error("pull requests from forks are not built in this project")]
    Fork,
    #[error("the label is neither github.approval-label nor `stagely-preview`")]
    OtherLabel,
    #[error("only a commit of a fork is approved with a label")]
    LabelWithoutFork,
    #[error(transparent)]
    UnknownCommand(#[from] UnknownCommand),
    #[error(transparent)]
    InvalidReference(#[from] InvalidRequest),
}
