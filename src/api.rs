//! The JSON of core's HTTP API, used by the server and by the client commands alike.
//!
//! Times are milliseconds since the Unix epoch. Unknown fields of requests are refused, so that a
//! misspelt one does not pass in silence; clients ignore unknown fields of answers.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use stagely_protocol::{
    Arch, CacheMiss, CommitSha, Digest, FailureReason, ImageRef, Platform, Step, Stream, SystemInfo,
};
use stagely_state::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};
use stagely_state::{
    Approval, CancelReason, Fleet, ForkPolicy, GithubRepository, Interruption, MachineKind,
    MachineSize, Market, ProviderName, Timestamp, Trigger, Usd,
};
use utoipa::{IntoParams, ToSchema};

/// The path that all of the API lies below.
pub const BASE_PATH: &str = "/api/v1";

/// What a bearer token may do. Each role may do what the ones before it may.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything but secrets.
    Read,
    /// Starts and cancels runs.
    Write,
    /// Makes tokens and registers machines.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A word for programs: `not_found`, `invalid_request`, `unauthorized`, `forbidden`…
    pub code: String,
    /// A sentence for people: what is wrong and what to do.
    pub message: String,
}

/// `POST /runs`: what to build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// Where to clone from: `http://…`, `https://…` or `git://…`, without credentials.
    #[schema(example = "https://github.com/owner/repository.git")]
    pub repository: String,
    /// A branch, a tag or a full commit id. Default: the default branch.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Opens the repository. Kept encrypted, and only until the run has ended.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
    /// The project's name. Default: made of the repository's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment's name. Default: made of the branch or tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The pull request that the commit belongs to. Its environment is then `pr-N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork: then caches are read and never written. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_fork: bool,
    /// The branch or full commit id that the builds' `paths` are compared with. Default: the default
    /// branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The builds of `stagely.yaml` to run, with those that they depend on. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<String>,
    /// Build arguments for every build, over those of `stagely.yaml`. Kept encrypted, and only until
    /// the run has ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "expose_all")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub set: BTreeMap<String, SecretString>,
}

impl CreateRun {
    /// A run of all builds of the repository's default branch.
    pub const fn new(repository: String) -> Self {
        Self {
            repository,
            reference: None,
            clone_token: None,
            project: None,
            environment: None,
            pull_request: None,
            from_fork: false,
            base: None,
            builds: Vec::new(),
            set: BTreeMap::new(),
        }
    }
}

#[expect(clippy::ref_option, reason = "serde's serialize_with hands out a reference to the field")]
fn expose<S: serde::Serializer>(secret: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(ExposeSecret::expose_secret).serialize(to)
}

fn expose_all<S: serde::Serializer>(
    secrets: &BTreeMap<String, SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(secrets.iter().map(|(name, secret)| (name, secret.expose_secret())))
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Its `stagely.yaml` is being read.
    Pending,
    /// Its jobs wait or run.
    Building,
    /// Every job completed.
    Completed,
    /// A job failed, or the run could not be planned.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl RunStatus {
    /// Whether nothing more happens to the run.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Building => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The status as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Building => "building",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Its id.
    #[schema(value_type = String, example = "run_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: RunId,
    /// How far it is.
    pub status: RunStatus,
    /// Whose fault it was that it has no jobs. Those of failed jobs are with the jobs.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<FailureReason>,
    /// Why it has no jobs: every error of `stagely.yaml`, a line each.
    pub error: Option<String>,
    /// Why it is being, or was, stopped.
    #[schema(value_type = Option<String>)]
    pub cancel_reason: Option<CancelReason>,
    /// The project's id.
    #[schema(value_type = String)]
    pub project_id: ProjectId,
    /// The project's name.
    pub project: String,
    /// The environment's id.
    #[schema(value_type = String)]
    pub environment_id: EnvironmentId,
    /// The environment's name.
    pub environment: String,
    /// Where it is cloned from.
    pub repository: String,
    /// What was asked for.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The commit, once it is known.
    #[schema(value_type = Option<String>)]
    pub commit: Option<CommitSha>,
    /// What caused it.
    #[schema(value_type = String)]
    pub trigger: Trigger,
    /// When it was asked for.
    #[schema(value_type = u64)]
    pub created_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Timestamp>,
    /// The pull request that its environment is for.
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork.
    pub from_fork: bool,
    /// Whether somebody must agree before anything is done for it: `status` is `not_needed`, `awaited` or
    /// `given`, the last with `by`.
    #[schema(value_type = Object)]
    pub approval: Approval,
    /// The run whose completed jobs it keeps.
    #[schema(value_type = Option<String>)]
    pub keeps: Option<RunId>,
    /// The builds that it does without.
    pub skipped: Vec<SkippedBuildView>,
    /// Merges that were done on a machine that was there already, so that none was launched for them.
    pub saved_machines: usize,
    /// Machines launched for it that are not gone yet.
    pub live_machines: usize,
    /// Its jobs, in the order of the plan. Empty in lists of runs.
    pub jobs: Vec<JobView>,
}

