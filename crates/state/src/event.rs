//! The events that the state takes, and the effects that it returns.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::{Arch, CommitSha, Digest, ImageRef, InvalidValue, SystemInfo, WireId};

use super::{
    Archive, Command, CommandVerdict, DeliveryId, Environment, Fleet, Head, HeadSource,
    Interruption, JobKind, JobReport, MachineSize, Placement, PlanFailure, Project, ProviderName,
    PublishedReport, Run, SkippedBuild, Timestamp, Usd, VariantName,
};
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId, SessionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A person or a script cancelled it.
    Requested,
    EnvironmentClosed,
    /// A newer run of the environment was requested.
    Superseded,
}

/// Why an agent is to stop an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    RunCancelled,
    /// It runs past its time limit.
    Overrun,
    /// The export of its layer cache takes too long.
    ExportOverrun,
    /// The cloud takes the machine back before the attempt can end.
    Interrupted,
    /// The preview that it tests does not serve any more.
    PreviewLost,
    /// It counts as lost, or has ended.
    NotWanted,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunCancelled => "the run was cancelled",
            Self::Overrun => "it ran past its limit",
            Self::ExportOverrun => "the export of its layer cache takes too long",
            Self::Interrupted => "the cloud takes the machine back",
            Self::PreviewLost => "the preview that it tests does not serve any more",
            Self::NotWanted => "this attempt is not wanted any more",
        })
    }
}

/// Names an effect of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectId(pub u64);

/// A job of a plan, before it is queued.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedJob {
    pub id: JobId,
    /// Unique within the run.
    pub name: String,
    /// The build of `stagely.yaml`.
    pub build: String,
    /// The build's name with its combination of the matrix.
    pub variant: VariantName,
    pub kind: JobKind,
    /// The run-independent reference, which is moved to the image if the run is the environment's newest.
    pub tag: Option<ImageRef>,
    pub size: MachineSize,
    /// Jobs of the same plan that must complete first.
    pub needs: Vec<JobId>,
    pub timeout: Duration,
}

impl PlannedJob {
    /// A job of the default size that needs no other job and moves no tag. Its name and its variant are those of the
    /// build.
    pub fn new(id: JobId, build: &str, kind: JobKind, timeout: Duration) -> Self {
        Self {
            id,
            name: build.to_owned(),
            build: build.to_owned(),
            variant: build.into(),
            kind,
            tag: None,
            size: MachineSize::default(),
            needs: Vec::new(),
            timeout,
        }
    }
}

/// The plan of a run, read from its `stagely.yaml`.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    pub commit: CommitSha,
    /// A branch that holds the commit, if one is known.
    pub branch: Option<String>,
    /// Empty if every build was skipped.
    pub jobs: Vec<PlannedJob>,
    pub skipped: Vec<SkippedBuild>,
    /// The cache refs that only this environment writes.
    pub own_cache_refs: BTreeSet<ImageRef>,
}

impl PlannedRun {
    /// A plan with nothing but jobs.
    pub const fn new(commit: CommitSha, jobs: Vec<PlannedJob>) -> Self {
        Self { commit, branch: None, jobs, skipped: Vec::new(), own_cache_refs: BTreeSet::new() }
    }
}

/// Why a launch gave no machine, with a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchFailure {
    /// The provider has no capacity at the moment; a later attempt may succeed.
    NoCapacity(String),
    /// Each further attempt fails until somebody changes the configuration or the provider's account.
    Permanent(String),
    /// The provider gave no clear answer: it may have started a machine.
    Unclear(String),
    /// Core could not prepare the request, so the provider has not received it.
    Internal(String),
    /// Secrets that the deployment needs are not set, so the provider was not asked.
    MissingSecrets(String),
}

/// One attempt of a job. A registered machine may get the same job twice, so its reports name the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    pub job: JobId,
    /// Counts from 1.
    pub number: u32,
}

impl Attempt {
    /// The `job_id` of this attempt on the wire: the job's id for the first, with `-2` for the second. Agents send it
    /// back unchanged, so each report names its attempt.
    pub fn wire(self) -> WireId {
        self.to_string().parse().expect("an id and a number are letters, digits, `_` and `-`")
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            1 => write!(f, "{}", self.job),
            number => write!(f, "{}-{number}", self.job),
        }
    }
}

