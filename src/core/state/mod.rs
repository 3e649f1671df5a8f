//! Runs, jobs and machines as one value, and the one function that changes it.
//!
//! Pure: no I/O, no async, no clock, no randomness. Time and new ids come in with the [`Event`];
//! what is to happen outside goes out as [`Effect`]s.

mod event;
mod job;
mod machine;
mod run;

mod attempts;
mod clock;
mod machines;
mod runs;
mod schedule;

mod changes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stagely_agent::protocol::Arch;

use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};

pub use changes::Changes;
pub use event::{CancelReason, Effect, EffectId, Event, LaunchRefusal, PlannedJob, PlannedRun};
pub use job::{Job, JobKind, JobOutcome, JobReport, JobState};
pub use machine::{Machine, MachineKind, MachineSize, MachineState};
pub use run::{Environment, Project, Run, RunState, Trigger};
pub use schedule::{QueueReason, QueuedJob};

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
    /// How long the planning of a run may take, over all its tries.
    pub planning: Duration,
    /// The arches that the provider has natively; empty when no provider launches machines.
    pub launchable: BTreeSet<Arch>,
}

/// The stored records that a [`State`] begins with.
#[derive(Clone, Debug, Default)]
pub struct StoredState {
    /// All projects.
    pub projects: Vec<Project>,
    /// All environments.
    pub environments: Vec<Environment>,
    /// All runs.
    pub runs: Vec<Run>,
    /// All jobs.
    pub jobs: Vec<Job>,
    /// All machines.
    pub machines: Vec<Machine>,
    /// Effects whose outcome has not come back.
    pub outbox: Vec<(EffectId, Effect)>,
}

/// Everything core decides on.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    projects: BTreeMap<ProjectId, Project>,
    environments: BTreeMap<EnvironmentId, Environment>,
    runs: BTreeMap<RunId, Run>,
    jobs: BTreeMap<JobId, Job>,
    machines: BTreeMap<MachineId, Machine>,
    /// Effects whose outcome has not come back.
    outbox: BTreeMap<EffectId, Effect>,

    // Indexes, so that a step looks at what lives and not at what was.
    run_jobs: BTreeMap<RunId, Vec<JobId>>,
    active_runs: BTreeSet<RunId>,
    queued: BTreeSet<JobId>,
    live_machines: BTreeSet<MachineId>,

    /// Whose turn has been; a restart begins anew.
    last_served: Option<ProjectId>,
    changes: Changes,
    /// What goes out after the present step.
    effects: Vec<Effect>,
}

impl State {
    /// Begins with what the store holds.
    pub fn new(limits: Limits, stored: StoredState) -> Self {
        let mut state = Self {
            limits,
            projects: by_id(stored.projects, |project| project.id),
            environments: by_id(stored.environments, |environment| environment.id),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            machines: BTreeMap::new(),
            outbox: stored.outbox.into_iter().collect(),
            run_jobs: BTreeMap::new(),
            active_runs: BTreeSet::new(),
            queued: BTreeSet::new(),
            live_machines: BTreeSet::new(),
            last_served: None,
            changes: Changes::default(),
            effects: Vec::new(),
        };
        for run in stored.runs {
            state.put_run(run);
        }
        for job in stored.jobs {
            state.put_job(job);
        }
        for machine in stored.machines {
            state.put_machine(machine);
        }
        state.changes = Changes::default();
        state
    }

    /// Takes one event and returns what is to be done outside, in this order. Nothing else changes
    /// the state. A new machine is named by `new_machine`.
    pub fn step(
        &mut self,
        event: Event,
        now: Timestamp,
        new_machine: &mut dyn FnMut() -> MachineId,
    ) -> Vec<Effect> {
        match event {
            Event::CoreStarted => self.core_started(now),
            Event::Tick => self.tick(now),
            Event::RunRequested { run, project, environment } => {
                self.run_requested(*run, project, environment);
            }
            Event::RunPlanned { run, plan } => self.run_planned(run, plan, now),
            Event::CancelRequested { run, reason } => self.cancel_requested(run, reason, now),
            Event::MachineLaunched { machine } => self.machine_launched(machine),
            Event::LaunchRefused { machine, refusal } => self.launch_refused(machine, refusal, now),
            Event::MachineGone { machine } => self.machine_gone(machine, now),
            Event::AgentConnected { machine, system_info, holds } => {
                self.agent_connected(machine, system_info, &holds, now);
            }
            Event::AgentDisconnected { machine } => self.agent_disconnected(machine, now),
            Event::JobStarted { machine, job } => self.job_started(machine, job, now),
            Event::JobReported { machine, job, report } => {
                self.job_reported(machine, job, report, now);
            }
            Event::StaticMachineAdded { machine, name, arch } => {
                self.static_machine_added(machine, name, arch, now);
            }
            Event::StaticMachineRemoved { machine } => self.static_machine_removed(machine, now),
            Event::Forgotten { runs, machines } => self.forgotten(&runs, &machines),
        }
        self.schedule(now, new_machine);
        std::mem::take(&mut self.effects)
    }

    /// All projects.
    pub const fn projects(&self) -> &BTreeMap<ProjectId, Project> {
        &self.projects
    }

    /// All environments.
    pub const fn environments(&self) -> &BTreeMap<EnvironmentId, Environment> {
        &self.environments
    }

    /// All runs that retention has left.
    pub const fn runs(&self) -> &BTreeMap<RunId, Run> {
        &self.runs
    }

    /// All jobs of these runs.
    pub const fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }

    /// All machines that retention has left.
    pub const fn machines(&self) -> &BTreeMap<MachineId, Machine> {
        &self.machines
    }

    /// Effects whose outcome has not come back. After a crash they are done again.
    pub const fn outbox(&self) -> &BTreeMap<EffectId, Effect> {
        &self.outbox
    }
}

fn by_id<Id: Ord, T>(records: Vec<T>, id: impl Fn(&T) -> Id) -> BTreeMap<Id, T> {
    records.into_iter().map(|record| (id(&record), record)).collect()
}