/// A build that a run does without.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SkippedBuildView {
    /// The build, with its combination of the matrix.
    pub build: String,
    /// Why, for people.
    pub reason: String,
    /// The image that stands in, by digest.
    #[schema(value_type = Option<String>)]
    pub image: Option<ImageRef>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Waits for other jobs or for a machine.
    Queued,
    /// Its machine is starting.
    Provisioning,
    /// Its agent works on it.
    Running,
    /// The image is pushed.
    Completed,
    /// It failed.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl JobStatus {
    /// Whether nothing more happens to the job.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Provisioning | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The status as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKindView {
    /// Builds one image.
    Build,
    /// Joins several into an index.
    Merge,
}

/// An attempt that came to nothing through no fault of the user's.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LostAttempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// Whose fault it was.
    #[schema(value_type = Object)]
    pub reason: FailureReason,
    /// What happened, for people.
    pub message: String,
}

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its id.
    #[schema(value_type = String, example = "job_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: JobId,
    /// Its run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// Unique within the run.
    pub name: String,
    /// The build of `stagely.yaml`.
    pub build: String,
    /// The build's name with its combination of the matrix; `build` where there is none.
    pub variant: String,
    /// What it does.
    pub kind: JobKindView,
    /// The platforms of its image: one for a build, several for a merge.
    #[schema(value_type = Vec<String>)]
    pub platforms: Vec<Platform>,
    /// How far it is.
    pub status: JobStatus,
    /// The newest attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// Attempts that came to nothing.
    pub lost_attempts: Vec<LostAttempt>,
    /// The machine that has it.
    #[schema(value_type = Option<String>)]
    pub machine_id: Option<MachineId>,
    /// The reference that is pushed.
    #[schema(value_type = String)]
    pub image: ImageRef,
    /// The digest, once it is pushed.
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// Whose fault a failure was.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<FailureReason>,
    /// What a failure was, for people.
    pub error: Option<String>,
    /// The exit code of the build.
    pub exit_code: Option<i32>,
    /// What the user should know although the job went on.
    pub warnings: Vec<String>,
    /// The steps of the build, without `FROM`: pulling a base image is no step that a cache holds.
    #[schema(value_type = Vec<Object>)]
    pub steps: Vec<Step>,
    /// How many of the steps came from the cache.
    pub cached_steps: usize,
    /// The first step that did not come from the cache, and why.
    #[schema(value_type = Option<Object>)]
    pub cache_miss: Option<CacheMiss>,
    /// The reference that names the same image in each run, moved by the environment's newest.
    #[schema(value_type = Option<String>)]
    pub tag: Option<ImageRef>,
    /// Whether it is, or was, built under emulation.
    pub emulated: bool,
    /// How many times longer its steps took than natively, where the native time is known.
    pub slow_down: Option<f64>,
    /// The job whose machine it took over, so that none was launched for it.
    #[schema(value_type = Option<String>)]
    pub took_over: Option<JobId>,
    /// The job of an earlier run whose image this one is.
    #[schema(value_type = Option<String>)]
    pub kept_from: Option<JobId>,
    /// Its place in the queue, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePlace>,
    /// When it was queued.
    #[schema(value_type = u64)]
    pub queued_at: Timestamp,
    /// When the newest attempt began on its machine.
    #[schema(value_type = Option<u64>)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Timestamp>,
}

impl JobView {
    /// The digest as text; empty before there is one.
    pub fn digest_text(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).unwrap_or_default()
    }
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineStatus {
    /// Recorded; the provider has not confirmed it.
    Requested,
    /// Its agent has not connected.
    Booting,
    /// Has no job.
    Ready,
    /// Has a job.
    Busy,
    /// Is being ended.
    Terminating,
    /// Is gone.
    Terminated,
}