impl FromStr for Attempt {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, "the id of a job or of one of its attempts");
        let (job, number) = match text.split_once('-') {
            Some((job, number)) => (job, number.parse().map_err(|_| invalid())?),
            None => (text, 1),
        };
        Ok(Self { job: job.parse()?, number })
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    /// Core has loaded a stored state. No agent is connected.
    CoreStarted,
    /// Time has passed. See [`State::next_deadline`](super::State::next_deadline).
    Tick,
    /// A run was requested. Project and environment are new or known.
    RunRequested {
        run: Box<Run>,
        project: Project,
        environment: Environment,
    },
    /// GitHub has made a delivery. Only its first arrival counts.
    Delivered {
        delivery: DeliveryId,
        /// What the delivery means to core, if anything.
        event: Option<Box<Event>>,
    },
    /// A pull request or the default branch is at another commit, or open again. A known or outdated head changes
    /// nothing, and its `run` is not stored.
    HeadMoved {
        /// The run of that commit.
        run: Box<Run>,
        /// New or known. The project is known.
        environment: Environment,
        head: Head,
        source: HeadSource,
    },
    PullRequestClosed {
        environment: EnvironmentId,
        /// By GitHub's clock.
        at: Timestamp,
    },
    /// A comment or a label contains a command.
    CommandGiven {
        environment: EnvironmentId,
        command: Command,
    },
    /// The outcome of [`Effect::CheckCommand`].
    CommandChecked {
        environment: EnvironmentId,
        command: Command,
        verdict: CommandVerdict,
    },
    /// Somebody with write permission has approved a run of a fork's commit.
    RunApproved {
        run: RunId,
        /// The account's name.
        by: String,
    },
    /// The outcome of [`Effect::Report`].
    Reported {
        environment: EnvironmentId,
        /// The [`wanted`](super::Report::wanted) of the records that it was made of.
        wanted: u64,
        /// What GitHub shows now, or why the report failed, for people.
        result: Result<PublishedReport, String>,
    },
    /// Failed reports are to be tried again, since somebody may have removed the cause.
    RetryReports,
    /// A project is added or changed. The name and the repository of a known project stay.
    ProjectSet {
        project: Project,
    },
    /// Core stops listening to the project's repository. The environments of its pull requests are closed.
    ProjectRemoved {
        project: ProjectId,
    },
    /// The outcome of [`Effect::Plan`].
    RunPlanned {
        run: RunId,
        plan: Result<PlannedRun, PlanFailure>,
    },
    /// The other outcome of [`Effect::Plan`]: GitHub does not answer. The run is planned again at `until`, and other
    /// runs are planned meanwhile.
    PlanDeferred {
        run: RunId,
        until: Timestamp,
    },
    CancelRequested {
        run: RunId,
        reason: CancelReason,
    },
    /// The provider has the machine. This is the outcome of [`Effect::Launch`], or a provider's list has a machine that
    /// is recorded as terminated.
    MachineLaunched {
        machine: MachineId,
        /// `None` for a machine that was found in a list.
        placement: Option<Placement>,
    },
    /// The other outcome of [`Effect::Launch`].
    LaunchFailed {
        machine: MachineId,
        failure: LaunchFailure,
    },
    /// The provider ended a machine before its agent connected, and says why.
    EndedAtLaunch {
        machine: MachineId,
        failure: LaunchFailure,
    },
    /// The machine is gone. This is the outcome of [`Effect::Terminate`], or the provider's list says so.
    MachineGone {
        machine: MachineId,
        /// Whether the cloud took it back.
        taken_back: bool,
    },
    /// The agent reports that the cloud is about to take the machine back.
    MachineInterrupted {
        machine: MachineId,
        interruption: Interruption,
    },
    /// The answer of a provider about the arches that it has. An arch that it lacks is emulated.
    ProviderDescribed {
        provider: ProviderName,
        arches: BTreeSet<Arch>,
    },
    /// An agent sent HELLO with a valid token.
    AgentConnected {
        machine: MachineId,
        /// Two sessions of one machine may overlap. Events of the older one change nothing after the newer one has
        /// connected.
        session: SessionId,
        system_info: SystemInfo,
        /// The attempts that the agent still runs, or whose end core has not acknowledged.
        holds: Vec<Attempt>,
        /// The previews whose containers run on the machine; `None` if the agent does not say.
        previews: Option<BTreeSet<PreviewId>>,
    },
    AgentDisconnected {
        machine: MachineId,
        session: SessionId,
    },
    JobStarted {
        machine: MachineId,
        attempt: Attempt,
    },
    JobReported {
        machine: MachineId,
        attempt: Attempt,
        report: JobReport,
    },
    /// The outcome of [`Effect::Assign`] instead of a DEPLOY: files of `reset_when` that were deployed before were edited.
    FilesNeedReset {
        machine: MachineId,
        attempt: Attempt,
    },
    /// The outcome of [`Effect::Tag`].
    ImageTagged {
        environment: EnvironmentId,
        /// The build, with its combination of the matrix.
        variant: VariantName,
        /// The digest that the reference was to name.
        digest: Digest,
        /// The error is for people.
        result: Result<(), String>,
    },
    /// Somebody closed the environment. Its runs are cancelled and its cache refs deleted. A new run opens it again.
    EnvironmentClosed {
        environment: EnvironmentId,
    },
    /// The outcome of [`Effect::CleanUp`].
    CleanedUp {
        environment: EnvironmentId,
        /// The cache refs that are deleted, or cannot be deleted. The images are deleted as well.
        refs: BTreeSet<ImageRef>,
    },
    MachineRegistered {
        machine: MachineId,
        name: String,
        arch: Arch,
        fleet: Fleet,
    },
    /// The owner takes the machine back. Its job is queued again. A machine that serves a preview stays, because the data of
    /// the preview is there.
    MachineUnregistered {
        machine: MachineId,
    },
    /// An authorised request for the preview. A sleeping one wakes, unless it failed to do so a moment ago.
    PreviewRequested {
        preview: PreviewId,
        at: Timestamp,
    },
    /// A person wakes the preview.
    PreviewWakeRequested {
        preview: PreviewId,
    },
    /// A person sends the preview to sleep.
    PreviewSleepRequested {
        preview: PreviewId,
    },
    /// A person ends the preview. Runs under way do not start it again; the next one does.
    PreviewEndRequested {
        preview: PreviewId,
    },
    /// A person wants the preview with fresh data. It changes nothing while a deployment is under way.
    PreviewResetRequested {
        preview: PreviewId,
    },
    /// A person wants the preview to stay for longer, at most [`PREVIEW_EXTENSION_MAX`](super::PREVIEW_EXTENSION_MAX)
    /// from now.
    PreviewExtended {
        preview: PreviewId,
        by: Duration,
    },
    /// The label of previews was removed from the pull request.
    PreviewLabelRemoved {
        environment: EnvironmentId,
    },
    /// The other outcome of [`Effect::Sleep`]: the agent could not archive the preview, which serves again.
    PreviewArchiveFailed {
        machine: MachineId,
        preview: PreviewId,
        problem: String,
    },
    /// The outcome of [`Effect::Sleep`]: the agent has removed the preview.
    PreviewArchived {
        machine: MachineId,
        preview: PreviewId,
        /// `None` if there are no volumes, or if they were not archived.
        archive: Option<Archive>,
        /// Why the volumes were not archived, for people.
        problem: Option<String>,
    },
    /// The spot market has a new price for a running machine.
    SpotPriceChanged {
        machine: MachineId,
        /// For an hour of the machine itself.
        price: Usd,
    },
    /// A person allows more than the budget of the configuration.
    BudgetAllowed {
        project: ProjectId,
        /// For this pull request, in all; `None`: for the project, in this month.
        pull_request: Option<EnvironmentId>,
        amount: Usd,
    },
    Forgotten {
        /// Runs in a final state; their jobs are deleted as well. An environment is closed with its last run, and
        /// deleted as soon as its cache refs are deleted.
        runs: Vec<RunId>,
        /// Terminated machines.
        machines: Vec<MachineId>,
        /// Deliveries that GitHub does not repeat any more.
        deliveries: Vec<DeliveryId>,
    },
}

