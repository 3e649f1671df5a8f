//! Runs, jobs and machines as one value, and the one function that changes it.
//!
//! Pure: no I/O, no async, no clock, no randomness. Time and new ids come in with the [`Event`]; work outside goes out
//! as [`Effect`]s.

pub mod ids;
mod names;

mod money;
mod month;
mod prices;

mod bill;
mod environment;
mod event;
mod fleet;
mod github;
mod job;
mod machine;
mod preview;
mod run;
mod test;

mod records;
mod step;
mod transition;

mod accounts;
mod attempts;
mod budget;
mod commands;
mod environments;
mod exports;
mod fingerprints;
mod heads;
mod history;
mod interruptions;
mod machines;
mod merges;
mod preview_requests;
mod previews;
mod projects;
mod reports;
mod reused;
mod runs;
mod schedule;
mod tags;
mod test_jobs;
mod timeouts;

pub mod comparison;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::Arch;

pub use bill::{Bill, PriceSegment};
pub use budget::{Budget, BudgetScope, BudgetUse, Shortage};
pub use environment::{
    BuildTime, Cleanup, ClosedBy, Environment, EnvironmentEvent, EnvironmentState, GoodImage,
};
pub use event::{
    Attempt, CancelReason, Effect, EffectId, Event, LaunchFailure, PlannedJob, PlannedRun,
    StopReason,
};
pub use fingerprints::FingerprintChange;
pub use fleet::{Fleet, Interruption, Market, Placement, ProviderName};
pub use github::{
    Approval, ApprovedCommit, Command, CommandKind, CommandVerdict, CommitStatus, DeliveryId,
    DeploymentState, DeploymentStatus, ForkPolicy, GithubLink, GithubRepository, GithubRun, Head,
    HeadSource, PreviewCommand, PublishedDeployment, PublishedReport, Report, StatusState,
};
pub use history::{Ended, EndedRun, Missing};
pub use job::{
    Job, JobEvent, JobFailure, JobKind, JobOutcome, JobReport, JobState, LostAttempt,
    MissingCapacity, UsedImage,
};
pub use machine::{
    CacheExport, ExportEvent, ExportState, Machine, MachineEvent, MachineKind, MachineSize,
    MachineState,
};
pub use money::{Cost, Spending, Usd};
pub use month::{InvalidMonth, Month};
pub use names::{BranchName, InvalidName, NAME_CHARS_MAX, Name, Reference, VariantName};
pub use preview::{
    Access, Archive, CommitSource, DataLoss, Deployment, FailedWakes, Generation, Preview,
    PreviewEvent, PreviewSettings, PreviewState,
};
pub use preview_requests::{PREVIEW_EXTENSION_MAX, PreviewStart};
pub use previews::DEPLOY_JOB;
pub use prices::{Extras, MINIMUM_TIME, Prices};
pub use records::{Changes, Snapshot, State, Table};
pub use run::{
    PlanFailure, Project, Run, RunEvent, RunState, SkipReason, SkippedBuild, Trigger, WantedTests,
};
pub use schedule::{QueueReason, QueuedJob};
pub use step::{BudgetWarning, Outcome};
pub use tags::tag_not_moved_warning;
pub use test::{Test, TestMachine};
pub use timeouts::{DEPLOYMENT_RETURN, TEST_RESULTS};
pub use transition::{Anomaly, IllegalTransition};

/// A moment, in milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `duration` after this one.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The moment `duration` before this one; the epoch if that would be before it.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The limits that the configuration sets. They are not stored, so a changed configuration holds at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most launched builders at once, over all projects.
    pub max_concurrent: u32,
    /// The most launched testers at once, over all projects.
    pub max_testers: u32,
    /// The most attempts of one job.
    pub max_attempts: u32,
    /// The time limit from the launch to the agent's HELLO.
    pub boot: Duration,
    /// How long an agent may be disconnected before its job is queued again.
    pub reconnect_grace: Duration,
    /// Core ends a job itself this long after the job's own time limit, in case the agent hangs.
    pub job_grace: Duration,
    /// The longest life of a launched machine.
    pub lease: Duration,
    /// The time limit of the export of a cache, after the image was reported.
    pub cache_export: Duration,
    /// The most runs that are planned at once, over all projects. Each needs a thread and a checkout.
    pub planned_at_once: usize,
    /// The time limit of planning a run, over all its tries.
    pub planning: Duration,
    pub priorities: Priorities,
    /// The provider of builders of each arch; empty if no provider is configured.
    pub launchable: BTreeMap<Arch, ProviderName>,
    /// The same for preview machines.
    pub launchable_previews: BTreeMap<Arch, ProviderName>,
    /// The same for testers.
    pub launchable_testers: BTreeMap<Arch, ProviderName>,
    /// How long a job waits after the first launch that found no capacity. Later waits are longer.
    pub capacity_wait: Duration,
    /// How long a job waits for capacity in all.
    pub capacity_limit: Duration,
    pub previews: PreviewLimits,
    pub prices: Prices,
    pub budget: Budget,
}

/// The limits of previews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreviewLimits {
    /// The most launched machines of previews at once, over all projects.
    pub max_concurrent: u32,
    /// The most previews of a project that have a machine.
    pub max_of_project: u32,
    /// The longest life of a machine that serves a preview. The preview sleeps before its end.
    pub lease: Duration,
    /// The time limit of archiving a preview.
    pub archive: Duration,
    /// A machine that serves is given up after this time without its agent, which has given up itself by then.
    pub reconnect: Duration,
}

impl Default for PreviewLimits {
    fn default() -> Self {
        Self {
            max_concurrent: 20,
            max_of_project: 5,
            lease: Duration::from_hours(31 * 24),
            archive: Duration::from_mins(15),
            reconnect: Duration::from_mins(15),
        }
    }
}

/// The `[priorities]` table of the configuration. Jobs of a higher priority go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Priorities {
    /// Pushes to the default branch, and warm-ups. Default: 10.
    pub default_branch: u8,
    /// Pull requests. Default: 20.
    pub pull_request: u8,
    /// Requests through the API. Default: 30.
    pub manual: u8,
}

impl Default for Priorities {
    fn default() -> Self {
        Self { default_branch: 10, pull_request: 20, manual: 30 }
    }
}