impl MachineStatus {
    /// The status as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
        }
    }
}

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MachineView {
    /// Its id.
    #[schema(value_type = String, example = "vm_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: MachineId,
    /// Whether a provider launched it or its owner registered it.
    #[schema(value_type = String)]
    pub kind: MachineKind,
    /// The name its owner gave it; empty for a launched one.
    pub name: String,
    /// Its processor.
    #[schema(value_type = String)]
    pub arch: Arch,
    /// How big it is.
    #[schema(value_type = String)]
    pub size: MachineSize,
    /// What it is for: `builder`, `preview` or `tester`.
    #[schema(value_type = String)]
    pub fleet: Fleet,
    /// Who launched it; none for a registered one.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderName>,
    /// The provider's own name for it, once it has answered.
    pub provider_id: Option<String>,
    /// What the provider calls a machine of its size, once it has answered.
    pub instance_type: Option<String>,
    /// The zone, region or subnet that it is in, where the provider has such.
    pub zone: Option<String>,
    /// How it is paid for: `on-demand` or `spot`. None before the provider has answered.
    #[schema(value_type = Option<String>)]
    pub market: Option<Market>,
    /// Whether it is paid for on demand whatever the market of its fleet, since its job has no further attempt.
    pub on_demand: bool,
    /// What an hour of it costs, in US dollars; of a spot machine the most that it can cost. None where nobody
    /// has said.
    #[serde(with = "dollars")]
    #[schema(value_type = Option<f64>, example = 0.17)]
    pub price_per_hour_usd: Option<Usd>,
    /// What it has cost so far, in US dollars, counted from its request and rounded up to a millionth; of a spot
    /// machine the most that it can have cost. None where no price is known.
    #[serde(with = "dollars")]
    #[schema(value_type = Option<f64>, example = 0.0284)]
    pub cost_usd: Option<Usd>,
    /// How far it is.
    pub status: MachineStatus,
    /// The cloud wants it back: `notice` is `likely`, or `certain` with `at`.
    #[schema(value_type = Option<Object>)]
    pub interruption: Option<Interruption>,
    /// Whether its agent is connected.
    pub connected: bool,
    /// The job that it has, or was launched for.
    #[schema(value_type = Option<String>)]
    pub job_id: Option<JobId>,
    /// The job whose cache it still exports, after the image was reported.
    #[schema(value_type = Option<String>)]
    pub exporting_cache_of: Option<JobId>,
    /// When its record was made.
    #[schema(value_type = u64)]
    pub requested_at: Timestamp,
    /// It is ended after this moment whatever it does; none for a registered one.
    #[schema(value_type = Option<u64>)]
    pub lease_until: Option<Timestamp>,
    /// What is left of its lease, in seconds: below zero where it is there all the same. None for a registered
    /// one, and for one that is gone.
    pub lease_left_seconds: Option<i64>,
    /// From its request until now, or until it was gone, in seconds.
    pub age_seconds: u64,
    /// When it was gone.
    #[schema(value_type = Option<u64>)]
    pub terminated_at: Option<Timestamp>,
    /// What its agent said about it.
    #[schema(value_type = Option<Object>)]
    pub system_info: Option<SystemInfo>,
}

/// Writes an amount of US dollars as a number. Millionths fit into one exactly.
pub(crate) mod dollars {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Usd;

    #[expect(clippy::ref_option, reason = "serde hands out a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(amount: &Option<Usd>, to: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_precision_loss, reason = "exact below 9 billion dollars")]
        amount.map(|Usd(millionths)| millionths as f64 / 1e6).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Usd>, D::Error> {
        let amount = Option::<f64>::deserialize(from)?;
        // What is below zero or no number becomes 0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        Ok(amount.map(|amount| Usd((amount * 1e6).round() as u64)))
    }
}

/// Which machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListMachines {
    /// Also those that are gone, as long as they are remembered (`retention`). Default: false.
    #[serde(default)]
    pub all: bool,
}

/// `/sweep`: what the providers have against what the records say.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SweepView {
    /// Whether this is only what would be done.
    pub dry_run: bool,
    /// Each provider.
    pub providers: Vec<ProviderSweepView>,
}

/// One provider in a sweep.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProviderSweepView {
    /// Which.
    #[schema(value_type = String)]
    pub provider: ProviderName,
    /// Why it could not be asked, for people. The rest then says nothing.
    pub error: Option<String>,
    /// Machines in its list that are there.
    pub listed: usize,
    /// Machines that it should have: launched by it and not gone.
    pub recorded: usize,
    /// Machines about which its list and the records differ.
    pub machines: Vec<SweptMachine>,
}