/// Work outside of the state. After a crash it may be done again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Read the run's `stagely.yaml` and answer with [`Event::RunPlanned`]. In the outbox.
    Plan { run: RunId },
    /// Ask the provider for a machine and answer with [`Event::MachineLaunched`] or
    /// [`Event::LaunchFailed`]. In the outbox.
    Launch { machine: MachineId },
    /// End the agent, then the machine at its provider, and answer with [`Event::MachineGone`]. In the outbox. Never
    /// emitted while the machine's launch has no outcome: the two would race.
    Terminate { machine: MachineId },
    /// Move the run-independent reference of a build to the image in the environment's record, and answer with
    /// [`Event::ImageTagged`]. If that fails, the run gets a warning and does not fail, since its images are pushed. In
    /// the outbox; at most one of a build at a time, so that the newest run's image is tagged last.
    Tag {
        environment: EnvironmentId,
        /// The build, with its combination of the matrix.
        variant: VariantName,
    },
    /// Delete the cache refs of a closed environment, and the images of a closed pull request, and answer with
    /// [`Event::CleanedUp`]. In the outbox. If the environment is open again when the effect begins, nothing is deleted
    /// and the answer names no ref.
    #[serde(alias = "delete_caches")]
    CleanUp { environment: EnvironmentId },
    /// Find out whether the author of a command may write to the repository, and answer with
    /// [`Event::CommandChecked`]. In the outbox.
    CheckCommand { environment: EnvironmentId, command: Command },
    /// Report the environment's run to GitHub, as it is when the effect begins, and answer with [`Event::Reported`]. In
    /// the outbox; at most one of an environment at a time. The next report has the changes since then.
    Report { environment: EnvironmentId },
    /// Send the job to the agent. Not in the outbox: if the connection breaks before the job arrives, the next HELLO
    /// does not name it, and it is sent again.
    Assign { machine: MachineId, attempt: Attempt },
    /// Ask the agent to stop the job. Not in the outbox, for the same reason.
    Cancel { machine: MachineId, attempt: Attempt, reason: StopReason },
    /// Have the agent archive the preview and remove it, and answer with [`Event::PreviewArchived`]. Not in the outbox:
    /// a HELLO that still names the preview repeats it.
    Sleep { machine: MachineId, preview: PreviewId },
    /// Have the agent remove a preview without an archive. Not in the outbox, for the same reason.
    Retire { machine: MachineId, preview: PreviewId },
    /// End the agent's session. Not in the outbox.
    Disconnect { machine: MachineId },
}

