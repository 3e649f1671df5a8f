//! A job of a run: the build of one platform, the merge of several, the deployment of the images, or a test of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::{
    Arch, BuildArgs, CacheMiss, Digest, Emulation, FailureReason, ImageRef, Platform,
    RegistryProblem, Step, StoredArtifacts, Submodules, TestResults,
};

use super::{
    Cost, Deployment, Fleet, IllegalTransition, Limits, MachineSize, Test, Timestamp, VariantName,
};
use crate::ids::{JobId, MachineId, RunId};

/// The work of a job. All references are complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobKind {
    /// Builds and pushes one image.
    Build {
        platform: Platform,
        /// The context, relative to the repository's root.
        context: String,
        /// The Dockerfile, as `stagely.yaml` names it.
        dockerfile: String,
        target: Option<String>,
        /// With all variables expanded. The arguments that the run's caller set are not here, because they may be
        /// secret.
        build_args: BuildArgs,
        /// The reference that is pushed. No other run pushes it.
        image: ImageRef,
        /// Whether the image is pushed. A warm-up only fills caches.
        #[serde(default = "pushes")]
        push: bool,
        cache_from: Vec<ImageRef>,
        cache_to: Option<ImageRef>,
        /// The images of the builds that this one depends on, by name.
        #[serde(default)]
        uses: BTreeMap<String, UsedImage>,
        #[serde(default)]
        emulation: Emulation,
        #[serde(default, skip_serializing_if = "Submodules::is_all")]
        submodules: Submodules,
    },
    /// Joins the images of `needs` into one index.
    Merge {
        /// The index must have exactly these platforms.
        platforms: Vec<Platform>,
        /// The reference of the index. No other run pushes it.
        image: ImageRef,
    },
    /// Runs the images as the preview of the environment.
    Deploy {
        /// Of the machine; `None` if the images are for both.
        arch: Option<Arch>,
        deployment: Box<Deployment>,
    },
    /// Runs a command in an image: against the preview of the environment, or by itself.
    Test {
        /// Of the machine; `None` if the image is for both.
        arch: Option<Arch>,
        test: Box<Test>,
    },
}

/// The default for jobs that were stored before there were warm-ups.
const fn pushes() -> bool {
    true
}

impl JobKind {
    /// A build of the `Dockerfile` in the repository's root that pushes `image` and uses no cache.
    pub fn build(platform: Platform, image: ImageRef) -> Self {
        Self::Build {
            platform,
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            build_args: BuildArgs::default(),
            image,
            push: true,
            cache_from: Vec::new(),
            cache_to: None,
            uses: BTreeMap::new(),
            emulation: Emulation::Allow,
            submodules: Submodules::All,
        }
    }

    /// The reference that is pushed, if the job pushes one. No other run pushes it.
    pub const fn image(&self) -> Option<&ImageRef> {
        match self {
            Self::Build { image, .. } | Self::Merge { image, .. } => Some(image),
            Self::Deploy { .. } | Self::Test { .. } => None,
        }
    }

    pub(super) const fn image_mut(&mut self) -> Option<&mut ImageRef> {
        match self {
            Self::Build { image, .. } | Self::Merge { image, .. } => Some(image),
            Self::Deploy { .. } | Self::Test { .. } => None,
        }
    }

    pub const fn is_deploy(&self) -> bool {
        matches!(self, Self::Deploy { .. })
    }

    pub const fn is_test(&self) -> bool {
        matches!(self, Self::Test { .. })
    }

    /// The fleet whose machines do the job.
    pub const fn fleet(&self) -> Fleet {
        match self {
            Self::Build { .. } | Self::Merge { .. } => Fleet::Builder,
            Self::Deploy { .. } => Fleet::Preview,
            Self::Test { test, .. } if test.is_on_preview() => Fleet::Preview,
            Self::Test { .. } => Fleet::Tester,
        }
    }
}

/// An image that a build depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum UsedImage {
    /// The image of a job of the same run.
    Job { job: JobId },
    /// An existing image, by digest, because its build was skipped.
    Image { image: ImageRef },
}

/// Attempts count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum JobState {
    /// Waits for the jobs that it needs, and for a machine. `attempt` is the next one.
    Queued {
        attempt: u32,
    },
    /// The last launch found no capacity. Stored as `queued` with `not_before`.
    #[serde(skip)]
    Postponed {
        attempt: u32,
        until: Timestamp,
    },
    /// Has a machine. Its agent has not reported the start.
    Provisioning {
        attempt: u32,
        machine: MachineId,
    },
    /// Core ends the job itself after `deadline`.
    Running {
        attempt: u32,
        machine: MachineId,
        deadline: Timestamp,
    },
    /// The image is pushed, the preview serves, or the test has passed.
    Completed {
        /// `None` for a deployment or a test, or if a simple agent reported none.
        digest: Option<Digest>,
    },
    Failed(JobFailure),
    Cancelled,
}

