//! GitHub: what it delivers, what core asks it, and what it is told.

pub mod webhook;

pub(crate) mod report;

pub(crate) mod reconcile;

mod client;

mod payload;

pub use client::{FailedDelivery, Github, GithubError, GithubHealth, Permission};
pub use payload::{PullRequest, Repository};
