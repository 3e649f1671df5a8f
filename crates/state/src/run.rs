//! A project, and a workflow run: one commit's way through an environment.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stagely_protocol::{CommitSha, FailureReason, ImageRef};

use super::{
    Approval, CancelReason, Environment, GithubLink, GithubRun, IllegalTransition, Timestamp,
    VariantName,
};
use crate::ids::{EnvironmentId, ProjectId, RunId};

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub id: ProjectId,
    /// Unique, and a path component of its images: lower-case letters, digits and single dashes.
    pub name: String,
    /// Where it is cloned from, without credentials.
    pub repository: String,
    /// Its repository at GitHub; `None` where nobody listens to that.
    #[serde(default)]
    pub github: Option<GithubLink>,
    /// Most machines that work for it at once; `None`: as many as there are.
    #[serde(default)]
    pub max_concurrent: Option<NonZeroU32>,
}

impl Project {
    /// A project that GitHub is not asked about.
    pub const fn new(id: ProjectId, name: String, repository: String) -> Self {
        Self { id, name, repository, github: None, max_concurrent: None }
    }
}

/// A build of `stagely.yaml` that a run does without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedBuild {
    /// The build, with its combination of the matrix.
    pub variant: VariantName,
    pub reason: SkipReason,
}

/// Why a run does without a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SkipReason {
    /// Nothing in its `paths` changed since the base commit; the image of the base branch stands in.
    PathsUnchanged {
        base: String,
        /// The commit that `image` was built of.
        commit: CommitSha,
        /// The image, by digest.
        image: ImageRef,
    },
    /// Its `only_branches` does not name the branch.
    Branch {
        /// The branch; `None` where none is known.
        branch: Option<String>,
    },
    /// It depends on a build that this run does not make, and no image stands in for that one.
    NoImage {
        /// The build that it depends on.
        build: String,
    },
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PathsUnchanged { base, commit, .. } => {
                let commit = &commit.as_str()[..12];
                let why = format_args!("nothing in its paths changed since {base}");
                write!(f, "{why}, so the image of {commit} stands in")
            }
            Self::Branch { branch: Some(branch) } => {
                write!(f, "its only_branches does not name {branch}")
            }
            Self::Branch { branch: None } => {
                f.write_str("it has only_branches, and no branch of the commit is known")
            }
            Self::NoImage { build } => {
                write!(f, "it depends on {build}, which is not built here and has no image yet")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A pull request was opened, opened again, or is ready for review.
    PrOpened,
    /// Commits were pushed to a pull request.
    PrSynchronized,
    /// Commits were pushed to the default branch.
    Push,
    /// A person or a script, through the API.
    Manual,
    /// A person or a script: an earlier run once more.
    #[serde(alias = "rebuild")]
    Retry,
    /// The schedule of `[warm-up]`, or `stagely warm`: only caches are filled.
    WarmUp,
}

/// Why a run has no jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFailure {
    pub reason: FailureReason,
    /// What happened, for people; all errors of `stagely.yaml` at once.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RunState {
    /// Its commit is a fork's, and nobody has agreed to it yet.
    #[serde(skip)]
    AwaitingApproval,
    /// Waits to be planned. The stored form of all states before `Building`: see [`StoredState`].
    Pending,
    /// GitHub did not answer; waits to be planned again.
    #[serde(skip)]
    Deferred {
        until: Timestamp,
    },
    /// Its `stagely.yaml` is being read.
    #[serde(skip)]
    Planning {
        since: Timestamp,
    },
    /// Its jobs wait or run, or the run-independent reference of an image of its own is yet to be moved.
    Building,
    /// Every job completed; also a run that has none, since it does without all builds.
    Completed,
    /// A job failed, or the run could not be planned.
    Failed {
        /// Why there are no jobs; absent when a job failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan_error: Option<PlanFailure>,
    },
    Cancelled {
        reason: CancelReason,
    },
}

impl RunState {
    /// Whether nothing more happens to the run.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::AwaitingApproval
            | Self::Pending
            | Self::Deferred { .. }
            | Self::Planning { .. }
            | Self::Building => false,
            Self::Completed | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// Returns the state that follows `event`. Nothing else moves a run from state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(self, event: RunEvent) -> Result<Self, IllegalTransition<Self, RunEvent>> {
        use {RunEvent as E, RunState as S};
        Ok(match (self, event) {
            (S::AwaitingApproval, E::Approved) | (S::Deferred { .. }, E::PlanningResumed) => {
                S::Pending
            }
            (S::Pending, E::PlanningBegan { at }) => S::Planning { since: at },
            (S::Planning { .. }, E::PlanningDeferred { until }) => S::Deferred { until },
            (S::Planning { .. }, E::Planned) => S::Building,
            (S::Planning { .. }, E::PlanFailed(error)) => S::Failed { plan_error: Some(error) },
            (S::Building, E::JobsCompleted) => S::Completed,
            (S::Building, E::JobFailed) => S::Failed { plan_error: None },
            (
                S::AwaitingApproval
                | S::Pending
                | S::Deferred { .. }
                | S::Planning { .. }
                | S::Building,
                E::Cancelled { reason },
            ) => S::Cancelled { reason },
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }
}

/// What moves a run to its next state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent {
    Approved,
    PlanningBegan {
        at: Timestamp,
    },
    PlanningDeferred {
        until: Timestamp,
    },
    /// The time until which planning was deferred is over.
    PlanningResumed,
    Planned,
    PlanFailed(PlanFailure),
    JobsCompleted,
    /// All jobs have ended, and not all of them completed.
    JobFailed,
    Cancelled {
        reason: CancelReason,
    },
}

