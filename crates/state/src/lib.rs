//! Runs, jobs and machines as one value, and the one function that changes it.
//!
//! Pure: no I/O, no async, no clock, no randomness. Time and new ids come in with the [`Event`];
//! what is to happen outside goes out as [`Effect`]s.

pub mod ids;
mod names;

mod environment;
mod event;
mod fleet;
mod github;
mod job;
mod machine;
mod run;

mod records;
mod step;
mod transition;

mod attempts;
mod commands;
mod environments;
mod exports;
mod fingerprints;
mod heads;
mod interruptions;
mod machines;
mod merges;
mod projects;
mod reports;
mod reused;
mod runs;
mod schedule;
mod tags;
mod timeouts;

pub mod comparison;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_protocol::Arch;

pub use environment::{
    Cleanup, ClosedBy, Environment, EnvironmentEvent, EnvironmentState, GoodImage,
};
pub use event::{
    Attempt, CancelReason, Effect, EffectId, Event, LaunchFailure, PlannedJob, PlannedRun,
    StopReason,
};
pub use fingerprints::FingerprintChange;
pub use fleet::{Fleet, Interruption, Market, Placement, ProviderName, Usd};
pub use github::{
    Approval, ApprovedCommit, Command, CommandKind, CommandVerdict, CommitStatus, DeliveryId,
    ForkPolicy, GithubLink, GithubRepository, GithubRun, Head, HeadSource, PublishedReport, Report,
    StatusState,
};
pub use job::{
    Job, JobEvent, JobFailure, JobKind, JobOutcome, JobReport, JobState, LostAttempt, UsedImage,
};
pub use machine::{
    CacheExport, ExportEvent, ExportState, Machine, MachineEvent, MachineKind, MachineSize,
    MachineState,
};
pub use names::{BranchName, InvalidName, NAME_CHARS_MAX, Name, Reference, VariantName};
pub use records::{Changes, Snapshot, State, Table};
pub use run::{PlanFailure, Project, Run, RunEvent, RunState, SkipReason, SkippedBuild, Trigger};
pub use schedule::{QueueReason, QueuedJob};
pub use step::Outcome;
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

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The limits that the configuration sets. Not stored: a changed configuration holds at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most launched builder machines alive at once, over all projects.
    pub max_concurrent: u32,
    /// Attempts a job has in all.
    pub max_attempts: u32,
    /// From the launch to the agent's HELLO.
    pub boot: Duration,
    /// How long a machine may be out of contact before its job goes elsewhere.
    pub reconnect_grace: Duration,
    /// What core adds to a job's own limit before it ends the job itself, should the agent hang.
    pub job_grace: Duration,
    /// The longest life of a launched machine.
    pub lease: Duration,
    /// How long a machine is kept for the export of a cache after its image was reported.
    pub cache_export: Duration,
    /// Runs that are planned at once, over all projects: each has a thread and a checkout.
    pub planned_at_once: usize,
    /// How long the planning of a run may take, over all its tries.
    pub planning: Duration,
    /// Which runs' jobs go before which.
    pub priorities: Priorities,
    /// Who launches builders of which arch; empty when no provider does.
    pub launchable: BTreeMap<Arch, ProviderName>,
    /// How long a job waits after a launch that found no capacity, times the attempts it has had.
    pub capacity_wait: Duration,
}

/// The `[priorities]` table of the configuration: jobs of a higher one go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Priorities {
    /// Of pushes to the default branch, and of warm-ups. Default: 10.
    pub default_branch: u8,
    /// Of pull requests. Default: 20.
    pub pull_request: u8,
    /// Of what people and scripts ask for. Default: 30.
    pub manual: u8,
}

impl Default for Priorities {
    fn default() -> Self {
        Self { default_branch: 10, pull_request: 20, manual: 30 }
    }
}
