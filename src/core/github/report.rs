//! What GitHub shows of an environment: the comment on its pull request, the statuses of its commit, and the deployments
//! of its preview.

pub(crate) mod reporter;

pub(crate) mod queue;
pub(crate) mod target;

pub(crate) mod view;

mod comment;
mod deployments;
mod statuses;

mod excerpt;
mod markdown;

#[cfg(test)]
mod fixtures;
