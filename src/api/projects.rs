//! `/projects`: repositories, and the projects that build their pull requests.

use std::num::NonZeroU32;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use stagely_state::ids::ProjectId;
use stagely_state::{ForkPolicy, GithubRepository};
use utoipa::ToSchema;

use super::encoding::expose;

/// A project.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// The project's id.
    #[schema(value_type = String)]
    pub id: ProjectId,
    /// The project's name, which is part of its images' names.
    pub name: String,
    /// The address to clone from.
    pub repository: String,
    /// `owner/name` at GitHub. Null if runs are only started by people and scripts.
    pub github: Option<String>,
    /// The policy for pull requests from forks.
    #[schema(value_type = Option<String>)]
    pub forks: Option<ForkPolicy>,
    /// The most machines at once.
    #[schema(value_type = Option<u32>)]
    pub max_concurrent: Option<NonZeroU32>,
    /// Whether the project is defined in `stagely.toml`.
    pub configured: bool,
    /// Whether the project has a token of its own.
    pub has_token: bool,
}

/// `POST /projects`: adds a GitHub repository whose pull requests are built from now on, or changes an
/// existing one.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddProject {
    /// `owner/name` of the repository.
    #[schema(value_type = String, example = "owner/name")]
    pub github: GithubRepository,
    /// The project's name. Default: its present name, or a name derived from the repository's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A token for this repository alone. Stored encrypted. Default: its present token, or that of
    /// `[github]`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub token: Option<SecretString>,
    /// The policy for pull requests from forks: `approval`, `never` or `known-contributors`. Default:
    /// `approval`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub forks: ForkPolicy,
    /// The most machines at once. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub max_concurrent: Option<NonZeroU32>,
}
