//! What comes in to the state, and what goes out of it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::{Arch, CommitSha, Digest, ImageRef, InvalidValue, SystemInfo, WireId};

use super::{
    Command, CommandVerdict, DeliveryId, Environment, Head, HeadSource, Interruption, JobKind,
    JobReport, MachineSize, Placement, PlanFailure, Project, ProviderName, PublishedReport, Run,
    SkippedBuild, Timestamp, VariantName,
};
use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId, SessionId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A person or a script asked for it.
    Requested,
    /// Its pull request was closed, or its environment is not wanted any more.
    EnvironmentClosed,
    /// A newer run of its environment is there.
    Superseded,
}

/// Why an agent is to stop an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    RunCancelled,
    /// It goes on although its time is over.
    Overrun,
    /// The export of its layer cache takes too long.
    ExportOverrun,
    /// The cloud takes the machine back before it can end.
    Interrupted,
    /// It counts as lost or has ended: the job goes on elsewhere, or not at all.
    NotWanted,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunCancelled => "the run was cancelled",
            Self::Overrun => "it ran past its limit",
            Self::ExportOverrun => "the export of its layer cache takes too long",
            Self::Interrupted => "the cloud takes the machine back",
            Self::NotWanted => "this attempt is not wanted any more",
        })
    }
}

/// Names an effect of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectId(pub u64);

/// A job as the plan has it, before it is queued.
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
    /// The reference that its image also gets if its run is the environment's newest.
    pub tag: Option<ImageRef>,
    /// How big a machine it wants.
    pub size: MachineSize,
    /// Jobs of the same plan that must complete first.
    pub needs: Vec<JobId>,
    /// Its own limit.
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

/// What became of reading a run's `stagely.yaml`.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    pub commit: CommitSha,
    /// A branch that holds it, where one is known.
    pub branch: Option<String>,
    /// The jobs; none where every build was skipped.
    pub jobs: Vec<PlannedJob>,
    /// The builds that have no jobs.
    pub skipped: Vec<SkippedBuild>,
    /// The cache refs that this environment alone writes.
    pub own_cache_refs: BTreeSet<ImageRef>,
}

impl PlannedRun {
    /// A plan of `jobs` alone.
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
}

/// One attempt of a job. A registered machine may get the same job twice, so the job alone would not
/// tell a late report of the first attempt from one of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt {
    pub job: JobId,
    /// Counts from 1.
    pub number: u32,
}