/// A machine about which a provider's list and the records differ.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SweptMachine {
    /// Which.
    #[schema(value_type = String)]
    pub machine_id: MachineId,
    /// What follows.
    pub action: SweepAction,
    /// Why, for people.
    pub reason: String,
    /// Whether it was done.
    pub done: bool,
    /// Why it could not be done, for people. It is tried again.
    pub error: Option<String>,
}

/// What follows for a machine from a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SweepAction {
    /// It is ended.
    End,
    /// It counts as gone, and its work goes elsewhere. What is left of it is ended.
    Forget,
    /// It is looked for once more before anything follows.
    LookAgain,
    /// Nothing.
    None,
}

/// `POST /machines`: registers a machine that is there already.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMachine {
    /// Its processor.
    #[schema(value_type = String, example = "arm64")]
    pub arch: Arch,
    /// A name for people. Default: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The answer to `POST /machines`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddedMachine {
    /// The machine's id.
    #[schema(value_type = String)]
    pub id: MachineId,
    /// The content of its `agent.json`. Holds its token, which is shown only here.
    #[schema(value_type = Object)]
    pub agent_json: serde_json::Value,
}

/// `POST /runs/{id}/rebuild`: builds a run's commit once more, as a new run.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebuildRun {
    /// Only what did not complete; the images of completed jobs are kept. Default: false.
    #[serde(default)]
    pub failed: bool,
    /// Opens the repository. That of the earlier run is gone.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
    /// Build arguments. Those of the earlier run are gone: the same names must be given again, and with
    /// `failed` no others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "expose_all")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub set: BTreeMap<String, SecretString>,
}

/// `POST /projects/{name}/warm-ups`: fills a project's caches; nothing is pushed but these.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWarmUp {
    /// The branch. Default: the default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Opens the repository. Kept encrypted, and only until the run has ended.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub clone_token: Option<SecretString>,
}

/// `GET /warm-up`: what `[warm-up]` of core's configuration comes to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WarmUpView {
    /// The cron expression, in UTC; none where nothing is scheduled.
    pub schedule: Option<String>,
    /// When it is due next.
    #[schema(value_type = Option<u64>)]
    pub next_due_at: Option<Timestamp>,
    /// The projects, by name.
    pub projects: Vec<String>,
    /// The branches; empty: the default branch.
    pub branches: Vec<String>,
}

/// An environment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: EnvironmentId,
    /// Its project's name.
    pub project: String,
    /// Its name.
    pub name: String,
    /// The pull request that it is for.
    pub pull_request: Option<u64>,
    /// Whether it is closed: its cache refs are, or will soon be, deleted.
    pub closed: bool,
    /// The newest run.
    #[schema(value_type = Option<String>)]
    pub newest_run: Option<RunId>,
    /// The newest good image of each build.
    pub images: Vec<EnvironmentImage>,
    /// The cache refs that only it writes.
    #[schema(value_type = Vec<String>)]
    pub cache_refs: Vec<ImageRef>,
    /// The commit that it is at by GitHub's account.
    #[schema(value_type = Option<String>)]
    pub head: Option<CommitSha>,
    /// The comment on the pull request.
    pub comment: Option<u64>,
    /// Where people read it.
    pub comment_url: Option<String>,
    /// Why GitHub was not told of the newest run.
    pub report_problem: Option<String>,
}

/// `POST /environments/{id}/rebuild`: builds the newest run once more.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebuildEnvironment {
    /// Only what did not complete; the images of completed jobs are kept. Default: false.
    #[serde(default)]
    pub failed_only: bool,
}

/// A project.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ProjectId,
    /// Its name, and that of its images.
    pub name: String,
    /// Where it is cloned from.
    pub repository: String,
    /// `owner/name` at GitHub; none where only people and scripts start runs.
    pub github: Option<String>,
    /// What becomes of pull requests from forks.
    #[schema(value_type = Option<String>)]
    pub forks: Option<ForkPolicy>,
    /// Most machines at once.
    #[schema(value_type = Option<u32>)]
    pub max_concurrent: Option<NonZeroU32>,
    /// Whether `stagely.toml` has it.
    pub configured: bool,
    /// Whether it has a token of its own.
    pub has_token: bool,
}

