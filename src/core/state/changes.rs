//! Every change of a record goes through here, so that none is forgotten when they are stored.

use std::collections::BTreeSet;

use super::{Effect, EffectId, Environment, Job, Machine, Project, Run, State};
use crate::ids::{EnvironmentId, JobId, MachineId, ProjectId, RunId};

/// Which records have changed, or are gone, since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Projects.
    pub projects: BTreeSet<ProjectId>,
    /// Environments.
    pub environments: BTreeSet<EnvironmentId>,
    /// Runs.
    pub runs: BTreeSet<RunId>,
    /// Jobs.
    pub jobs: BTreeSet<JobId>,
    /// Machines.
    pub machines: BTreeSet<MachineId>,
    /// Effects of the outbox.
    pub outbox: BTreeSet<EffectId>,
}

impl State {
    /// Takes the keys of what has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn put_project(&mut self, project: Project) {
        if self.projects.get(&project.id) != Some(&project) {
            self.changes.projects.insert(project.id);
            self.projects.insert(project.id, project);
        }
    }

    pub(super) fn put_environment(&mut self, environment: Environment) {
        if self.environments.get(&environment.id) != Some(&environment) {
            self.changes.environments.insert(environment.id);
            self.environments.insert(environment.id, environment);
        }
    }

    pub(super) fn put_run(&mut self, run: Run) {
        self.changes.runs.insert(run.id);
        self.index_run(&run);
        self.runs.insert(run.id, run);
    }

    pub(super) fn put_job(&mut self, job: Job) {
        self.changes.jobs.insert(job.id);
        self.index_job(&job);
        self.jobs.insert(job.id, job);
    }

    pub(super) fn put_machine(&mut self, machine: Machine) {
        self.changes.machines.insert(machine.id);
        self.index_machine(&machine);
        self.machines.insert(machine.id, machine);
    }

    /// Changes a run that is there.
    pub(super) fn change_run(&mut self, id: RunId, change: impl FnOnce(&mut Run)) {
        if let Some(mut run) = self.runs.remove(&id) {
            change(&mut run);
            self.put_run(run);
        }
    }

    /// Changes a job that is there.
    pub(super) fn change_job(&mut self, id: JobId, change: impl FnOnce(&mut Job)) {
        if let Some(mut job) = self.jobs.remove(&id) {
            change(&mut job);
            self.put_job(job);
        }
    }

    /// Changes a machine that is there.
    pub(super) fn change_machine(&mut self, id: MachineId, change: impl FnOnce(&mut Machine)) {
        if let Some(mut machine) = self.machines.remove(&id) {
            change(&mut machine);
            self.put_machine(machine);
        }
    }

    /// Removes the records of an ended run and its jobs.
    pub(super) fn remove_run(&mut self, id: RunId) {
        for job in self.run_jobs.remove(&id).unwrap_or_default() {
            self.jobs.remove(&job);
            self.changes.jobs.insert(job);
        }
        self.runs.remove(&id);
        self.changes.runs.insert(id);
    }

    /// Removes the record of a machine that is gone.
    pub(super) fn remove_machine(&mut self, id: MachineId) {
        self.machines.remove(&id);
        self.changes.machines.insert(id);
    }

    /// Lets `effect` go out after this step, and keeps it in the outbox where it is one to be kept.
    pub(super) fn emit(&mut self, effect: Effect) {
        if effect.is_kept() {
            let id = EffectId(self.outbox.last_key_value().map_or(0, |(last, _)| last.0) + 1);
            self.changes.outbox.insert(id);
            self.outbox.insert(id, effect.clone());
        }
        self.effects.push(effect);
    }

    /// Takes `effect` out of the outbox: its outcome has come, or is not wanted any more.
    pub(super) fn settle(&mut self, effect: &Effect) {
        let ids: Vec<EffectId> =
            self.outbox.iter().filter(|(_, kept)| *kept == effect).map(|(id, _)| *id).collect();
        for id in ids {
            self.outbox.remove(&id);
            self.changes.outbox.insert(id);
        }
    }

    pub(super) fn is_outstanding(&self, effect: &Effect) -> bool {
        self.outbox.values().any(|kept| kept == effect)
    }

    pub(super) fn index_run(&mut self, run: &Run) {
        if run.state.is_final() {
            self.active_runs.remove(&run.id);
        } else {
            self.active_runs.insert(run.id);
        }
    }

    pub(super) fn index_job(&mut self, job: &Job) {
        let jobs = self.run_jobs.entry(job.run).or_default();
        if !jobs.contains(&job.id) {
            jobs.push(job.id);
        }
        if job.state.is_queued() {
            self.queued.insert(job.id);
        } else {
            self.queued.remove(&job.id);
        }
    }

    pub(super) fn index_machine(&mut self, machine: &Machine) {
        if machine.state.is_terminated() {
            self.live_machines.remove(&machine.id);
        } else {
            self.live_machines.insert(machine.id);
        }
    }
}
