//! A preview: the images of an environment's newest deployed run, running on a machine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::{Arch, BuildArgs, CommitSha, Digest, Endpoint, ServiceCommand, Submodules};

use super::{GithubRun, IllegalTransition, MachineSize, Timestamp, UsedImage};
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};

/// The pause after a preview failed to wake, which doubles with each further failure.
const WAKE_DELAY_MIN: Duration = Duration::from_mins(1);
const WAKE_DELAY_MAX: Duration = Duration::from_hours(1);

/// The most commits that a preview notes besides the one that it shows. Each takes a comparison.
const ATTEMPTED_COMMITS_MAX: usize = 8;

/// What a deploy job runs: the section `preview` of `stagely.yaml` with all variables expanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The compose file, relative to the repository's root; `None`: one container of the only image.
    pub compose: Option<String>,
    /// The image of each service that `stagely.yaml` names. Without a compose file there is only one service.
    pub images: BTreeMap<String, UsedImage>,
    /// The images of builds, by name, which other services of the same names run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub default_images: BTreeMap<String, UsedImage>,
    /// The first one is the preview's address.
    pub endpoints: Vec<Endpoint>,
    pub env: BuildArgs,
    /// Which submodules the clone with the compose file has.
    #[serde(default)]
    pub submodules: Submodules,
    /// The names of the project's secrets that the services get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    pub migrate: Option<ServiceCommand>,
    pub seed: Option<ServiceCommand>,
    /// Whether the data of earlier generations is deleted.
    #[serde(default)]
    pub fresh: bool,
    /// Patterns of paths. `fresh` becomes true if a matching file that was deployed before was edited or removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reset_when: Vec<String>,
    /// In GiB.
    pub disk_gib: u32,
    pub settings: PreviewSettings,
}

/// How a preview is reached, and how long it stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewSettings {
    pub access: Access,
    /// Paths that need no access. A `*` at the end stands for every ending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_paths: Vec<String>,
    /// Whether a pull request gets it only with the label or by a request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_request: bool,
    /// The time without activity after which it sleeps; `None`: never.
    pub sleep_after: Option<Duration>,
    /// The time without a deployment or activity after which it ends.
    pub ttl: Duration,
}

/// Who may open a preview.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Everybody with the address.
    Public,
    /// Everybody with the key that is part of the link.
    #[default]
    Link,
    /// Everybody with a token of core's API.
    Token,
}

/// The state of a preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum PreviewState {
    /// The deploy job has a machine, and nothing serves yet.
    Deploying { job: JobId },
    /// The machine serves it.
    Live { machine: MachineId },
    /// The machine serves the generation before. The deploy job is on the same machine, or on another that takes over.
    Updating { machine: MachineId, job: JobId },
    /// Its agent stops the containers and archives the volumes.
    Archiving {
        machine: MachineId,
        since: Timestamp,
        /// Whether it wakes at once afterwards, on another machine.
        wakes: bool,
    },
    /// It has no machine. The next request wakes it.
    Asleep,
    /// The deploy job starts it from the archive.
    Waking { job: JobId },
    /// Its machines are being terminated.
    Ending,
    /// The next deployment begins it again.
    Ended,
    /// The first deployment failed. The next deployment begins it again.
    Failed { job: JobId },
}

/// What moves a preview to its next state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewEvent {
    /// The deploy job got its first machine.
    DeploymentBegan {
        job: JobId,
    },
    /// The deploy job completed on the machine.
    Deployed {
        machine: MachineId,
    },
    DeploymentFailed,
    DeploymentCancelled,
    SleepRequested {
        at: Timestamp,
        wakes: bool,
    },
    /// Somebody wants it, whatever it does.
    Requested,
    /// The volumes were not archived, and the containers run again.
    ArchiveFailed,
    /// The agent that archives it could not be reached before.
    ArchiverReturned {
        at: Timestamp,
    },
    /// The containers are gone. The volumes are archived, or cannot be.
    Archived,
    /// The machine that serves is gone.
    MachineLost,
    EndRequested,
    /// No machine has it any more.
    MachinesGone,
}

