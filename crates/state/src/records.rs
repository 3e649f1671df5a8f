//! The records of the state, and the only code that can change one.
//!
//! Each change marks its record for [`State::take_changes`] and updates the index. The rows are private to this file,
//! so no other code can forget either.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Deref;

use stagely_protocol::Arch;

use super::schedule::{JobClass, Served};
use super::{
    Cost, DeliveryId, Effect, EffectId, EndedRun, Environment, Fleet, Job, JobState, Limits,
    Machine, Preview, Project, ProviderName, Run, RunState, Timestamp,
};
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId, SessionId};

/// Records by their ids. Only [`State::step`] changes them.
#[derive(Debug)]
pub struct Table<K, V> {
    rows: BTreeMap<K, V>,
    changed: BTreeSet<K>,
}

impl<K: Copy + Ord, V> Table<K, V> {
    const fn new(rows: BTreeMap<K, V>) -> Self {
        Self { rows, changed: BTreeSet::new() }
    }

    fn insert(&mut self, key: K, row: V) {
        self.rows.insert(key, row);
        self.changed.insert(key);
    }

    fn insert_new(&mut self, key: K, row: V) {
        if let Entry::Vacant(entry) = self.rows.entry(key) {
            entry.insert(row);
            self.changed.insert(key);
        }
    }

    fn change(&mut self, key: K, change: impl FnOnce(&mut V)) {
        if let Some(row) = self.rows.get_mut(&key) {
            change(row);
            self.changed.insert(key);
        }
    }

    fn remove(&mut self, key: K) -> Option<V> {
        let row = self.rows.remove(&key)?;
        self.changed.insert(key);
        Some(row)
    }
}

impl<K, V> Deref for Table<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

/// All records of one moment, as the store holds them. [`State`] explains the tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub projects: BTreeMap<ProjectId, Project>,
    pub environments: BTreeMap<EnvironmentId, Environment>,
    pub runs: BTreeMap<RunId, Run>,
    pub jobs: BTreeMap<JobId, Job>,
    pub machines: BTreeMap<MachineId, Machine>,
    pub previews: BTreeMap<PreviewId, Preview>,
    pub deliveries: BTreeMap<DeliveryId, Timestamp>,
    pub outbox: BTreeMap<EffectId, Effect>,
    /// How many runs of each environment have left the state. No environment without one.
    pub ended_runs: BTreeMap<EnvironmentId, u64>,
}

/// The ids of the records that were changed, added or removed. A removed record is not in the state any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub projects: BTreeSet<ProjectId>,
    pub environments: BTreeSet<EnvironmentId>,
    pub runs: BTreeSet<RunId>,
    pub jobs: BTreeSet<JobId>,
    pub machines: BTreeSet<MachineId>,
    pub previews: BTreeSet<PreviewId>,
    pub deliveries: BTreeSet<DeliveryId>,
    pub outbox: BTreeSet<EffectId>,
}