impl Attempt {
    /// The `job_id` that stands for this attempt on the wire: the job's id for the first, with `-2`
    /// for the second. Agents treat it as opaque, so whatever they send back names the attempt.
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
    /// Core started on a stored state: no agent is connected yet.
    CoreStarted,
    /// Time has passed; see [`State::next_deadline`](super::State::next_deadline).
    Tick,
    /// Somebody wants a run. Project and environment are new or known already.
    RunRequested {
        run: Box<Run>,
        project: Project,
        environment: Environment,
    },
    /// GitHub delivered something. It may do so several times; the first counts.
    Delivered {
        delivery: DeliveryId,
        /// What it comes to; `None` where core has no use for it.
        event: Option<Box<Event>>,
    },
    /// A pull request or the default branch is at another commit, or open again. What is known already or
    /// outdated changes nothing: then `run` is not stored.
    HeadMoved {
        /// The run of that commit, `Pending`.
        run: Box<Run>,
        /// Its environment, new or known. The project is known.
        environment: Environment,
        head: Head,
        source: HeadSource,
    },
    /// A pull request was closed or merged.
    PullRequestClosed {
        environment: EnvironmentId,
        /// When, by GitHub's clock.
        at: Timestamp,
    },
    /// Somebody asks for something in a comment or with a label.
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
    /// Somebody who may write to the repository agreed to a run of a fork's commit.
    RunApproved {
        run: RunId,
        /// Their name, for people.
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
    /// A project is to be as this says. Its name and repository stay what they were.
    ProjectSet {
        /// The project, new or known.
        project: Project,
    },
    /// A project is not listened to any more, and the environments of its pull requests are closed.
    ProjectRemoved {
        project: ProjectId,
    },
    /// The outcome of [`Effect::Plan`].
    RunPlanned {
        run: RunId,
        /// The plan, or why there is none.
        plan: Result<PlannedRun, PlanFailure>,
    },
    /// The other outcome of [`Effect::Plan`]: GitHub does not answer, so it is tried again later. Others are
    /// planned meanwhile.
    PlanDeferred {
        run: RunId,
        until: Timestamp,
    },
    CancelRequested {
        run: RunId,
        reason: CancelReason,
    },
    /// The provider has the machine: the outcome of [`Effect::Launch`], or it is found in the
    /// provider's list although its record says that it is gone.
    MachineLaunched {
        machine: MachineId,
        /// Where it is; `None` where only a list tells of it.
        placement: Option<Placement>,
    },
    /// The other outcome of [`Effect::Launch`].
    LaunchFailed {
        machine: MachineId,
        failure: LaunchFailure,
    },
    /// The machine is gone: the outcome of [`Effect::Terminate`], or the provider says so.
    MachineGone {
        machine: MachineId,
        /// Whether the cloud took it back.
        taken_back: bool,
    },
    /// The cloud wants a machine back, as its agent has heard.
    MachineInterrupted {
        machine: MachineId,
        /// How sure that is, and when.
        interruption: Interruption,
    },
    /// A provider was asked what it has. Arches that it lacks are launched nowhere else: they are emulated.
    ProviderDescribed {
        provider: ProviderName,
        /// The arches that it has builders of.
        arches: BTreeSet<Arch>,
    },
    /// An agent said HELLO with a good token.
    AgentConnected {
        machine: MachineId,
        /// Two of one machine may overlap. What is said of an older one after a newer has connected changes
        /// nothing.
        session: SessionId,
        system_info: SystemInfo,
        /// The attempts that it still runs, or whose end it has not been thanked for.
        holds: Vec<Attempt>,
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
    /// The outcome of [`Effect::Tag`].
    ImageTagged {
        environment: EnvironmentId,
        /// The build, with its combination of the matrix.
        variant: VariantName,
        /// What the reference was to name.
        digest: Digest,
        /// Why it does not, for people.
        result: Result<(), String>,
    },
    /// A pull request was closed, or an environment is not wanted any more. Its runs are cancelled and
    /// its cache refs deleted; a new run opens it again.
    EnvironmentClosed {
        environment: EnvironmentId,
    },
    /// The outcome of [`Effect::CleanUp`].
    CleanedUp {
        environment: EnvironmentId,
        /// The cache refs that are gone, or cannot be deleted. Its images are, too.
        refs: BTreeSet<ImageRef>,
    },
    MachineRegistered {
        machine: MachineId,
        /// For people.
        name: String,
        arch: Arch,
    },
    /// An owner took a machine back. Its job goes elsewhere.
    MachineUnregistered {
        machine: MachineId,
    },
    Forgotten {
        /// Runs in a final state; their jobs go with them. An environment is closed with its last run,
        /// and goes as soon as its cache refs are deleted.
        runs: Vec<RunId>,
        /// Machines that are terminated.
        machines: Vec<MachineId>,
        /// Deliveries so old that GitHub does not repeat them.
        deliveries: Vec<DeliveryId>,
    },
}

/// Something to be done outside. Every one may be done again after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Read the run's `stagely.yaml` and answer with [`Event::RunPlanned`]. In the outbox.
    Plan { run: RunId },
    /// Ask the provider for a machine and answer with [`Event::MachineLaunched`] or
    /// [`Event::LaunchFailed`]. In the outbox.
    Launch { machine: MachineId },
    /// Tell the agent to end, then the provider, and answer with [`Event::MachineGone`]. In the
    /// outbox. Never asked for while the machine's launch is unanswered: the two would race.
    Terminate { machine: MachineId },
    /// Let the run-independent reference of a build name the image that the environment's record says,
    /// and answer with [`Event::ImageTagged`], also where it cannot: the images are pushed and their
    /// digests known, so a tag is worth a warning and no failure. In the outbox; at most one of a
    /// build at a time, so that the last word in the registry is that of the newest run.
    Tag {
        environment: EnvironmentId,
        /// The build, with its combination of the matrix.
        variant: VariantName,
    },
    /// Delete the cache refs that a closed environment has written, and the images of a pull request, and
    /// answer with [`Event::CleanedUp`]. In the outbox. An environment that is open again when the
    /// deletion begins keeps all: the answer names none. A closed one names all that its record has.
    #[serde(alias = "delete_caches")]
    CleanUp { environment: EnvironmentId },
    /// Find out whether the author of a command may write to the repository, and answer with
    /// [`Event::CommandChecked`]. In the outbox.
    CheckCommand { environment: EnvironmentId, command: Command },
    /// Tell GitHub how the environment's newest run is at the moment of telling, and answer with
    /// [`Event::Reported`]. In the outbox, at most one of an environment at a time: what changes
    /// meanwhile is told by the next.
    Report { environment: EnvironmentId },
    /// Give the job to the agent. Not in the outbox: if the connection breaks before it arrives, the next
    /// HELLO does not name the job, and it is sent again.
    Assign { machine: MachineId, attempt: Attempt },
    /// Tell the agent to stop the job. Not in the outbox, for the same reason.
    Cancel { machine: MachineId, attempt: Attempt, reason: StopReason },
    /// End the agent's session: its machine is not ours any more. Not in the outbox.
    Disconnect { machine: MachineId },
}

impl Effect {
    /// The environment that it is for, if it is for one.
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
            | Self::Disconnect { .. } => None,
        }
    }

    /// Whether the effect waits in the outbox until its outcome comes back.
    pub const fn is_durable(&self) -> bool {
        match self {
            Self::Plan { .. }
            | Self::Launch { .. }
            | Self::Terminate { .. }
            | Self::Tag { .. }
            | Self::CleanUp { .. }
            | Self::CheckCommand { .. }
            | Self::Report { .. } => true,
            Self::Assign { .. } | Self::Cancel { .. } | Self::Disconnect { .. } => false,
        }
    }
}