impl PreviewState {
    /// Returns the state that follows `event`. Nothing else moves a preview from state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(
        self,
        event: PreviewEvent,
    ) -> Result<Self, IllegalTransition<Self, PreviewEvent>> {
        use {PreviewEvent as E, PreviewState as S};
        Ok(match (self, event) {
            (S::Ended | S::Failed { .. }, E::DeploymentBegan { job }) => S::Deploying { job },
            (S::Live { machine }, E::DeploymentBegan { job }) => S::Updating { machine, job },
            (S::Asleep, E::DeploymentBegan { job }) | (S::Updating { job, .. }, E::MachineLost) => {
                S::Waking { job }
            }
            (
                S::Deploying { .. } | S::Updating { .. } | S::Waking { .. },
                E::Deployed { machine },
            )
            | (S::Updating { machine, .. }, E::DeploymentFailed | E::DeploymentCancelled)
            | (S::Archiving { machine, .. }, E::ArchiveFailed) => S::Live { machine },
            (S::Deploying { job }, E::DeploymentFailed) => S::Failed { job },
            (S::Deploying { .. }, E::DeploymentCancelled) | (S::Ending, E::MachinesGone) => {
                S::Ended
            }
            (S::Waking { .. }, E::DeploymentFailed | E::DeploymentCancelled)
            | (S::Live { .. }, E::MachineLost)
            | (S::Archiving { .. }, E::Archived | E::MachineLost) => S::Asleep,
            (S::Live { machine }, E::SleepRequested { at, wakes })
            | (S::Archiving { machine, wakes, .. }, E::ArchiverReturned { at }) => {
                S::Archiving { machine, since: at, wakes }
            }
            (S::Archiving { machine, since, .. }, E::Requested) => {
                S::Archiving { machine, since, wakes: true }
            }
            (
                S::Deploying { .. }
                | S::Live { .. }
                | S::Updating { .. }
                | S::Archiving { .. }
                | S::Asleep
                | S::Waking { .. }
                | S::Ending
                | S::Failed { .. },
                E::EndRequested,
            ) => S::Ending,
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }

    /// Whether it has ended, or is about to.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Ending | Self::Ended)
    }

    /// The machine that serves it.
    pub const fn machine(self) -> Option<MachineId> {
        match self {
            Self::Live { machine } | Self::Updating { machine, .. } => Some(machine),
            Self::Deploying { .. }
            | Self::Archiving { .. }
            | Self::Asleep
            | Self::Waking { .. }
            | Self::Ending
            | Self::Ended
            | Self::Failed { .. } => None,
        }
    }

    /// The deploy job under way.
    pub const fn job(self) -> Option<JobId> {
        match self {
            Self::Deploying { job } | Self::Updating { job, .. } | Self::Waking { job } => {
                Some(job)
            }
            Self::Live { .. }
            | Self::Archiving { .. }
            | Self::Asleep
            | Self::Ending
            | Self::Ended
            | Self::Failed { .. } => None,
        }
    }
}

/// A deployment that completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub number: u64,
    pub run: RunId,
    pub commit: CommitSha,
    pub source: CommitSource,
    /// When the run that made the images was requested. Images of an earlier one do not take the place of these.
    #[serde(default)]
    pub requested_at: Timestamp,
    /// With all images by digest.
    pub deployment: Deployment,
    /// Of the machine. The data may depend on it.
    pub arch: Arch,
    pub size: MachineSize,
    pub timeout: Duration,
}

/// Where the compose file of a generation is cloned from, as the run of its images says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitSource {
    pub repository: String,
    pub branch: Option<String>,
    pub from_fork: bool,
    pub github: Option<GithubRun>,
}

/// The volumes of a preview, in core's blob store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    pub digest: Digest,
    pub bytes: u64,
    pub made_at: Timestamp,
}

/// Data of a preview that was written after its last archive, and is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataLoss {
    pub at: Timestamp,
    /// When the archive was made that takes the place of the data; `None`: there is none, so the data is fresh.
    pub archived_at: Option<Timestamp>,
    /// For people.
    pub reason: String,
}

