//! The JSON of core's HTTP API, shared by the server and the client commands.
//!
//! Times are milliseconds since the Unix epoch. The server refuses unknown fields of requests, so that a
//! misspelled field is noticed; clients ignore unknown fields of responses.

mod cost;
mod encoding;
mod environments;
mod github;
mod jobs;
mod logs;
mod machines;
mod previews;
mod projects;
mod queue;
mod runs;
mod secrets;
mod sweep;
mod test_results;
mod tokens;
mod wait;
mod warm_up;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use cost::{
    AllowBudget, BudgetView, CostView, GetCost, MonthCostView, ProjectCostView,
    PullRequestCostView, SpendingView,
};
pub(crate) use encoding::dollars;
pub use environments::{EnvironmentImage, EnvironmentView, ListEnvironments, RebuildEnvironment};
pub use github::{DeliveryOutcome, DeliveryView, GithubView, ReconciledView};
pub use jobs::{JobKindView, JobStatus, JobView, LostAttempt, TestView};
pub use logs::{FollowMessage, FollowedLine, LogRange};
pub use machines::{AddMachine, AddedMachine, ListMachines, MachineStatus, MachineView};
pub use previews::{
    ArchiveView, DataLossView, DeploymentView, ExecRequest, ExtendPreview, ListPreviews,
    PreviewLogRange, PreviewStatus, PreviewView,
};
pub use projects::{AddProject, ProjectView};
pub use queue::{QueuePosition, QueueView, QueuedJobView};
pub use runs::{CreateRun, ListRuns, RebuildRun, RunStatus, RunView, SkippedBuildView};
pub use secrets::{SECRET_BYTES_MAX, SecretView, SetSecret};
pub use sweep::{ProviderSweepView, SweepAction, SweepView, SweptMachine};
pub use test_results::{counts, total};
pub use tokens::{CreateToken, CreatedToken, Role};
pub use wait::WaitView;
pub use warm_up::{CreateWarmUp, WarmUpView};

/// The common path prefix of the API.
pub const BASE_PATH: &str = "/api/v1";

/// The body of every error response.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A code for programs: `not_found`, `invalid_request`, `unauthorized`, `forbidden`…
    pub code: String,
    /// A message for people: the problem and what to do.
    pub message: String,
}
