//! GitHub: its deliveries, core's requests, and the reports.

pub mod webhook;

pub(crate) mod report;

pub(crate) mod reconcile;

mod client;

mod payload;

pub use client::Github;
pub use client::deliveries::{DeliveryContent, FailedDelivery};
pub use client::deployments::NewDeployment;
pub use client::error::GithubError;
pub use client::limits::GithubHealth;
pub use client::repository::Permission;
pub use payload::{PullRequest, PullRequestState, Repository};
