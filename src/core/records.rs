//! The committed records, for readers: the HTTP API, the sessions of agents, and effects.
//!
//! These records are in the store, so no reader acts on a decision that a crash could undo. The orchestrator is the
//! only writer, except for `waits`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};
use stagely_state::{
    Attempt, Changes, DeliveryId, EndedRun, Environment, Job, JobKind, JobState, Machine, Preview,
    Project, QueueReason, QueuedJob, Run, State, Timestamp,
};
use tokio::sync::watch;

use super::wait::{Wait, Waiter};

/// Most runs of a project that are searched for a native build. The durations of older steps say little about today's.
pub(super) const TWIN_RUNS_MAX: usize = 20;

/// The records of one moment, without those that have ended and that nothing refers to: see
/// [`History`](super::history::History).
#[derive(Debug, Default)]
pub struct Records {
    pub projects: BTreeMap<ProjectId, Project>,
    pub environments: BTreeMap<EnvironmentId, Environment>,
    pub runs: BTreeMap<RunId, Run>,
    pub jobs: BTreeMap<JobId, Job>,
    /// The jobs of each run, in the order of the plan.
    pub run_jobs: BTreeMap<RunId, Vec<JobId>>,
    pub machines: BTreeMap<MachineId, Machine>,
    pub previews: BTreeMap<PreviewId, Preview>,
    /// The previews that have changed since their follower last looked.
    changed_previews: BTreeSet<PreviewId>,
    /// The machines that are not terminated, each with the run that it was launched for; `None` if it serves a preview.
    pub live: BTreeMap<MachineId, Option<RunId>>,
    /// The number of live machines of each run that has some, without those that serve previews.
    pub live_of_run: BTreeMap<RunId, usize>,
    /// The arrival of each of GitHub's deliveries, while GitHub may repeat it.
    pub deliveries: BTreeMap<DeliveryId, Timestamp>,
    /// What runs and jobs wait for outside of core.
    pub waits: BTreeMap<Waiter, Wait>,
    queue: Vec<QueuedJob>,
    /// The index of each job in `queue`. A run may have hundreds of jobs among thousands, and each view of the run
    /// needs the positions of all of them.
    queue_positions: HashMap<JobId, usize>,
}

impl Records {
    /// The records of `state`, all of which are in the store.
    pub fn of(state: &State) -> Self {
        let changes = Changes {
            projects: state.projects.keys().copied().collect(),
            environments: state.environments.keys().copied().collect(),
            runs: state.runs.keys().copied().collect(),
            jobs: state.jobs.keys().copied().collect(),
            machines: state.machines.keys().copied().collect(),
            previews: state.previews.keys().copied().collect(),
            deliveries: state.deliveries.keys().copied().collect(),
            ..Changes::default()
        };
        let mut records = Self::default();
        records.take_changes(state, &changes);
        records.set_queue(state.queue());
        records
    }

    pub(super) fn take_changes(&mut self, state: &State, changes: &Changes) {
        copy(&mut self.projects, &state.projects, &changes.projects);
        copy(&mut self.environments, &state.environments, &changes.environments);
        copy(&mut self.runs, &state.runs, &changes.runs);
        copy(&mut self.machines, &state.machines, &changes.machines);
        copy(&mut self.jobs, &state.jobs, &changes.jobs);
        copy(&mut self.previews, &state.previews, &changes.previews);
        self.changed_previews.extend(&changes.previews);
        copy(&mut self.deliveries, &state.deliveries, &changes.deliveries);
        for id in &changes.machines {
            self.update_live(*id);
        }
        for run in &changes.runs {
            if !self.runs.contains_key(run) {
                self.run_jobs.remove(run);
            }
        }
        for job in changes.jobs.iter().filter_map(|job| state.jobs.get(job)) {
            let jobs = self.run_jobs.entry(job.run).or_default();
            if !jobs.contains(&job.id) {
                // Ids are made in the order of the plan.
                jobs.push(job.id);
                jobs.sort_unstable();
            }
        }
    }

