//! `/previews`: running pull requests and branches, and what is done with them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stagely_protocol::{CommitSha, ImageRef, ServiceState, TerminalSize};
use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};
use stagely_state::{Access, ProviderName, Timestamp};
use utoipa::{IntoParams, ToSchema};

/// The status of a preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PreviewStatus {
    /// The first deployment is under way.
    Deploying,
    /// It serves.
    Live,
    /// It serves, and another deployment is under way.
    Updating,
    /// Its containers stop, and its data is archived.
    Archiving,
    /// It has no machine. The next request wakes it.
    Asleep,
    /// It starts from its archive.
    Waking,
    /// Its machines are being ended.
    Ending,
    /// It has ended. The next deployment begins it again.
    Ended,
    /// The first deployment failed. The next deployment begins it again.
    Failed,
}

impl PreviewStatus {
    /// The status as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploying => "deploying",
            Self::Live => "live",
            Self::Updating => "updating",
            Self::Archiving => "archiving",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Ending => "ending",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }

    /// Whether the preview is not over.
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Ending | Self::Ended)
    }

    /// Whether the status changes without a request.
    pub const fn is_passing(self) -> bool {
        match self {
            Self::Deploying | Self::Updating | Self::Archiving | Self::Waking | Self::Ending => {
                true
            }
            Self::Live | Self::Asleep | Self::Ended | Self::Failed => false,
        }
    }
}

/// A preview.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PreviewView {
    /// The preview's id.
    #[schema(value_type = String, example = "prev_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: PreviewId,
    /// The first part of its host name: `pr-7-app`.
    pub label: String,
    /// The name of the project.
    pub project: String,
    /// The environment's id.
    #[schema(value_type = String)]
    pub environment_id: EnvironmentId,
    /// The environment's name.
    pub environment: String,
    /// The number of the pull request.
    pub pull_request: Option<u64>,
    /// The preview's status.
    pub status: PreviewStatus,
    /// Why the last deployment or archive failed.
    pub problem: Option<String>,
    /// The commit that it shows.
    #[schema(value_type = Option<String>)]
    pub commit: Option<CommitSha>,
    /// The run that it shows.
    #[schema(value_type = Option<String>)]
    pub run_id: Option<RunId>,
    /// The number of the deployment that it shows.
    pub generation: Option<u64>,
    /// The deployment under way.
    pub deployment: Option<DeploymentView>,
    /// The run that builds its images again, because the registry has lost them.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub rebuild_id: Option<RunId>,
    /// Who may open it: `public`, `link` or `token`. Null before the first deployment.
    #[schema(value_type = Option<String>)]
    pub access: Option<Access>,
    /// The address of the first endpoint. For a token of role `write` or `admin` it contains the key that opens the
    /// preview.
    pub url: Option<String>,
    /// The address of each endpoint, by its name.
    pub urls: BTreeMap<String, String>,
    /// Where each endpoint listens on core's own machine, without access control. Empty for previews on other machines.
    #[serde(default)]
    pub direct_urls: BTreeMap<String, String>,
    /// The image of each service that was built.
    #[schema(value_type = BTreeMap<String, String>)]
    pub images: BTreeMap<String, ImageRef>,
    /// The machine that serves it.
    #[schema(value_type = Option<String>)]
    pub machine_id: Option<MachineId>,
    /// The provider of a launched machine.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderName>,
    /// The services, as the agent reported them last.
    #[schema(value_type = Vec<Object>)]
    pub services: Vec<ServiceState>,
    /// What is wrong with the services, for people.
    pub warnings: Vec<String>,
    /// The free space on the machine's disk, in bytes.
    pub disk_free_bytes: Option<u64>,
    /// The archive of its data.
    pub archive: Option<ArchiveView>,
    /// The last loss of data, until it is archived again.
    pub data_loss: Option<DataLossView>,
    /// The time at which the preview was first deployed.
    #[schema(value_type = u64)]
    pub created_at: Timestamp,
    /// The time at which it was last deployed or used.
    #[schema(value_type = u64)]
    pub active_at: Timestamp,
    /// The time at which it will be put to sleep if nobody uses it.
    #[schema(value_type = Option<u64>)]
    pub sleeps_at: Option<Timestamp>,
    /// The time at which it will end if nobody uses it.
    #[schema(value_type = Option<u64>)]
    pub ends_at: Option<Timestamp>,
}

/// A deployment under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// The deploy job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// The run of the job.
    #[schema(value_type = Option<String>)]
    pub run_id: Option<RunId>,
    /// The commit of the run.
    #[schema(value_type = Option<String>)]
    pub commit: Option<CommitSha>,
    /// Why it has no machine yet, and what helps, for people.
    #[serde(default)]
    pub waits: Option<String>,
}

/// The stored data of a preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArchiveView {
    /// The size, compressed.
    pub bytes: u64,
    /// The time at which it was made.
    #[schema(value_type = u64)]
    pub made_at: Timestamp,
}

/// Data that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataLossView {
    #[schema(value_type = u64)]
    pub at: Timestamp,
    /// The time of the archive that takes the place of the data; null if the data is fresh.
    #[schema(value_type = Option<u64>)]
    pub archived_at: Option<Timestamp>,
    /// The reason, for people.
    pub reason: String,
}

/// `POST /previews/{id}/extend`: how much longer a preview may stay unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendPreview {
    /// At most 30 days.
    #[schema(example = 259_200)]
    pub seconds: u64,
}

/// `GET /previews`: the previews to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListPreviews {
    /// The name of the project. Default: all projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The name of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The number of the pull request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
    /// The status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PreviewStatus>,
    /// Whether to include previews that have ended. Default: false.
    #[serde(default)]
    pub all: bool,
}

/// `GET /previews/{id}/logs`: the part of the log of the services.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PreviewLogRange {
    /// The number of the deployment whose services wrote the lines. Default: the one that the preview shows. Only the
    /// last two are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The number of the first line, from 0. Default: the oldest line that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Begin so many lines before the end, instead of `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
}

/// The first message of `GET /previews/{id}/exec`: what to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The service of the compose file; `app` without one.
    pub service: String,
    /// The command with its arguments.
    pub command: Vec<String>,
    /// The size of the terminal: `columns` and `rows`. Default: the command has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub terminal: Option<TerminalSize>,
}
