//! The committed records, for readers: the HTTP API, the sessions of agents, and effects.
//!
//! Only what the store holds is here, so nobody is told of a decision that a crash could undo. The
//! orchestrator is the only writer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use stagely_state::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};
use stagely_state::{
    Attempt, DeliveryId, Environment, Job, JobKind, JobState, Machine, Project, QueuedJob, Run,
    Timestamp,
};
use tokio::sync::watch;

/// How many runs, of all projects, are looked through for those of a job's own. What is older says little
/// of how long a step takes now.
const RUNS_MAX: usize = 500;

/// How many runs of a project are searched for a native build: each view of an emulated job does so.
const TWIN_RUNS_MAX: usize = 20;

/// The records of one moment.
#[derive(Debug, Default)]
pub struct Records {
    /// All projects.
    pub projects: BTreeMap<ProjectId, Project>,
    /// All environments.
    pub environments: BTreeMap<EnvironmentId, Environment>,
    /// All runs.
    pub runs: BTreeMap<RunId, Run>,
    /// All jobs.
    pub jobs: BTreeMap<JobId, Job>,
    /// The jobs of each run, in the order of the plan.
    pub run_jobs: BTreeMap<RunId, Vec<JobId>>,
    /// All machines.
    pub machines: BTreeMap<MachineId, Machine>,
    /// The machines that are not gone, each with the run that it was launched for.
    pub live: BTreeMap<MachineId, Option<RunId>>,
    /// How many of them each run has; no run without one.
    pub live_of_run: BTreeMap<RunId, usize>,
    /// When each delivery of GitHub's came, as far as it may come again.
    pub deliveries: BTreeMap<DeliveryId, Timestamp>,
    queue: Vec<QueuedJob>,
    /// Where each job is in `queue`: a run may have hundreds of jobs that wait among thousands, and each
    /// view of it asks for all of theirs.
    queue_positions: HashMap<JobId, usize>,
}

impl Records {
    /// The jobs that wait, in the order in which they will be served.
    pub fn queue(&self) -> &[QueuedJob] {
        &self.queue
    }

    /// A job that waits, with its index in [`queue`](Self::queue).
    pub fn queued(&self, job: JobId) -> Option<(usize, &QueuedJob)> {
        let index = *self.queue_positions.get(&job)?;
        Some((index, self.queue.get(index)?))
    }

    /// Takes what waits now.
    pub(super) fn set_queue(&mut self, queue: Vec<QueuedJob>) {
        self.queue_positions.clear();
        self.queue_positions
            .extend(queue.iter().enumerate().map(|(index, queued)| (queued.job, index)));
        self.queue = queue;
    }

    /// The jobs of `run`, in the order of the plan.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.run_jobs.get(&run).into_iter().flatten().filter_map(|job| self.jobs.get(job))
    }

    /// The newest completed job that built natively what `job` builds under emulation, and of which at
    /// least one step ran: the same run's of another platform, else an earlier run's.
    pub fn native_twin(&self, job: &Job) -> Option<&Job> {
        let project = self.runs.get(&job.run)?.project;
        let is_twin = |other: &&Job| {
            let is_build = matches!(other.kind, JobKind::Build { .. });
            let ran = other.steps.iter().any(|step| !step.cached);
            let is_native = !other.emulated && is_build && ran;
            let is_completed = matches!(other.state, JobState::Completed { .. });
            let is_same = other.build == job.build && other.variant == job.variant;
            is_same && is_native && is_completed
        };
        let earlier = self.runs.range(..job.run).rev().take(RUNS_MAX);
        let earlier = earlier.filter(|(_, run)| run.project == project).map(|(id, _)| *id);
        let earlier = earlier.take(TWIN_RUNS_MAX);
        [job.run].into_iter().chain(earlier).find_map(|run| self.jobs_of(run).find(is_twin))
    }

    /// Whether an agent still exports the cache of `attempt`, of which it then has more to say.
    pub fn is_exporting(&self, attempt: Attempt) -> bool {
        let exports = |machine: &Machine| machine.exporting.map(|export| export.attempt);
        self.live_machines().any(|machine| exports(machine) == Some(attempt))
    }

    /// The machines that are not gone.
    pub fn live_machines(&self) -> impl Iterator<Item = &Machine> {
        self.live.keys().filter_map(|machine| self.machines.get(machine))
    }
}

/// Shares [`Records`] and tells of changes. Clones share them.
#[derive(Clone, Debug)]
pub struct SharedRecords {
    records: Arc<RwLock<Records>>,
    /// Counts the changes.
    version: watch::Sender<u64>,
}

impl SharedRecords {
    /// Shares `records`.
    pub fn new(records: Records) -> Self {
        Self { records: Arc::new(RwLock::new(records)), version: watch::Sender::new(0) }
    }

    /// Reads. Never hold the guard across an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Records> {
        // A writer that panicked took the process's orchestrator with it; what it left is whole rows.
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the records and wakes those who wait.
    pub(super) fn write(&self, change: impl FnOnce(&mut Records)) {
        change(&mut self.records.write().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|version| *version += 1);
    }

    /// Waits until `condition` holds for the committed records.
    pub(super) async fn wait_until(&self, condition: impl Fn(&Records) -> bool) {
        let mut changes = self.changes();
        let is_reached = changes.wait_for(|_| condition(&self.read())).await;
        is_reached.expect("the sender is a part of `self`");
    }

    /// Resolves after each change; a burst of changes counts once.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