/// A run's state as it is stored: what waits to be planned, or is planned, is `pending`, and two fields beside
/// it tell which. A run that awaits approval is told from others by its `approval`.
#[derive(Serialize, Deserialize)]
struct StoredState {
    state: RunState,
    planning_since: Option<Timestamp>,
    plan_after: Option<Timestamp>,
}

impl From<StoredState> for RunState {
    fn from(stored: StoredState) -> Self {
        match (stored.state, stored.planning_since, stored.plan_after) {
            (Self::Pending, Some(since), _) => Self::Planning { since },
            (Self::Pending, None, Some(until)) => Self::Deferred { until },
            (state, ..) => state,
        }
    }
}

impl From<&RunState> for StoredState {
    fn from(state: &RunState) -> Self {
        let (planning_since, plan_after) = match state {
            RunState::Planning { since } => (Some(*since), None),
            RunState::Deferred { until } => (None, Some(*until)),
            _ => (None, None),
        };
        let state = match state {
            RunState::AwaitingApproval | RunState::Deferred { .. } | RunState::Planning { .. } => {
                RunState::Pending
            }
            state => state.clone(),
        };
        Self { state, planning_since, plan_after }
    }
}

mod stored_state {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::{RunState, StoredState};

    pub(super) fn serialize<S: Serializer>(state: &RunState, to: S) -> Result<S::Ok, S::Error> {
        StoredState::from(state).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RunState, D::Error> {
        StoredState::deserialize(from).map(RunState::from)
    }
}

/// One commit's way through an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Run {
    pub id: RunId,
    pub project: ProjectId,
    pub environment: EnvironmentId,
    pub trigger: Trigger,
    /// Where this run is cloned from, without credentials: the project's repository, or a folder that
    /// is served for this run alone.
    pub repository: String,
    /// What was asked for: a branch, a tag or a commit. `None`: the default branch.
    pub requested_ref: Option<String>,
    /// The builds asked for; empty: all.
    pub only_builds: Vec<String>,
    /// The branch or commit that `paths` are compared with. `None`: the default branch.
    pub base: Option<String>,
    /// Whether the commit comes from a fork: then caches are read and never written.
    #[serde(default)]
    pub from_fork: bool,
    /// The names of the build arguments that the caller set.
    #[serde(default)]
    pub set_names: BTreeSet<String>,
    /// What GitHub says of its repository; `None` for a run that it has nothing to do with.
    #[serde(default)]
    pub github: Option<GithubRun>,
    /// Who has agreed to its commit, where somebody must. It stays `Awaited` in a run that was cancelled before.
    #[serde(default)]
    pub approval: Approval,
    /// The run whose commit it builds once more; of a rebuild that is built again, the run that this
    /// one repeated.
    pub rebuilds: Option<RunId>,
    /// The run whose completed jobs are reused.
    #[serde(rename = "keeps")]
    pub reuses: Option<RunId>,
    /// The builds that have no jobs, once they are known.
    #[serde(default)]
    pub skipped: Vec<SkippedBuild>,
    /// The commit, once it is known.
    pub commit: Option<CommitSha>,
    /// A branch that holds the commit, once it is known.
    pub branch: Option<String>,
    #[serde(flatten, with = "stored_state")]
    pub state: RunState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it reached its final state.
    pub ended_at: Option<Timestamp>,
}

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut run = Self::deserialize(from)?;
        if run.state == RunState::Pending && run.approval == Approval::Awaited {
            run.state = RunState::AwaitingApproval;
        }
        Ok(run)
    }
}

impl Run {
    /// The same run before anything was done for it, with `approval`.
    #[must_use]
    pub fn with_approval(self, approval: Approval) -> Self {
        let is_awaited = approval == Approval::Awaited;
        let state = if is_awaited { RunState::AwaitingApproval } else { RunState::Pending };
        Self { approval, state, ..self }
    }

    /// The commit that was asked for, where one was.
    pub fn requested_commit(&self) -> Option<CommitSha> {
        self.requested_ref.as_deref().and_then(|reference| reference.parse().ok())
    }

    /// Whether it is of those of which one takes the place of the other, and GitHub is told: all of a pull
    /// request, and of a branch those that GitHub caused. What people start on a branch goes side by side:
    /// it may be other commits, or other builds.
    pub(super) fn is_of_github(&self, pull_request: Option<u64>) -> bool {
        self.trigger != Trigger::WarmUp && (pull_request.is_some() || self.github.is_some())
    }

    /// The first run of which it is one: itself, or the run that it repeats.
    pub fn original(&self) -> RunId {
        self.rebuilds.unwrap_or(self.id)
    }

    /// A run of the default branch that was just asked for.
    pub const fn new(
        id: RunId,
        environment: &Environment,
        repository: String,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            project: environment.project,
            environment: environment.id,
            trigger: Trigger::Manual,
            repository,
            requested_ref: None,
            only_builds: Vec::new(),
            base: None,
            from_fork: false,
            set_names: BTreeSet::new(),
            github: None,
            approval: Approval::NotNeeded,
            rebuilds: None,
            reuses: None,
            skipped: Vec::new(),
            commit: None,
            branch: None,
            state: RunState::Pending,
            created_at,
            ended_at: None,
        }
    }
}