/// Makes the cost of a step independent of the number of ended records. It is computed from the records, never stored.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Runs that wait to be planned.
    pub(super) unplanned: BTreeSet<RunId>,
    /// Runs whose `stagely.yaml` is being read.
    pub(super) planning: BTreeSet<RunId>,
    /// The runs of each environment in the state. No environment without one.
    pub(super) environment_runs: BTreeMap<EnvironmentId, BTreeSet<RunId>>,
    /// How many runs of each environment have left the state. No environment without one.
    left_runs: BTreeMap<EnvironmentId, u64>,
    /// Runs in a final state.
    pub(super) ended_runs: BTreeSet<RunId>,
    /// The effects of each environment in the outbox, which are many while GitHub does not answer. No environment
    /// without one.
    pub(super) environment_effects: BTreeMap<EnvironmentId, BTreeSet<EffectId>>,
    /// Deferred runs, by the time of their next planning.
    pub(super) deferred: BTreeSet<(Timestamp, RunId)>,
    /// The jobs of each run. The order of their ids is that of the plan.
    pub(super) run_jobs: BTreeMap<RunId, BTreeSet<JobId>>,
    /// Queued jobs that only wait for a machine, the oldest first. No class without one.
    pub(super) ready: BTreeMap<(ProjectId, JobClass), BTreeSet<(Timestamp, JobId)>>,
    /// Jobs that wait for capacity, by the time of their next attempt.
    pub(super) postponed: BTreeSet<(Timestamp, JobId)>,
    /// Queued jobs that wait for other jobs, the oldest first. No class without one.
    pub(super) blocked: BTreeMap<JobClass, BTreeSet<(Timestamp, JobId)>>,
    /// Queued deploy jobs whose images are there, the oldest first.
    pub(super) deployments: BTreeSet<(Timestamp, JobId)>,
    /// Queued tests whose images are there, and that wait for their preview or its machine, the oldest first.
    pub(super) tests: BTreeSet<(Timestamp, JobId)>,
    /// The open tests of each environment's preview that wait for no other job. No environment without one.
    pub(super) preview_tests: BTreeMap<EnvironmentId, BTreeSet<JobId>>,
    pub(super) environment_previews: BTreeMap<EnvironmentId, PreviewId>,
    /// Previews to which a machine may belong.
    pub(super) active_previews: BTreeSet<PreviewId>,
    /// When something happens to each preview without an event.
    pub(super) due_previews: BTreeSet<(Timestamp, PreviewId)>,
    /// The entry of each preview in `due_previews`.
    preview_dues: BTreeMap<PreviewId, Timestamp>,
    /// Machines that are not terminated.
    pub(super) live_machines: BTreeSet<MachineId>,
    pub(super) terminated_machines: BTreeSet<MachineId>,
    /// Closed environments with cache refs or images that are to be deleted.
    pub(super) closing: BTreeSet<EnvironmentId>,
    /// Runs that this step has changed, or whose jobs it has changed.
    pub(super) changed_runs: BTreeSet<RunId>,
    /// Environments that are to be reported even if their runs have not changed.
    pub(super) environments_to_report: BTreeSet<EnvironmentId>,
}

/// All records, and what a step needs beside them.
#[derive(Debug)]
pub struct State {
    pub limits: Limits,
    pub projects: Table<ProjectId, Project>,
    pub environments: Table<EnvironmentId, Environment>,
    /// The open runs, and the ended ones that something refers to.
    pub runs: Table<RunId, Run>,
    /// The jobs of these runs.
    pub jobs: Table<JobId, Job>,
    /// The live machines, and the terminated ones that something refers to.
    pub machines: Table<MachineId, Machine>,
    /// The preview of each environment that has had one.
    pub previews: Table<PreviewId, Preview>,
    /// When each delivery of GitHub came first. Deliveries that GitHub does not repeat any more are forgotten.
    pub deliveries: Table<DeliveryId, Timestamp>,
    /// Effects without an outcome yet.
    pub outbox: Table<EffectId, Effect>,
    pub(super) index: Index,
    /// The number of each project's last assignment in each fleet. Assignments are counted over all projects from the
    /// start of core; the count is not stored.
    pub(super) served: BTreeMap<Fleet, Served>,
    /// The newest session of each machine's agent with this core.
    pub(super) sessions: BTreeMap<MachineId, SessionId>,
    /// When this core started.
    pub(super) started_at: Timestamp,
    /// What began before `started_at` does not time out before this moment, because agents could not report while
    /// core was down.
    pub(super) startup_grace_until: Timestamp,
    /// The moment of the last step. Not stored.
    pub(super) stepped_at: Timestamp,
    /// How many anomalies there were since core started.
    pub anomalies: u64,
    /// The arches that each provider has, as far as it has answered since core started.
    offered: BTreeMap<ProviderName, BTreeSet<Arch>>,
    next_effect: EffectId,
}

impl State {
    /// Makes the state of a new installation.
    pub fn new(limits: Limits) -> Self {
        Self::load(limits, Snapshot::default())
    }

    /// Makes the state from stored records. [`Event::CoreStarted`](super::Event::CoreStarted) must
    /// be its first event.
    pub fn load(limits: Limits, stored: Snapshot) -> Self {
        let last_effect = stored.outbox.last_key_value().map_or(0, |(id, _)| id.0);
        let mut state = Self {
            limits,
            projects: Table::new(stored.projects),
            environments: Table::new(stored.environments),
            runs: Table::new(stored.runs),
            jobs: Table::new(stored.jobs),
            machines: Table::new(stored.machines),
            previews: Table::new(stored.previews),
            deliveries: Table::new(stored.deliveries),
            outbox: Table::new(stored.outbox),
            index: Index { left_runs: stored.ended_runs, ..Index::default() },
            served: BTreeMap::new(),
            sessions: BTreeMap::new(),
            started_at: Timestamp::default(),
            startup_grace_until: Timestamp::default(),
            stepped_at: Timestamp::default(),
            anomalies: 0,
            offered: BTreeMap::new(),
            next_effect: EffectId(last_effect + 1),
        };
        for environment in state.environments.rows.values() {
            state.index.note_environment(environment);
        }
        for run in state.runs.rows.values() {
            state.index.note_run(run);
        }
        for (id, effect) in &state.outbox.rows {
            state.index.note_effect(*id, effect);
        }
        for preview in state.previews.rows.values() {
            state.index.environment_previews.insert(preview.environment, preview.id);
        }
        for job in state.jobs.rows.values() {
            state.index.note_job(job, &state.jobs, &state.runs, &state.previews);
        }
        for machine in state.machines.rows.values() {
            state.index.note_machine(machine);
        }
        state.note_previews();
        state
    }

