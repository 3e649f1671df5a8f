//! An environment: a pull request or branch of a project, whether it is open, and what was built in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::{CommitSha, Digest, ImageRef};

use super::{
    ApprovedCommit, Head, IllegalTransition, Report, Spending, Timestamp, Usd, VariantName,
};
use crate::ids::{EnvironmentId, ProjectId, RunId};

/// A pull request or branch of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub id: EnvironmentId,
    pub project: ProjectId,
    /// Unique within the project, and a path component of its images: `main`, `pr-7`.
    pub name: String,
    /// The number of its pull request; `None` for a branch.
    pub pull_request: Option<u64>,
    #[serde(flatten)]
    pub state: EnvironmentState,
    /// The newest run that pushes images. Only this run moves run-independent tags. The rebuild of this run replaces
    /// it; the rebuild of an older run does not.
    pub newest_run: Option<RunId>,
    /// The newest image of each build.
    #[serde(default)]
    pub images: BTreeMap<VariantName, GoodImage>,
    /// How long each build took in the newest run that completed it, by the names of jobs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_times: BTreeMap<String, BuildTime>,
    /// The cache refs that only this environment writes. They are deleted when it is closed.
    #[serde(default)]
    pub cache_refs: BTreeSet<ImageRef>,
    /// The cache refs that were deleted when it was closed. A machine that counted as terminated may write them again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deleted_cache_refs: BTreeSet<ImageRef>,
    /// Whether images were pushed that are deleted when it is closed. Images of branches stay.
    #[serde(default)]
    pub has_images: bool,
    /// The head as GitHub last reported it. Of a closed pull request, `at` is the moment of the closing.
    #[serde(default)]
    pub head: Option<Head>,
    /// The fork's commit that was approved last.
    #[serde(default)]
    pub approved: Option<ApprovedCommit>,
    /// The newest comment whose command was checked. Commands of older comments are not followed any more.
    #[serde(default)]
    pub last_command: u64,
    /// When the label of previews was last removed from its pull request. Rebuilds of earlier runs do not ask for a preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_removed_at: Option<Timestamp>,
    #[serde(default)]
    pub report: Report,
    /// What its machines have cost, as far as it is in the accounts.
    #[serde(default, skip_serializing_if = "Spending::is_zero")]
    pub spending: Spending,
    /// What was allowed beyond the budget of a pull request.
    #[serde(default, skip_serializing_if = "Usd::is_zero")]
    pub allowance: Usd,
}

impl Environment {
    /// A new environment, in which nothing was built.
    pub fn new(id: EnvironmentId, project: ProjectId, name: String) -> Self {
        Self {
            id,
            project,
            name,
            pull_request: None,
            state: EnvironmentState::OPEN,
            newest_run: None,
            images: BTreeMap::new(),
            build_times: BTreeMap::new(),
            cache_refs: BTreeSet::new(),
            deleted_cache_refs: BTreeSet::new(),
            has_images: false,
            head: None,
            approved: None,
            last_command: 0,
            label_removed_at: None,
            report: Report::default(),
            spending: Spending::default(),
            allowance: Usd::ZERO,
        }
    }
}

/// Whether an environment is open, and whether the outcome of its clean-up is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredState", into = "StoredState")]
pub enum EnvironmentState {
    Open {
        cleanup: Cleanup,
    },
    /// The next run opens it again.
    Closed {
        by: ClosedBy,
        cleanup: Cleanup,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// A request, or retention.
    Request,
    /// GitHub closed the pull request, or its project was removed. The environment is open again as soon as GitHub
    /// says so.
    Github,
}

/// Whether the outcome of the clean-up under way is valid, if one is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    Valid,
    /// The environment was opened, or one of its machines returned, after the clean-up began. It says nothing about
    /// what was written since.
    Outdated,
}

impl EnvironmentState {
    /// The state of a new environment.
    pub const OPEN: Self = Self::Open { cleanup: Cleanup::Valid };

    /// The state of an environment that was closed while no clean-up was under way.
    pub const fn closed(by: ClosedBy) -> Self {
        Self::Closed { by, cleanup: Cleanup::Valid }
    }

    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    pub const fn is_closed_by_github(self) -> bool {
        matches!(self, Self::Closed { by: ClosedBy::Github, .. })
    }

    /// Whether the outcome of the clean-up under way is to be discarded.
    pub const fn has_outdated_cleanup(self) -> bool {
        let (Self::Open { cleanup } | Self::Closed { cleanup, .. }) = self;
        matches!(cleanup, Cleanup::Outdated)
    }

    /// Returns the state that follows `event`. Nothing else moves an environment from state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(
        self,
        event: EnvironmentEvent,
    ) -> Result<Self, IllegalTransition<Self, EnvironmentEvent>> {
        use {Cleanup as C, EnvironmentEvent as E, EnvironmentState as S};
        Ok(match (self, event) {
            (S::Open { .. } | S::Closed { .. }, E::Opened { is_cleaning_up: true }) => {
                S::Open { cleanup: C::Outdated }
            }
            (
                S::Open { cleanup } | S::Closed { cleanup, .. },
                E::Opened { is_cleaning_up: false },
            ) => S::Open { cleanup },
            // A request does not undo that GitHub has closed it.
            (S::Closed { by: ClosedBy::Github, cleanup }, E::Closed { .. }) => {
                S::Closed { by: ClosedBy::Github, cleanup }
            }
            (
                S::Open { cleanup } | S::Closed { by: ClosedBy::Request, cleanup },
                E::Closed { by },
            ) => S::Closed { by, cleanup },
            (S::Closed { by, .. }, E::CleanupInvalidated) => S::Closed { by, cleanup: C::Outdated },
            (S::Open { cleanup: C::Outdated }, E::CleanedUp) => S::OPEN,
            (S::Closed { by, .. }, E::CleanedUp) => S::closed(by),
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }
}

/// What moves an environment to its next state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvironmentEvent {
    /// A run was requested, while a clean-up was under way or not.
    Opened {
        is_cleaning_up: bool,
    },
    Closed {
        by: ClosedBy,
    },
    /// A machine that counted as terminated may have written to a cache since the clean-up began.
    CleanupInvalidated,
    CleanedUp,
}

/// The state as it is stored.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredState {
    closed: bool,
    closed_by_github: bool,
    deletion_outdated: bool,
}

impl From<StoredState> for EnvironmentState {
    fn from(stored: StoredState) -> Self {
        let cleanup = if stored.deletion_outdated { Cleanup::Outdated } else { Cleanup::Valid };
        let by = if stored.closed_by_github { ClosedBy::Github } else { ClosedBy::Request };
        if stored.closed { Self::Closed { by, cleanup } } else { Self::Open { cleanup } }
    }
}

impl From<EnvironmentState> for StoredState {
    fn from(state: EnvironmentState) -> Self {
        Self {
            closed: state.is_closed(),
            closed_by_github: state.is_closed_by_github(),
            deletion_outdated: state.has_outdated_cleanup(),
        }
    }
}

/// How long a build took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildTime {
    pub run: RunId,
    pub time: Duration,
    pub emulated: bool,
}

/// The newest image of a build in an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoodImage {
    pub run: RunId,
    pub commit: CommitSha,
    /// The reference that the run pushed.
    pub image: ImageRef,
    pub digest: Digest,
    /// The reference that is the same in each run.
    pub tag: ImageRef,
    /// Whether the run's caller set build arguments. Then the image does not follow from the commit alone.
    pub with_set: bool,
}