/// `POST /projects`: a repository at GitHub whose pull requests are built from now on. One that is there
/// already is changed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddProject {
    /// `owner/name` of the repository.
    #[schema(value_type = String, example = "owner/name")]
    pub github: GithubRepository,
    /// The project's name. Default: the one it has, or made of the repository's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A token for this repository alone. Kept encrypted. Default: the one it has, or that of `[github]`.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    #[schema(value_type = Option<String>)]
    pub token: Option<SecretString>,
    /// What becomes of pull requests from forks: `approval`, `never` or `known-contributors`. Default:
    /// `approval`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub forks: ForkPolicy,
    /// Most machines that work for it at once. Default: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub max_concurrent: Option<NonZeroU32>,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryOutcome {
    /// It is stored with what it comes to.
    Accepted,
    /// Nothing comes of it.
    Ignored,
    /// It came before.
    Repeated,
}

/// The answer to `POST /webhooks/github`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// Which delivery: the digits of `X-GitHub-Delivery`.
    pub delivery: String,
    /// What became of it.
    pub outcome: DeliveryOutcome,
    /// What or why, for people.
    pub detail: String,
}

/// `GET /github`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GithubView {
    /// What core has: `app`, `token` or `none`.
    pub credentials: String,
    /// Whether webhooks can be taken.
    pub webhook_secret: bool,
    /// Requests left in this hour, of the credentials that have the fewest.
    pub remaining: Option<u64>,
    /// When these are as many as at the start again.
    #[schema(value_type = Option<u64>)]
    pub resets_at: Option<Timestamp>,
    /// Nothing is asked before this moment: GitHub's limit is reached.
    #[schema(value_type = Option<u64>)]
    pub blocked_until: Option<Timestamp>,
    /// The last failure.
    pub problem: Option<String>,
    /// The projects whose repositories are listened to.
    pub projects: Vec<ReconciledView>,
}

/// When a project was last compared with its repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReconciledView {
    /// The project's name.
    pub project: String,
    /// When; none: not since core started.
    #[schema(value_type = Option<u64>)]
    pub reconciled_at: Option<Timestamp>,
    /// Why it could not be.
    pub problem: Option<String>,
}

/// The newest good image of a build.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentImage {
    /// The build, with its combination of the matrix.
    pub build: String,
    /// The reference that is the same in each run.
    #[schema(value_type = String)]
    pub tag: ImageRef,
    /// The digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The commit that it was built of.
    #[schema(value_type = String)]
    pub commit: CommitSha,
}

/// Where a job is in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuePlace {
    /// Its place, from 1.
    pub position: usize,
    /// What it waits for, for people: `waiting for 1 of 50 builders`.
    pub reason: String,
}

/// A job that waits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueuedJobView {
    /// Its place, from 1.
    pub position: usize,
    /// The job.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// Its name.
    pub name: String,
    /// Its run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// Its project's name.
    pub project: String,
    /// What it waits for, for people: `waiting for 1 of 50 builders`.
    pub reason: String,
}

/// `GET /queue`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// Most launched machines at once.
    pub max_concurrent: u32,
    /// Launched machines alive now.
    pub live_machines: usize,
    /// The jobs that wait, in the order in which they will be served.
    pub jobs: Vec<QueuedJobView>,
}

/// `POST /tokens`: makes a bearer token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// The answer to `POST /tokens`. The token is shown only here; core keeps its hash.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The token.
    #[serde(serialize_with = "stagely_protocol::expose_secret")]
    #[schema(value_type = String)]
    pub token: SecretString,
}

/// Which of the lists' entries.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListRuns {
    /// Most runs in the answer, newest first. Default 50, at most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only runs older than this one: the last id of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub before: Option<RunId>,
}

/// Which environments.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListEnvironments {
    /// The project's name. Default: all projects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// Which part of a log.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct LogRange {
    /// The first line, from 0. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// The attempt. Default: the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
}

/// One message of `GET /jobs/{id}/logs/follow` (WebSocket).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum FollowMessage {
    /// Lines of the log, in order, each once.
    Lines {
        /// The attempt that they belong to.
        attempt: u32,
        /// The number of the first.
        first: u64,
        /// The lines.
        lines: Vec<FollowedLine>,
    },
    /// The job has ended, or the attempt that was asked for is over, and every line was sent. The last
    /// message.
    End {
        /// How the job ended, or how far it is.
        status: JobStatus,
        /// The job's newest attempt. The log goes on there if an older one was asked for.
        attempt: u32,
    },
}

/// One line of a followed log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FollowedLine {
    /// When the agent read it, in milliseconds since the Unix epoch.
    pub t: u64,
    /// Where it came from.
    pub stream: Stream,
    /// The text, ANSI sequences kept.
    pub data: String,
}
