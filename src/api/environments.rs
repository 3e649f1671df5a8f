//! `/environments`: pull requests and branches, and their newest images.

use serde::{Deserialize, Serialize};
use stagely_protocol::{CommitSha, Digest, ImageRef};
use stagely_state::ids::{EnvironmentId, RunId};
use utoipa::{IntoParams, ToSchema};

/// An environment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentView {
    /// The environment's id.
    #[schema(value_type = String)]
    pub id: EnvironmentId,
    /// The name of the project.
    pub project: String,
    /// The environment's name.
    pub name: String,
    /// The number of the pull request.
    pub pull_request: Option<u64>,
    /// Whether the environment is closed. Its cache references are deleted.
    pub closed: bool,
    /// The newest run.
    #[schema(value_type = Option<String>)]
    pub newest_run: Option<RunId>,
    /// The newest completed image of each build.
    pub images: Vec<EnvironmentImage>,
    /// The cache references that only this environment writes.
    #[schema(value_type = Vec<String>)]
    pub cache_refs: Vec<ImageRef>,
    /// The newest commit known from GitHub.
    #[schema(value_type = Option<String>)]
    pub head: Option<CommitSha>,
    /// The id of the comment on the pull request.
    pub comment: Option<u64>,
    /// The address of the comment.
    pub comment_url: Option<String>,
    /// Why the newest run could not be reported to GitHub.
    pub report_problem: Option<String>,
}

/// The newest completed image of a build.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentImage {
    /// The build's name, with its combination of the matrix.
    pub build: String,
    /// The image reference that stays the same from run to run.
    #[schema(value_type = String)]
    pub tag: ImageRef,
    /// The image's digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The commit that the image was built from.
    #[schema(value_type = String)]
    pub commit: CommitSha,
}

/// `GET /environments`: the environments to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListEnvironments {
    /// The name of the project. Default: all projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// `POST /environments/{id}/rebuild`: rebuilds the newest run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebuildEnvironment {
    /// Whether to build only the jobs that did not complete, and reuse the images of completed jobs.
    /// Default: false.
    #[serde(default)]
    pub failed_only: bool,
    /// Whether to deploy a preview although `on` of `stagely.yaml` is `label` or `manual`. With `failed_only`, a run
    /// that completed may be rebuilt. Default: that of the newest run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preview: bool,
    /// Whether to run all tests again, also those that have passed, and to reuse images and the preview that are there.
    /// Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tests: bool,
}