impl Effect {
    /// The environment of the effect, if it has one.
    pub const fn environment(&self) -> Option<EnvironmentId> {
        match self {
            Self::Tag { environment, .. }
            | Self::CleanUp { environment }
            | Self::CheckCommand { environment, .. }
            | Self::Report { environment } => Some(*environment),
            Self::Plan { .. }
            | Self::Launch { .. }
            | Self::Terminate { .. }
            | Self::Assign { .. }
            | Self::Cancel { .. }
            | Self::Sleep { .. }
            | Self::Retire { .. }
            | Self::Disconnect { .. } => None,
        }
    }

    /// The machine of the effect, if it has one.
    pub const fn machine(&self) -> Option<MachineId> {
        match self {
            Self::Launch { machine }
            | Self::Terminate { machine }
            | Self::Assign { machine, .. }
            | Self::Cancel { machine, .. }
            | Self::Sleep { machine, .. }
            | Self::Retire { machine, .. }
            | Self::Disconnect { machine } => Some(*machine),
            Self::Plan { .. }
            | Self::Tag { .. }
            | Self::CleanUp { .. }
            | Self::CheckCommand { .. }
            | Self::Report { .. } => None,
        }
    }

    /// Whether the effect stays in the outbox until its outcome comes back.
    pub const fn is_durable(&self) -> bool {
        match self {
            Self::Plan { .. }
            | Self::Launch { .. }
            | Self::Terminate { .. }
            | Self::Tag { .. }
            | Self::CleanUp { .. }
            | Self::CheckCommand { .. }
            | Self::Report { .. } => true,
            Self::Assign { .. }
            | Self::Cancel { .. }
            | Self::Sleep { .. }
            | Self::Retire { .. }
            | Self::Disconnect { .. } => false,
        }
    }
}
