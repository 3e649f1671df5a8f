//! A project, an environment, and a workflow run: one commit's way through an environment.

use serde::{Deserialize, Serialize};
use stagely_agent::protocol::{CommitSha, FailureReason};

use super::{CancelReason, Timestamp};
use crate::ids::{EnvironmentId, ProjectId, RunId};

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Unique, and a path component of its images: lower-case letters, digits and single dashes.
    pub name: String,
    /// Where it is cloned from, without credentials.
    pub repository: String,
}

/// A pull request or branch of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// The project.
    pub project: ProjectId,
    /// Unique within the project, and a path component of its images: `main`, `pr-7`.
    pub name: String,
}

/// What caused a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A person or a script, through the API.
    Manual,
}

/// Why a run has no jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFailure {
    /// Whose fault it was.
    pub reason: FailureReason,
    /// What happened, for people; all errors of `stagely.yaml` at once.
    pub message: String,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RunState {
    /// Its `stagely.yaml` is being read.
    Pending,
    /// Its jobs wait or run.
    Building,
    /// Every job completed.
    Completed,
    /// A job failed, or the run could not be planned.
    Failed {
        /// Why there are no jobs; absent when a job failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan_error: Option<PlanFailure>,
    },
    /// It was stopped.
    Cancelled {
        /// By what.
        reason: CancelReason,
    },
}

impl RunState {
    /// Whether nothing more happens to the run.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Pending | Self::Building => false,
            Self::Completed | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }
}

/// One commit's way through an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The project.
    pub project: ProjectId,
    /// The environment.
    pub environment: EnvironmentId,
    /// What caused it.
    pub trigger: Trigger,
    /// Where this run is cloned from, without credentials: the project's repository, or a folder that
    /// is served for this run alone.
    pub repository: String,
    /// What was asked for: a branch, a tag or a commit. `None`: the default branch.
    pub requested_ref: Option<String>,
    /// The builds asked for; empty: all.
    pub only_builds: Vec<String>,
    /// The commit, once it is known.
    pub commit: Option<CommitSha>,
    /// A branch that holds the commit, once it is known.
    pub branch: Option<String>,
    /// How far it is.
    pub state: RunState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its planning began; `None` while others are planned before it.
    pub planning_since: Option<Timestamp>,
    /// When it reached its final state.
    pub ended_at: Option<Timestamp>,
}