impl JobState {
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Queued { .. }
            | Self::Postponed { .. }
            | Self::Provisioning { .. }
            | Self::Running { .. } => false,
            Self::Completed { .. } | Self::Failed(_) | Self::Cancelled => true,
        }
    }

    /// Whether the job waits for its next attempt.
    pub const fn is_waiting(&self) -> bool {
        matches!(self, Self::Queued { .. } | Self::Postponed { .. })
    }

    pub const fn machine(&self) -> Option<MachineId> {
        match self {
            Self::Provisioning { machine, .. } | Self::Running { machine, .. } => Some(*machine),
            Self::Queued { .. }
            | Self::Postponed { .. }
            | Self::Completed { .. }
            | Self::Failed(_)
            | Self::Cancelled => None,
        }
    }

    pub fn attempt_on(&self, machine: MachineId) -> Option<u32> {
        match self {
            Self::Provisioning { attempt, machine: at }
            | Self::Running { attempt, machine: at, .. }
                if *at == machine =>
            {
                Some(*attempt)
            }
            _ => None,
        }
    }
}

impl JobState {
    /// Returns the state that follows `event`. Nothing else moves a job from state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(self, event: JobEvent) -> Result<Self, IllegalTransition<Self, JobEvent>> {
        use {JobEvent as E, JobState as S};
        Ok(match (self, event) {
            (S::Queued { attempt } | S::Postponed { attempt, .. }, E::MachineFound { machine }) => {
                S::Provisioning { attempt, machine }
            }
            (S::Postponed { attempt, .. }, E::PostponementOver) => S::Queued { attempt },
            (S::Provisioning { attempt, machine }, E::Started { deadline }) => {
                S::Running { attempt, machine, deadline }
            }
            (S::Provisioning { attempt, .. } | S::Running { attempt, .. }, E::AttemptLost) => {
                S::Queued { attempt: attempt + 1 }
            }
            (S::Provisioning { attempt, .. }, E::CapacityMissing { retry_at }) => {
                S::Postponed { attempt, until: retry_at }
            }
            (S::Provisioning { .. } | S::Running { .. }, E::Completed { digest })
            | (S::Queued { .. }, E::Reused { digest }) => S::Completed { digest },
            // A waiting job fails if a job that it needs has failed, or if no machine can do it.
            (
                S::Queued { .. } | S::Postponed { .. } | S::Provisioning { .. } | S::Running { .. },
                E::Failed(failure),
            ) => S::Failed(failure),
            (
                S::Queued { .. } | S::Postponed { .. } | S::Provisioning { .. } | S::Running { .. },
                E::Cancelled,
            ) => S::Cancelled,
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }
}

/// What moves a job to its next state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    MachineFound {
        machine: MachineId,
    },
    Started {
        deadline: Timestamp,
    },
    /// The attempt failed. The next one begins as soon as there is a machine.
    AttemptLost,
    /// The machine of the attempt could not be had. Another one is requested after `retry_at`.
    CapacityMissing {
        retry_at: Timestamp,
    },
    PostponementOver,
    Completed {
        digest: Option<Digest>,
    },
    /// The image of an earlier run is reused.
    Reused {
        digest: Option<Digest>,
    },
    Failed(JobFailure),
    Cancelled,
}

/// A job's state as it is stored.
mod stored_state {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::JobState;
    use crate::Timestamp;

    #[derive(Serialize, Deserialize)]
    struct StoredState {
        state: JobState,
        not_before: Option<Timestamp>,
    }

    pub(super) fn serialize<S: Serializer>(state: &JobState, to: S) -> Result<S::Ok, S::Error> {
        let (state, not_before) = match state {
            JobState::Postponed { attempt, until } => {
                (JobState::Queued { attempt: *attempt }, Some(*until))
            }
            state => (state.clone(), None),
        };
        StoredState { state, not_before }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<JobState, D::Error> {
        let StoredState { state, not_before } = StoredState::deserialize(from)?;
        Ok(match state {
            JobState::Queued { attempt } => {
                not_before.map_or(JobState::Queued { attempt }, |until| JobState::Postponed {
                    attempt,
                    until,
                })
            }
            state => state,
        })
    }
}

/// Why a job or an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFailure {
    pub reason: FailureReason,
    /// For people.
    pub message: String,
    /// The exit code of the build.
    pub exit_code: Option<i32>,
}

impl JobFailure {
    /// A failure without an exit code.
    pub fn new(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), exit_code: None }
    }

    /// Whether an image of the job is not in the registry any more.
    pub(super) const fn lacks_image(&self) -> bool {
        matches!(self.reason, FailureReason::Registry { problem: RegistryProblem::Missing })
    }

    pub(super) fn machine_lost(message: &str) -> Self {
        Self::new(FailureReason::MachineLost, message)
    }

    pub(super) fn taken_back() -> Self {
        let reason = FailureReason::SpotInterruption;
        let message = reason.to_string();
        Self::new(reason, message)
    }
}