    fn update_live(&mut self, id: MachineId) {
        let before = self.live.get(&id).copied();
        let machine = self.machines.get(&id).filter(|machine| !machine.state.is_terminated());
        let after = machine.map(|machine| match before {
            // It does not end with its run.
            _ if machine.serves.is_some() => None,
            Some(run) => run,
            None => Some(self.jobs.get(&machine.requested_for?)?.run),
        });
        if before == after {
            return;
        }
        match after {
            Some(run) => self.live.insert(id, run),
            None => self.live.remove(&id),
        };
        if let Some(Some(run)) = after {
            *self.live_of_run.entry(run).or_default() += 1;
        }
        if let Some(Some(run)) = before
            && let Entry::Occupied(mut count) = self.live_of_run.entry(run)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The queued jobs in the order in which they will be assigned.
    pub fn queue(&self) -> &[QueuedJob] {
        &self.queue
    }

    /// A queued job with its index in [`queue`](Self::queue).
    pub fn queued(&self, job: JobId) -> Option<(usize, &QueuedJob)> {
        let index = *self.queue_positions.get(&job)?;
        Some((index, self.queue.get(index)?))
    }

    pub(super) fn set_queue(&mut self, queue: Vec<QueuedJob>) {
        self.queue_positions.clear();
        self.queue_positions
            .extend(queue.iter().enumerate().map(|(index, queued)| (queued.job, index)));
        self.queue = queue;
    }

    /// Records of `ended` runs alone, with their projects and environments.
    pub(super) fn with_ended(&self, ended: impl IntoIterator<Item = EndedRun>) -> Self {
        let mut records = Self::default();
        for EndedRun { run, jobs } in ended {
            let project = self.projects.get(&run.project);
            records.projects.extend(project.map(|project| (project.id, project.clone())));
            let environment = self.environments.get(&run.environment);
            records.environments.extend(environment.map(|found| (found.id, found.clone())));
            records.run_jobs.insert(run.id, jobs.iter().map(|job| job.id).collect());
            records.jobs.extend(jobs.into_iter().map(|job| (job.id, job)));
            records.runs.insert(run.id, run);
        }
        records
    }

    /// What a run waits for: a repository, GitHub or a registry that does not answer.
    pub(crate) fn wait_of_run(&self, run: &Run) -> Option<Wait> {
        self.waits.get(&Waiter::Run(run.id)).filter(|_| !run.state.is_final()).cloned()
    }

    /// What a job waits for: capacity, or a provider that does not answer.
    pub(crate) fn wait_of_job(&self, job: &Job) -> Option<Wait> {
        let wait = self.waits.get(&Waiter::Job(job.id)).filter(|_| !job.state.is_final());
        wait.cloned().or_else(|| self.wait_for_capacity(job))
    }

    /// The wait of a job whose last launch found no capacity.
    pub(crate) fn wait_for_capacity(&self, job: &Job) -> Option<Wait> {
        let gap = job.missing_capacity.as_ref().filter(|_| !job.state.is_final())?;
        let (retry_at, give_up_at) = match self.queued(job.id).map(|(_, queued)| &queued.reason) {
            Some(QueueReason::Capacity { retry_at, give_up_at, .. }) => {
                (Some(*retry_at), Some(*give_up_at))
            }
            _ => (None, None),
        };
        let (reason, tries) = (gap.message.clone(), gap.launches);
        Some(Wait { reason, since: gap.since, tries, retry_at, give_up_at })
    }

    /// The environment's preview, whatever its state.
    pub fn preview_of(&self, environment: EnvironmentId) -> Option<&Preview> {
        self.previews.values().find(|preview| preview.environment == environment)
    }

    /// The jobs of `run`, in the order of the plan.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.run_jobs.get(&run).into_iter().flatten().filter_map(|job| self.jobs.get(job))
    }

    /// The newest completed job of the same build that ran natively and did not find all steps in the cache: of another
    /// platform in the same run, else of an earlier run.
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
        let earlier = self.runs.range(..job.run).rev();
        let earlier = earlier.filter(|(_, run)| run.project == project).map(|(id, _)| *id);
        let earlier = earlier.take(TWIN_RUNS_MAX);
        [job.run].into_iter().chain(earlier).find_map(|run| self.jobs_of(run).find(is_twin))
    }

    /// Whether an agent still exports the cache of `attempt`, and so has more to report.
    pub fn is_exporting(&self, attempt: Attempt) -> bool {
        let exports = |machine: &Machine| machine.exporting.map(|export| export.attempt);
        self.live_machines().any(|machine| exports(machine) == Some(attempt))
    }

    /// The machines that are not terminated.
    pub fn live_machines(&self) -> impl Iterator<Item = &Machine> {
        self.live.keys().filter_map(|machine| self.machines.get(machine))
    }
}

/// Copies the `changed` records between the maps, and removes those that `from` does not have.
fn copy<Id: Ord + Copy, T: Clone>(
    to: &mut BTreeMap<Id, T>,
    from: &BTreeMap<Id, T>,
    changed: &BTreeSet<Id>,
) {
    for id in changed {
        match from.get(id) {
            Some(record) => to.insert(*id, record.clone()),
            None => to.remove(id),
        };
    }
}

/// Shares [`Records`] and notifies of changes. Clones share them.
#[derive(Clone, Debug)]
pub struct SharedRecords {
    records: Arc<RwLock<Records>>,
    /// Counts the changes.
    version: watch::Sender<u64>,
}

impl SharedRecords {
    pub fn new(records: Records) -> Self {
        Self { records: Arc::new(RwLock::new(records)), version: watch::Sender::new(0) }
    }

    /// The guard must not be held across an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Records> {
        // If the writer panicked, the orchestrator is gone, and the rows that it left are whole.
        self.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the records and notifies the readers that wait.
    pub(super) fn write(&self, change: impl FnOnce(&mut Records)) {
        change(&mut self.records.write().unwrap_or_else(PoisonError::into_inner));
        self.version.send_modify(|version| *version += 1);
    }

    /// The previews that have changed since the last call. For one reader alone.
    pub(super) fn take_changed_previews(&self) -> BTreeSet<PreviewId> {
        if self.read().changed_previews.is_empty() {
            return BTreeSet::new();
        }
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut records.changed_previews)
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
