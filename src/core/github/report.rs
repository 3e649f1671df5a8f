//! What GitHub shows of an environment: the comment on its pull request, and the statuses of its commit.

pub(crate) mod reporter;

pub(crate) mod queue;
pub(crate) mod target;

pub(crate) mod view;

mod comment;
mod statuses;

mod excerpt;
mod markdown;

#[cfg(test)]
mod fixtures;
