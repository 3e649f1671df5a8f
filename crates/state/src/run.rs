//! A project, and a workflow run: one commit's way through an environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stagely_protocol::{CommitSha, FailureReason, ImageRef};

use super::{
    Approval, CancelReason, Environment, GithubLink, GithubRun, IllegalTransition, Month, Spending,
    Timestamp, Usd, VariantName,
};
use crate::ids::{EnvironmentId, ProjectId, RunId};

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub id: ProjectId,
    /// Unique, and a path component of its images.
    pub name: String,
    /// Where it is cloned from, without credentials.
    pub repository: String,
    /// `None`: core does not listen to the repository.
    #[serde(default)]
    pub github: Option<GithubLink>,
    /// The most machines that work for the project at once; `None`: no limit.
    #[serde(default)]
    pub max_concurrent: Option<NonZeroU32>,
    /// What its machines have cost, as far as it is in the accounts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spending: BTreeMap<Month, Spending>,
    /// What was allowed in each month beyond the budget of the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub allowances: BTreeMap<Month, Usd>,
    /// The month in which core has warned that the budget is nearly used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_warned: Option<Month>,
}

impl Project {
    /// A project without a link to GitHub.
    pub const fn new(id: ProjectId, name: String, repository: String) -> Self {
        Self {
            id,
            name,
            repository,
            github: None,
            max_concurrent: None,
            spending: BTreeMap::new(),
            allowances: BTreeMap::new(),
            budget_warned: None,
        }
    }
}

/// A build of `stagely.yaml` without jobs in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedBuild {
    pub variant: VariantName,
    pub reason: SkipReason,
}

/// Why a run has no jobs of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SkipReason {
    /// Nothing in its `paths` changed since the base commit. The image of the base branch is used instead.
    PathsUnchanged {
        base: String,
        /// The commit that `image` was built of.
        commit: CommitSha,
        /// The image, by digest.
        image: ImageRef,
    },
    /// Its `only_branches` does not name the branch.
    Branch { branch: Option<String> },
    /// It depends on a skipped build that has no image.
    NoImage { build: String },
    /// It is a test of the preview, and the run has none.
    NoPreview,
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
            Self::NoPreview => f.write_str("it tests the preview, and this run has none"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A pull request was opened, reopened, or marked as ready for review.
    PrOpened,
    /// Commits were pushed to a pull request.
    PrSynchronized,
    /// Commits were pushed to the default branch.
    Push,
    /// A request through the API.
    Manual,
    /// A rebuild of an earlier run. The API and stored records say `retry`, and records of older versions `rebuild`.
    #[serde(rename = "retry", alias = "rebuild")]
    Rebuild,
    /// The schedule of `[warm-up]`, or `stagely warm`. Only caches are filled.
    WarmUp,
    /// A sleeping preview is started again, with the images that it had.
    Wake,
    /// A preview is deployed again with fresh data, with the images that it had.
    Reset,
    /// The images of a preview are built again, because the registry has lost them.
    ImagesGone,
}

impl Trigger {
    /// Whether the run makes images of a commit.
    pub const fn builds(self) -> bool {
        match self {
            Self::PrOpened
            | Self::PrSynchronized
            | Self::Push
            | Self::Manual
            | Self::Rebuild
            | Self::ImagesGone => true,
            Self::WarmUp | Self::Wake | Self::Reset => false,
        }
    }

    /// Whether core has made the run for a preview, without secrets of its own.
    pub const fn is_for_preview(self) -> bool {
        matches!(self, Self::Wake | Self::Reset | Self::ImagesGone)
    }

    /// Whether the run only starts a preview again.
    pub const fn is_of_preview(self) -> bool {
        matches!(self, Self::Wake | Self::Reset)
    }
}

/// Why a run could not be planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFailure {
    pub reason: FailureReason,
    /// For people; all errors of `stagely.yaml` at once.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum RunState {
    /// The commit is from a fork, and not approved yet.
    #[serde(skip)]
    AwaitingApproval,
    /// Waits to be planned. Also the stored form of all states before `Building`, see [`StoredState`].
    Pending,
    /// GitHub did not answer. The run is planned again at `until`.
    #[serde(skip)]
    Deferred {
        until: Timestamp,
    },
    /// Its `stagely.yaml` is being read.
    #[serde(skip)]
    Planning {
        since: Timestamp,
    },
    /// Jobs wait or run, or a run-independent reference is yet to be moved to an image of the run.
    Building,
    /// All images are there, and the preview is not.
    Deploying,
    /// Only tests are left.
    Testing,
    /// All jobs completed. A run without jobs completes at once.
    Completed,
    /// A job failed, or the run could not be planned.
    Failed {
        /// Absent when a job failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan_error: Option<PlanFailure>,
    },
    Cancelled {
        reason: CancelReason,
    },
}