    /// Copies all records: [`load`](Self::load) makes the same state of them.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            projects: self.projects.rows.clone(),
            environments: self.environments.rows.clone(),
            runs: self.runs.rows.clone(),
            jobs: self.jobs.rows.clone(),
            machines: self.machines.rows.clone(),
            previews: self.previews.rows.clone(),
            deliveries: self.deliveries.rows.clone(),
            outbox: self.outbox.rows.clone(),
            ended_runs: self.index.left_runs.clone(),
        }
    }

    /// Returns the records that changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        Changes {
            projects: mem::take(&mut self.projects.changed),
            environments: mem::take(&mut self.environments.changed),
            runs: mem::take(&mut self.runs.changed),
            jobs: mem::take(&mut self.jobs.changed),
            machines: mem::take(&mut self.machines.changed),
            previews: mem::take(&mut self.previews.changed),
            deliveries: mem::take(&mut self.deliveries.changed),
            outbox: mem::take(&mut self.outbox.changed),
        }
    }

    /// The jobs of `run`, in the order of the plan.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        let ids = self.index.run_jobs.get(&run).into_iter().flatten();
        ids.filter_map(|id| self.jobs.get(id))
    }

    /// The configured provider of `fleet` for each arch, except for arches that the provider lacks.
    pub fn launchable(&self, fleet: Fleet) -> impl Iterator<Item = (Arch, ProviderName)> {
        let configured = match fleet {
            Fleet::Builder => &self.limits.launchable,
            Fleet::Preview => &self.limits.launchable_previews,
            Fleet::Tester => &self.limits.launchable_testers,
        };
        let configured = configured.iter().map(|(arch, provider)| (*arch, *provider));
        configured.filter(|(arch, provider)| {
            self.offered.get(provider).is_none_or(|arches| arches.contains(arch))
        })
    }

    /// Notes which arches a provider has. A provider without any is misconfigured. It is still asked to launch, because
    /// its error says what to change.
    pub(super) fn note_offered(&mut self, provider: ProviderName, arches: BTreeSet<Arch>) {
        if arches.is_empty() {
            self.offered.remove(&provider);
        } else {
            self.offered.insert(provider, arches);
        }
    }

    /// The machines that are not terminated.
    pub fn live_machines(&self) -> impl Iterator<Item = &Machine> {
        self.index.live_machines.iter().filter_map(|id| self.machines.get(id))
    }

    pub(super) fn is_in_outbox(&self, effect: &Effect) -> bool {
        self.find_effect(effect).is_some()
    }

    pub(super) fn insert_new_project(&mut self, project: Project) {
        self.projects.insert_new(project.id, project);
    }

    pub(super) fn change_project(&mut self, id: ProjectId, change: impl FnOnce(&mut Project)) {
        self.projects.change(id, change);
    }

    /// Notes a delivery. Returns false if it came before.
    pub(super) fn note_delivery(&mut self, delivery: DeliveryId, now: Timestamp) -> bool {
        let is_new = !self.deliveries.contains_key(&delivery);
        self.deliveries.insert_new(delivery, now);
        is_new
    }

    pub(super) fn forget_deliveries(&mut self, deliveries: &[DeliveryId]) {
        for delivery in deliveries {
            self.deliveries.remove(*delivery);
        }
    }

    pub(super) fn insert_new_environment(&mut self, environment: Environment) {
        let id = environment.id;
        self.environments.insert_new(id, environment);
        self.change_environment(id, |_| {});
    }

    pub(super) fn change_environment(
        &mut self,
        id: EnvironmentId,
        change: impl FnOnce(&mut Environment),
    ) {
        let index = &mut self.index;
        self.environments.change(id, |environment| {
            change(environment);
            index.note_environment(environment);
        });
    }

    pub(super) fn insert_run(&mut self, run: Run) {
        self.index.note_run(&run);
        self.index.changed_runs.insert(run.id);
        self.runs.insert(run.id, run);
    }

    pub(super) fn change_run(&mut self, id: RunId, change: impl FnOnce(&mut Run)) {
        let index = &mut self.index;
        self.runs.change(id, |run| {
            index.forget_deferred(run);
            change(run);
            index.note_run(run);
            index.changed_runs.insert(run.id);
        });
    }

    pub(super) fn insert_job(&mut self, job: Job) {
        let (id, run) = (job.id, job.run);
        self.jobs.insert(id, job);
        self.index.changed_runs.insert(run);
        self.note_job(id);
    }

    pub(super) fn change_job(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        let index = &mut self.index;
        self.jobs.change(id, |job| {
            index.forget_postponed(job);
            change(job);
            index.changed_runs.insert(job.run);
        });
        self.note_job(id);
    }

    /// Adds to the account of a job, which is not worth a report.
    pub(super) fn add_cost(&mut self, id: JobId, cost: Cost) {
        self.jobs.change(id, |job| job.cost += cost);
    }

    /// Updates the index for a job, and for the jobs that need it.
    fn note_job(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let run = job.run;
        self.index.note_job(job, &self.jobs, &self.runs, &self.previews);
        let mut has_tests = job.kind.is_test();
        if matches!(job.state, JobState::Completed { .. }) {
            let of_run = self.index.run_jobs.get(&job.run).into_iter().flatten();
            let jobs = of_run.filter_map(|other| self.jobs.get(other));
            let dependents: Vec<&Job> = jobs.filter(|other| other.needs.contains(&id)).collect();
            for dependent in dependents {
                has_tests |= dependent.kind.is_test();
                self.index.note_job(dependent, &self.jobs, &self.runs, &self.previews);
            }
        }
        // A preview does not sleep while it is tested.
        let environment = self.runs.get(&run).map(|run| run.environment);
        let preview = environment.and_then(|id| self.index.environment_previews.get(&id)).copied();
        if let Some(preview) = preview.filter(|_| has_tests) {
            self.note_due(preview);
        }
    }

    pub(super) fn insert_machine(&mut self, machine: Machine) {
        self.index.note_machine(&machine);
        self.machines.insert(machine.id, machine);
    }

    pub(super) fn change_machine(&mut self, id: MachineId, change: impl FnOnce(&mut Machine)) {
        let index = &mut self.index;
        self.machines.change(id, |machine| {
            change(machine);
            index.note_machine(machine);
        });
        // A preview sleeps before the lease of its machine ends.
        if let Some(preview) = self.machines.get(&id).and_then(|machine| machine.serves) {
            self.note_preview(preview);
        }
    }

    pub(super) fn insert_preview(&mut self, preview: Preview) {
        let id = preview.id;
        self.index.environment_previews.insert(preview.environment, id);
        self.previews.insert(id, preview);
        self.note_preview(id);
    }

    /// Changes the preview, and has its environment reported.
    pub(super) fn change_preview(&mut self, id: PreviewId, change: impl FnOnce(&mut Preview)) {
        let index = &mut self.index;
        self.previews.change(id, |preview| {
            change(preview);
            index.environments_to_report.insert(preview.environment);
        });
        self.note_preview(id);
    }

    /// Notes a request for the preview, which is not worth a report.
    pub(super) fn note_activity(&mut self, id: PreviewId, at: Timestamp) {
        self.previews.change(id, |preview| preview.active_at = preview.active_at.max(at));
        self.note_preview(id);
    }

    /// Updates the index for all previews.
    pub(super) fn note_previews(&mut self) {
        let all: Vec<PreviewId> = self.previews.rows.keys().copied().collect();
        for id in all {
            self.note_preview(id);
        }
    }

    /// Updates the index for a preview that was changed or removed, or whose machine was changed.
    fn note_preview(&mut self, id: PreviewId) {
        let preview = self.previews.get(&id);
        let is_active = preview.is_some_and(|preview| preview.state.has_machine());
        let environment = preview.map(|preview| preview.environment);
        set(&mut self.index.active_previews, id, is_active);
        let tests = environment.and_then(|environment| self.index.preview_tests.get(&environment));
        let tests: Vec<JobId> = tests.into_iter().flatten().copied().collect();
        for job in tests.into_iter().filter_map(|job| self.jobs.get(&job)) {
            self.index.note_job(job, &self.jobs, &self.runs, &self.previews);
        }
        self.note_due(id);
    }

    /// Updates when something happens to the preview without an event.
    fn note_due(&mut self, id: PreviewId) {
        let due = self.previews.get(&id).and_then(|preview| self.preview_due(preview));
        let before = match due {
            Some(due) => self.index.preview_dues.insert(id, due),
            None => self.index.preview_dues.remove(&id),
        };
        if before != due {
            self.index.due_previews.extend(due.map(|due| (due, id)));
            if let Some(before) = before {
                self.index.due_previews.remove(&(before, id));
            }
        }
    }

    pub(super) fn add_to_outbox(&mut self, effect: Effect) {
        self.index.note_effect(self.next_effect, &effect);
        self.outbox.insert(self.next_effect, effect);
        self.next_effect.0 += 1;
    }

    /// Removes `effect` from the outbox. Returns false if it is not there.
    pub(super) fn remove_from_outbox(&mut self, effect: &Effect) -> bool {
        let Some(id) = self.find_effect(effect) else { return false };
        self.outbox.remove(id);
        if let Some(environment) = effect.environment() {
            self.index.forget_effect(environment, id);
        }
        true
    }

    fn find_effect(&self, effect: &Effect) -> Option<EffectId> {
        let is_match = |id: &&EffectId| self.outbox.get(id) == Some(effect);
        match effect.environment() {
            Some(environment) => {
                self.index.environment_effects.get(&environment)?.iter().find(is_match).copied()
            }
            None => self.outbox.keys().find(is_match).copied(),
        }
    }

    /// The environment's effects in the outbox.
    pub(super) fn effects_of(&self, environment: EnvironmentId) -> impl Iterator<Item = &Effect> {
        let ids = self.index.environment_effects.get(&environment).into_iter().flatten();
        ids.filter_map(|id| self.outbox.get(id))
    }

    /// Whether the environment has a run, in the state or not.
    pub(super) fn has_runs(&self, environment: EnvironmentId) -> bool {
        let index = &self.index;
        index.environment_runs.contains_key(&environment)
            || index.left_runs.contains_key(&environment)
    }

    /// Deletes a run in a final state, and its jobs.
    pub(super) fn forget_run(&mut self, id: RunId) {
        if !self.index.ended_runs.contains(&id) {
            return;
        }
        if let Some(EndedRun { run, .. }) = self.remove_run(id) {
            self.change_environment(run.environment, |environment| {
                environment.report.run.take_if(|reported| *reported == id);
            });
        }
    }

    /// Removes a run that has not been deleted, and its jobs.
    pub(super) fn take_run(&mut self, id: RunId) -> Option<EndedRun> {
        let ended = self.remove_run(id)?;
        *self.index.left_runs.entry(ended.run.environment).or_default() += 1;
        Some(ended)
    }

    /// Inserts a run that [`take_run`](Self::take_run) has removed.
    pub(super) fn insert_recalled(&mut self, run: Run, jobs: Vec<Job>) {
        if let Entry::Occupied(mut left) = self.index.left_runs.entry(run.environment) {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
        self.index.note_run(&run);
        self.runs.insert(run.id, run);
        for job in jobs {
            self.index.note_job(&job, &self.jobs, &self.runs, &self.previews);
            self.jobs.insert(job.id, job);
        }
    }

    fn remove_run(&mut self, id: RunId) -> Option<EndedRun> {
        let run = self.runs.remove(id)?;
        self.index.forget_run(&run);
        let jobs = self.index.run_jobs.remove(&id).unwrap_or_default();
        let jobs = jobs.into_iter().filter_map(|job| self.jobs.remove(job)).collect();
        Some(EndedRun { run, jobs })
    }

    pub(super) fn remove_environment(&mut self, id: EnvironmentId) {
        self.environments.remove(id);
        if let Some(preview) = self.index.environment_previews.remove(&id) {
            self.previews.remove(preview);
            self.note_preview(preview);
        }
    }

    /// Deletes a machine that is terminated.
    pub(super) fn forget_machine(&mut self, id: MachineId) {
        if self.index.terminated_machines.contains(&id) {
            self.take_machine(id);
            self.sessions.remove(&id);
        }
    }

    pub(super) fn take_machine(&mut self, id: MachineId) -> Option<Machine> {
        self.index.terminated_machines.remove(&id);
        self.machines.remove(id)
    }
}

