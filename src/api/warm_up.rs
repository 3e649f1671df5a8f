//! `/warm-up`: runs that only fill caches.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use stagely_state::Timestamp;
use utoipa::ToSchema;

use super::encoding::expose;

/// `POST /projects/{name}/warm-ups`: fills a project's caches. Nothing else is pushed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWarmUp {
    /// The branch. Default: the default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// A token that may read the repository. Stored encrypted until the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
}

/// `GET /warm-up`: the effective settings of `[warm-up]`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmUpView {
    /// The cron expression, in UTC; null if nothing is scheduled.
    pub schedule: Option<String>,
    /// The next time that it is due.
    #[schema(value_type = Option<u64>)]
    pub next_due_at: Option<Timestamp>,
    /// The names of the projects.
    pub projects: Vec<String>,
    /// The branches. Empty: the default branch.
    pub branches: Vec<String>,
}
