//! `/github` and `/webhooks/github`: the connection with GitHub, and deliveries of webhooks.

use serde::{Deserialize, Serialize};
use stagely_state::Timestamp;
use utoipa::ToSchema;

/// The outcome of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryOutcome {
    /// The delivery and its effect are stored.
    Accepted,
    /// The delivery has no effect.
    Ignored,
    /// The delivery was received before.
    Repeated,
}

/// The response to `POST /webhooks/github`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// The delivery's id: the digits of `X-GitHub-Delivery`.
    pub delivery: String,
    /// The outcome.
    pub outcome: DeliveryOutcome,
    /// The effect, or the reason for none, for people.
    pub detail: String,
}

/// `GET /github`: the connection with GitHub.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GithubView {
    /// The kind of core's credentials: `app`, `token` or `none`.
    pub credentials: String,
    /// Whether core can verify webhooks.
    pub webhook_secret: bool,
    /// The requests left in this hour, of the credentials with the fewest.
    pub remaining: Option<u64>,
    /// The time at which the number of requests is reset.
    #[schema(value_type = Option<u64>)]
    pub resets_at: Option<Timestamp>,
    /// The end of a pause without requests, because GitHub's rate limit is reached.
    #[schema(value_type = Option<u64>)]
    pub blocked_until: Option<Timestamp>,
    /// The last failure.
    pub problem: Option<String>,
    /// The projects whose repositories are watched.
    pub projects: Vec<ReconciledView>,
}

/// The last comparison of a project with its repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReconciledView {
    /// The project's name.
    pub project: String,
    /// The time of the comparison. Null if there was none since core started.
    #[schema(value_type = Option<u64>)]
    pub reconciled_at: Option<Timestamp>,
    /// Why the comparison failed.
    pub problem: Option<String>,
    /// Why core writes no deployments of previews there. Null if it does, or has not tried.
    #[serde(default)]
    pub deployments_problem: Option<String>,
}