impl Index {
    fn note_environment(&mut self, environment: &Environment) {
        let is_closing = environment.state.is_closed() && environment.has_leftovers();
        set(&mut self.closing, environment.id, is_closing);
    }

    fn note_run(&mut self, run: &Run) {
        self.environment_runs.entry(run.environment).or_default().insert(run.id);
        set(&mut self.ended_runs, run.id, run.state.is_final());
        set(&mut self.unplanned, run.id, run.state == RunState::Pending);
        set(&mut self.planning, run.id, matches!(run.state, RunState::Planning { .. }));
        if let RunState::Deferred { until } = run.state {
            self.deferred.insert((until, run.id));
        }
    }

    /// Removes the old entry before the run changes.
    fn forget_deferred(&mut self, run: &Run) {
        if let RunState::Deferred { until } = run.state {
            self.deferred.remove(&(until, run.id));
        }
    }

    fn forget_run(&mut self, run: &Run) {
        self.ended_runs.remove(&run.id);
        if let Entry::Occupied(mut runs) = self.environment_runs.entry(run.environment) {
            runs.get_mut().remove(&run.id);
            if runs.get().is_empty() {
                runs.remove();
            }
        }
    }

    fn note_effect(&mut self, id: EffectId, effect: &Effect) {
        if let Some(environment) = effect.environment() {
            self.environment_effects.entry(environment).or_default().insert(id);
        }
    }