/// The preview of an environment. There is at most one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub id: PreviewId,
    pub project: ProjectId,
    pub environment: EnvironmentId,
    #[serde(flatten)]
    pub state: PreviewState,
    /// The number of the newest attempt of a deployment. Each DEPLOY has another.
    pub last_generation: u64,
    /// The newest completed deployment, which serves or sleeps.
    pub shown: Option<Generation>,
    pub archive: Option<Archive>,
    /// The last loss of data, until there is an archive of later data, or the data is deleted on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_loss: Option<DataLoss>,
    /// The commits whose deployments may have changed the data since the newest completed one, without having completed,
    /// the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempted_commits: Vec<CommitSha>,
    /// The run that builds its images again because the registry has lost them, until a deployment has completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilt_by: Option<RunId>,
    /// When it was last deployed or requested.
    pub active_at: Timestamp,
    /// It does not end before this moment, whatever its `ttl`. If its first deployment failed, it ends then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_until: Option<Timestamp>,
    /// When the next archive is tried after one that failed, unless a person asks for it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_retry_at: Option<Timestamp>,
    /// Why the last deployment or archive failed, for people.
    pub problem: Option<String>,
    /// How often in a row it failed to wake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_wakes: Option<FailedWakes>,
    /// How often it began or was reset. The key of its link depends on it.
    #[serde(default)]
    pub key_number: u64,
}

/// A preview that cannot be started from its archive. Each try costs a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedWakes {
    pub count: u32,
    /// Requests of browsers start nothing before. People may.
    pub retry_at: Timestamp,
}

impl FailedWakes {
    /// One more than `earlier`.
    pub(super) fn after(earlier: Option<Self>, now: Timestamp) -> Self {
        let count = earlier.map_or(0, |earlier| earlier.count);
        let delay = WAKE_DELAY_MIN * 2_u32.saturating_pow(count.min(16));
        Self { count: count + 1, retry_at: now.after(delay.min(WAKE_DELAY_MAX)) }
    }
}

impl Preview {
    /// A preview without a deployment.
    pub const fn new(
        id: PreviewId,
        project: ProjectId,
        environment: EnvironmentId,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            project,
            environment,
            state: PreviewState::Ended,
            last_generation: 0,
            shown: None,
            archive: None,
            data_loss: None,
            attempted_commits: Vec::new(),
            rebuilt_by: None,
            active_at: now,
            extended_until: None,
            archive_retry_at: None,
            problem: None,
            failed_wakes: None,
            key_number: 0,
        }
    }

    /// Whether it may sleep although nobody has asked for that.
    pub(super) fn may_sleep(&self) -> bool {
        self.settings().is_some_and(|settings| settings.sleep_after.is_some())
    }

    /// Whether it has not been used for so long that it may sleep.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        let sleep_after = self.settings().and_then(|settings| settings.sleep_after);
        sleep_after.is_some_and(|after| self.active_at.after(after) <= now)
    }

    pub const fn has_ended(&self) -> bool {
        matches!(self.state, PreviewState::Ended)
    }

    /// The settings of the deployment that it shows.
    pub fn settings(&self) -> Option<&PreviewSettings> {
        self.shown.as_ref().map(|shown| &shown.deployment.settings)
    }

    /// The commits whose files its data may depend on.
    pub fn commits_of_data(&self) -> impl Iterator<Item = &CommitSha> {
        self.shown.iter().map(|shown| &shown.commit).chain(&self.attempted_commits)
    }

    pub(super) fn note_attempt(&mut self, commit: CommitSha) {
        self.attempted_commits.retain(|known| *known != commit);
        self.attempted_commits.push(commit);
        let surplus = self.attempted_commits.len().saturating_sub(ATTEMPTED_COMMITS_MAX);
        self.attempted_commits.drain(..surplus);
    }

    pub(super) fn note_loss(&mut self, at: Timestamp, reason: String) {
        let archived_at = self.archive.as_ref().map(|archive| archive.made_at);
        self.data_loss = Some(DataLoss { at, archived_at, reason });
    }

    /// When it ends, unless it is used, deployed or extended before; `None` if nothing of it was deployed yet.
    pub fn ends_at(&self) -> Option<Timestamp> {
        let ttl = self.settings().map(|settings| self.active_at.after(settings.ttl));
        ttl.max(self.extended_until)
    }
}

impl Deployment {
    /// All images, under whatever name.
    pub fn used_images(&self) -> impl Iterator<Item = &UsedImage> {
        self.images.values().chain(self.default_images.values())
    }

    pub(super) fn used_images_mut(&mut self) -> impl Iterator<Item = &mut UsedImage> {
        self.images.values_mut().chain(self.default_images.values_mut())
    }
}
