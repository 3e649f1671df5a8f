//! `/runs`: requests for runs, and runs as the API shows them.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use stagely_protocol::{CommitSha, FailureReason, ImageRef};
use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{Approval, CancelReason, Timestamp, Trigger};
use utoipa::{IntoParams, ToSchema};

use super::cost::SpendingView;
use super::encoding::{expose, expose_all};
use super::jobs::JobView;
use super::wait::WaitView;

/// `POST /runs`: builds a commit of a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// The address to clone from: `http://…`, `https://…` or `git://…`, without credentials.
    #[schema(example = "https://github.com/owner/repository.git")]
    pub repository: String,
    /// A branch, a tag or a full commit hash. Default: the default branch.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// A token that may read the repository. Stored encrypted until the run ends.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
    /// The project's name. Default: derived from the repository's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment's name. Default: derived from the branch or tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The number of the commit's pull request. The environment is then `pr-N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork. Such a run reads caches and never writes them. Default:
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_fork: bool,
    /// The branch or full commit hash that the builds' `paths` are compared with. Default: the default
    /// branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The builds of `stagely.yaml` to run, with the builds that they depend on. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<String>,
    /// Build arguments for every build; they override those of `stagely.yaml`. Stored encrypted until
    /// the run ends.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "expose_all")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub set: BTreeMap<String, SecretString>,
    /// Whether to deploy a preview, whatever `on` and `branches` of `stagely.yaml` say. Default: as they say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<bool>,
    /// Whether to leave out the tests of `stagely.yaml`. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_tests: bool,
}

impl CreateRun {
    /// A run of all builds of the repository's default branch.
    pub const fn new(repository: String) -> Self {
        Self {
            repository,
            reference: None,
            clone_token: None,
            project: None,
            environment: None,
            pull_request: None,
            from_fork: false,
            base: None,
            builds: Vec::new(),
            set: BTreeMap::new(),
            preview: None,
            without_tests: false,
        }
    }
}

/// `POST /runs/{id}/rebuild`: starts a new run of the same commit.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebuildRun {
    /// Whether to build only the jobs that did not complete, and reuse the images of completed jobs.
    /// Default: false.
    #[serde(default)]
    pub failed: bool,
    /// A token that may read the repository. The token of the earlier run is no longer stored.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
    /// Build arguments. Those of the earlier run are no longer stored, so the same names must be given
    /// again; with `failed`, no others are allowed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "expose_all")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub set: BTreeMap<String, SecretString>,
    /// Whether to deploy a preview although `on` of `stagely.yaml` is `label` or `manual`. With `failed`, a run that
    /// completed may be rebuilt. Default: that of the earlier run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preview: bool,
    /// Whether to run all tests again, also those that have passed, and to reuse images and the preview that are there. A
    /// run that completed may be rebuilt so. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tests: bool,
}

impl RebuildRun {
    /// Whether jobs that completed in the earlier run are reused.
    pub const fn reuses(&self) -> bool {
        self.failed || self.tests
    }
}

/// `GET /runs`: the page of the list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListRuns {
    /// The most runs in the response, newest first. Default: 50; at most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only runs older than this one. Give the last id of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub before: Option<RunId>,
}

/// The status of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// The run has no jobs yet: its `stagely.yaml` is being read, or it waits for approval.
    Pending,
    /// Its jobs wait or run.
    Building,
    /// All images are there, and the preview is not.
    Deploying,
    /// Only tests are left.
    Testing,
    /// All jobs completed.
    Completed,
    /// A job failed, or the run could not be planned.
    Failed,
    /// The run was stopped.
    Cancelled,
}

impl RunStatus {
    /// Whether the status can no longer change.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Building | Self::Deploying | Self::Testing => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The status as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Building => "building",
            Self::Deploying => "deploying",
            Self::Testing => "testing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A run of one commit.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// The run's id.
    #[schema(value_type = String, example = "run_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: RunId,
    /// The run's status.
    pub status: RunStatus,
    /// The cause of a failed run without jobs. Failed jobs have causes of their own.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<FailureReason>,
    /// Why a failed run has no jobs: every error of `stagely.yaml`, each on one line.
    pub error: Option<String>,
    /// Why the run is being stopped or was stopped.
    #[schema(value_type = Option<String>)]
    pub cancel_reason: Option<CancelReason>,
    /// The project's id.
    #[schema(value_type = String)]
    pub project_id: ProjectId,
    /// The project's name.
    pub project: String,
    /// The environment's id.
    #[schema(value_type = String)]
    pub environment_id: EnvironmentId,
    /// The environment's name.
    pub environment: String,
    /// The address to clone from.
    pub repository: String,
    /// The branch, tag or commit hash of the request.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The commit, once it is resolved.
    #[schema(value_type = Option<String>)]
    pub commit: Option<CommitSha>,
    /// The cause of the run.
    #[schema(value_type = String)]
    pub trigger: Trigger,
    /// The time of the request.
    #[schema(value_type = u64)]
    pub created_at: Timestamp,
    /// The time at which the run ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Timestamp>,
    /// The number of the environment's pull request.
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork.
    pub from_fork: bool,
    /// Whether somebody must approve the run before it starts: `status` is `not_needed`, `awaited` or
    /// `given`, the last with `by`.
    #[schema(value_type = Object)]
    pub approval: Approval,
    /// The earlier run whose completed jobs this run reuses.
    #[schema(value_type = Option<String>)]
    #[serde(rename = "keeps")]
    pub reuses: Option<RunId>,
    /// The builds that the run skips.
    pub skipped: Vec<SkippedBuildView>,
    /// The number of merges done on a machine of a build, without launching another machine.
    pub saved_machines: usize,
    /// The number of machines launched for the run that still exist.
    pub live_machines: usize,
    /// What the run's jobs have cost, also while machines still run; null if that is nothing or no price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<SpendingView>,
    /// What the run waits for outside of core: a repository, GitHub or a registry that does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<WaitView>,
    /// The jobs, in the order of the plan. Empty in lists of runs.
    pub jobs: Vec<JobView>,
}

/// A build that a run skips.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SkippedBuildView {
    /// The build's name, with its combination of the matrix.
    pub build: String,
    /// The reason, for people.
    pub reason: String,
    /// The image used instead, by digest.
    #[schema(value_type = Option<String>)]
    pub image: Option<ImageRef>,
}