    fn forget_effect(&mut self, environment: EnvironmentId, id: EffectId) {
        if let Entry::Occupied(mut effects) = self.environment_effects.entry(environment) {
            effects.get_mut().remove(&id);
            if effects.get().is_empty() {
                effects.remove();
            }
        }
    }

    fn note_job(
        &mut self,
        job: &Job,
        jobs: &Table<JobId, Job>,
        runs: &Table<RunId, Run>,
        previews: &Table<PreviewId, Preview>,
    ) {
        self.run_jobs.entry(job.run).or_default().insert(job.id);
        let Some(run) = runs.get(&job.run) else { return };
        if let JobState::Postponed { until, .. } = job.state {
            self.postponed.insert((until, job.id));
        }
        let is_queued = matches!(job.state, JobState::Queued { .. });
        let is_ready = job.missing_needs(jobs).next().is_none();
        // Its machine depends on the preview, so it has a queue of its own.
        if job.kind.is_deploy() {
            let position = (job.queued_at, job.id);
            return set(&mut self.deployments, position, is_queued && is_ready);
        }
        let preview = self.environment_previews.get(&run.environment);
        let waits_for_preview =
            job.waits_for_preview(preview.and_then(|preview| previews.get(preview)));
        let class = JobClass::of(job, run);
        // A further attempt has the position of the first, so it goes before younger jobs.
        let position = (job.queued_at, job.id);
        if job.kind.test().is_some_and(|test| test.preview_of.is_some()) {
            let is_open = is_ready && !job.state.is_final();
            set_below(&mut self.preview_tests, run.environment, job.id, is_open);
            set(&mut self.tests, position, is_queued && is_ready && waits_for_preview);
        }
        let needs_machine = is_queued && is_ready && !waits_for_preview;
        set_below(&mut self.ready, (run.project, class), position, needs_machine);
        set_below(&mut self.blocked, class, position, is_queued && !is_ready);
    }

    /// Removes the old entry before the job changes.
    fn forget_postponed(&mut self, job: &Job) {
        if let JobState::Postponed { until, .. } = job.state {
            self.postponed.remove(&(until, job.id));
        }
    }

    fn note_machine(&mut self, machine: &Machine) {
        let is_terminated = machine.state.is_terminated();
        set(&mut self.live_machines, machine.id, !is_terminated);
        set(&mut self.terminated_machines, machine.id, is_terminated);
    }
}

fn set<T: Ord>(members: &mut BTreeSet<T>, member: T, is_member: bool) {
    if is_member {
        members.insert(member);
    } else {
        members.remove(&member);
    }
}

/// As [`set`], among the members of one group. No group stays without a member.
fn set_below<K, T>(groups: &mut BTreeMap<K, BTreeSet<T>>, group: K, member: T, is_member: bool)
where
    K: Copy + Ord,
    T: Ord,
{
    let members = groups.entry(group).or_default();
    set(members, member, is_member);
    if members.is_empty() {
        groups.remove(&group);
    }
}