/// The launches for a job that found no capacity since its last attempt. They are no attempts, since no machine got the
/// job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingCapacity {
    /// When the first of them failed.
    pub since: Timestamp,
    pub launches: u32,
    /// The provider's answer to the last of them, for people.
    pub message: String,
}

/// An attempt that failed, after which the job was queued again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostAttempt {
    pub attempt: u32,
    pub reason: FailureReason,
    /// For people.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub run: RunId,
    /// Unique within the run: `backend`, `app_arm64`, `app_merge`.
    pub name: String,
    /// The build of `stagely.yaml`.
    pub build: String,
    /// The build's name with its combination of the matrix: `app-node_version-18`. Without a matrix it is `build`.
    #[serde(default)]
    pub variant: VariantName,
    pub kind: JobKind,
    /// The run-independent reference, which is moved to the image if the run is the environment's newest. Only the last
    /// job of a variant has one.
    pub tag: Option<ImageRef>,
    pub size: MachineSize,
    /// The jobs that must complete before it starts.
    pub needs: Vec<JobId>,
    /// The agent enforces it.
    pub timeout: Duration,
    #[serde(flatten, with = "stored_state")]
    pub state: JobState,
    /// The newest attempt that was assigned to a machine; 0 before. Its log is the job's log.
    pub attempt: u32,
    /// Earlier attempts, the oldest first.
    pub lost_attempts: Vec<LostAttempt>,
    /// Those of `lost_attempts` whose agent was restarted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarted_attempts: Vec<u32>,
    /// `None` once an agent has got the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_capacity: Option<MissingCapacity>,
    pub queued_at: Timestamp,
    /// When the newest attempt was first sent to an agent.
    pub assigned_at: Option<Timestamp>,
    /// When the newest attempt began.
    pub started_at: Option<Timestamp>,
    /// When it reached its final state.
    pub ended_at: Option<Timestamp>,
    pub steps: Vec<Step>,
    /// For the user.
    pub warnings: Vec<String>,
    /// The first step that did not come from the cache.
    pub cache_miss: Option<CacheMiss>,
    /// Whether the machine of the newest attempt has another arch than the platform.
    #[serde(default)]
    pub emulated: bool,
    /// The job whose machine the newest attempt took over. No machine was launched for it.
    pub took_over: Option<JobId>,
    /// The job of an earlier run whose image or result this job reuses.
    #[serde(rename = "kept_from")]
    pub reused_from: Option<JobId>,
    /// What the machines have cost that were launched for it, as far as it is in the accounts.
    #[serde(default, skip_serializing_if = "Cost::is_zero")]
    pub cost: Cost,
    /// The results of a test, from the attempt that has ended the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<TestResults>,
    /// What that attempt has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<StoredArtifacts>,
}

/// The most restarts of agents that do not use up an attempt of their job. Whoever updates an agent does not harm a job,
/// and a job that kills its agent each time comes to an end.
const UNCOUNTED_RESTARTS_MAX: usize = 2;

impl Job {
    /// The number of the job's last attempt.
    pub fn last_attempt(&self, limits: &Limits) -> u32 {
        let uncounted = self.restarted_attempts.iter().take(UNCOUNTED_RESTARTS_MAX);
        uncounted.fold(limits.max_attempts, |last, _| last.saturating_add(1))
    }
}

/// The outcome of an attempt in its agent's report.
#[derive(Clone, Debug, PartialEq)]
pub enum JobOutcome {
    /// The image is pushed, the preview serves, or the test has passed.
    Completed {
        digest: Option<Digest>,
    },
    Failed(JobFailure),
    /// The agent stopped it.
    Cancelled,
}

/// An agent's report of the end of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct JobReport {
    pub outcome: JobOutcome,
    pub steps: Vec<Step>,
    /// For the user.
    pub warnings: Vec<String>,
    /// The first step that did not come from the cache.
    pub cache_miss: Option<CacheMiss>,
    /// Whether the image is pushed and the agent goes on to export the layer cache. Another report follows then.
    pub exporting_cache: bool,
    /// Of a test, if its agent has found any.
    pub results: Option<TestResults>,
    /// Of a test, if it has left any.
    pub artifacts: Option<StoredArtifacts>,
}

impl JobReport {
    /// A report with nothing but the outcome.
    pub const fn new(outcome: JobOutcome) -> Self {
        Self {
            outcome,
            steps: Vec::new(),
            warnings: Vec::new(),
            cache_miss: None,
            exporting_cache: false,
            results: None,
            artifacts: None,
        }
    }
}