impl RunState {
    pub const fn is_final(&self) -> bool {
        match self {
            Self::AwaitingApproval
            | Self::Pending
            | Self::Deferred { .. }
            | Self::Planning { .. }
            | Self::Building
            | Self::Deploying
            | Self::Testing => false,
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
            (S::Building, E::BuildsCompleted) => S::Deploying,
            (S::Building | S::Deploying, E::DeploymentEnded) => S::Testing,
            (S::Building | S::Deploying | S::Testing, E::JobsCompleted) => S::Completed,
            (S::Building | S::Deploying | S::Testing, E::JobFailed) => {
                S::Failed { plan_error: None }
            }
            (
                S::AwaitingApproval
                | S::Pending
                | S::Deferred { .. }
                | S::Planning { .. }
                | S::Building
                | S::Deploying
                | S::Testing,
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
    /// The time of `Deferred` is over.
    PlanningResumed,
    Planned,
    PlanFailed(PlanFailure),
    /// All builds completed, and the preview is not deployed.
    BuildsCompleted,
    /// Only tests are left, whether there was a deployment or not.
    DeploymentEnded,
    JobsCompleted,
    /// All jobs have ended, and at least one did not complete.
    JobFailed,
    Cancelled {
        reason: CancelReason,
    },
}

/// A run's state as it is stored. All states before `Building` are `pending`; the two other fields distinguish them,
/// and `approval` distinguishes `AwaitingApproval`.
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

/// Which tests of `stagely.yaml` a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedTests {
    /// All, without those that have passed in the run whose jobs are reused.
    #[default]
    NotPassed,
    /// All, also those that have passed.
    All,
    None,
}

impl WantedTests {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
    fn is_usual(&self) -> bool {
        *self == Self::default()
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
    /// Where the commit is cloned from, without credentials: the project's repository, or a folder that is served for
    /// this run only.
    pub repository: String,
    /// The requested branch, tag or commit; `None`: the default branch.
    pub requested_ref: Option<String>,
    /// The requested builds; empty: all.
    pub only_builds: Vec<String>,
    /// The branch or commit with which `paths` are compared; `None`: the default branch.
    pub base: Option<String>,
    /// Whether the commit is from a fork. Such a run reads caches and does not write them.
    #[serde(default)]
    pub from_fork: bool,
    /// The names of the build arguments that the caller set.
    #[serde(default)]
    pub set_names: BTreeSet<String>,
    /// Whether it gets a preview, whatever `on` of `stagely.yaml` says; `None`: as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_preview: Option<bool>,
    /// Which tests of `stagely.yaml` it runs.
    #[serde(default, skip_serializing_if = "WantedTests::is_usual")]
    pub wanted_tests: WantedTests,
    /// Whether its preview gets fresh data, whatever `reset_when` of `stagely.yaml` says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_fresh_data: bool,
    /// `None` for a run that GitHub did not cause.
    #[serde(default)]
    pub github: Option<GithubRun>,
    /// It stays `Awaited` in a run that was cancelled before the approval.
    #[serde(default)]
    pub approval: Approval,
    /// The run that a rebuild repeats. The rebuild of a rebuild has the original run here.
    pub rebuilds: Option<RunId>,
    /// The run whose completed jobs are reused.
    #[serde(rename = "keeps")]
    pub reuses: Option<RunId>,
    #[serde(default)]
    pub skipped: Vec<SkippedBuild>,
    /// `None` before it is known.
    pub commit: Option<CommitSha>,
    /// A branch that holds the commit, if one is known.
    pub branch: Option<String>,
    #[serde(flatten, with = "stored_state")]
    pub state: RunState,
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
    /// A new run with `approval`, and the state that follows from it.
    #[must_use]
    pub fn with_approval(self, approval: Approval) -> Self {
        let is_awaited = approval == Approval::Awaited;
        let state = if is_awaited { RunState::AwaitingApproval } else { RunState::Pending };
        Self { approval, state, ..self }
    }

    /// The requested commit, if a commit was requested.
    pub fn requested_commit(&self) -> Option<CommitSha> {
        self.requested_ref.as_deref().and_then(|reference| reference.parse().ok())
    }

    /// Whether it supersedes older runs of its environment and is reported to GitHub: all runs of a pull request, and
    /// the runs of a branch that GitHub caused. Other runs of a branch do not supersede each other, since they may
    /// build other commits or other builds.
    pub(super) fn is_of_github(&self, pull_request: Option<u64>) -> bool {
        self.trigger.builds() && (pull_request.is_some() || self.github.is_some())
    }

    /// The run that it repeats, or itself.
    pub fn original(&self) -> RunId {
        self.rebuilds.unwrap_or(self.id)
    }

    /// A new run of the default branch.
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
            with_preview: None,
            wanted_tests: WantedTests::NotPassed,
            with_fresh_data: false,
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
