//! What happens to runs: requested, planned, cancelled, ended, forgotten.

use stagely_agent::protocol::FailureReason;

use super::{
    CancelReason, Effect, Environment, Job, JobState, MachineKind, PlannedJob, PlannedRun, Project,
    Run, RunState, State, Timestamp,
};
use crate::ids::{JobId, MachineId, RunId};

impl State {
    pub(super) fn run_requested(&mut self, run: Run, project: Project, environment: Environment) {
        if self.runs.contains_key(&run.id) {
            return;
        }
        self.put_project(project);
        self.put_environment(environment);
        self.emit(Effect::Plan { run: run.id });
        self.put_run(run);
    }

    pub(super) fn run_planned(
        &mut self,
        id: RunId,
        plan: Result<PlannedRun, String>,
        now: Timestamp,
    ) {
        self.settle(&Effect::Plan { run: id });
        // Cancelled meanwhile, or planned already before a crash.
        if !self.is_pending(id) {
            return;
        }
        match plan {
            Ok(plan) if !plan.jobs.is_empty() => self.start_building(id, plan, now),
            Ok(_) => self.fail_planning(id, "the plan has no jobs".to_owned(), now),
            Err(error) => self.fail_planning(id, error, now),
        }
    }

    pub(super) fn is_pending(&self, id: RunId) -> bool {
        self.runs.get(&id).is_some_and(|run| run.state == RunState::Pending)
    }

    fn start_building(&mut self, id: RunId, plan: PlannedRun, now: Timestamp) {
        self.change_run(id, |run| {
            run.state = RunState::Building;
            run.commit = Some(plan.commit);
            run.branch = plan.branch;
        });
        for planned in plan.jobs {
            self.put_job(queued(id, planned, now));
        }
    }

    pub(super) fn fail_planning(&mut self, id: RunId, error: String, now: Timestamp) {
        self.settle(&Effect::Plan { run: id });
        self.change_run(id, |run| {
            run.state = RunState::Failed { plan_error: Some(error) };
            run.ended_at = Some(now);
        });
    }

    pub(super) fn cancel_requested(&mut self, id: RunId, reason: CancelReason, now: Timestamp) {
        if !self.active_runs.contains(&id) {
            return;
        }
        self.settle(&Effect::Plan { run: id });
        self.change_run(id, |run| run.cancelling = Some(reason));
        for job in self.run_jobs.get(&id).cloned().unwrap_or_default() {
            self.cancel_job(job, now);
        }
        self.end_run_if_done(id, now);
    }

    fn cancel_job(&mut self, id: JobId, now: Timestamp) {
        let Some(job) = self.jobs.get(&id) else { return };
        if job.state.is_final() {
            return;
        }
        let machine = job.state.machine();
        self.change_job(id, |job| {
            job.state = JobState::Cancelled;
            job.ended_at = Some(now);
        });
        if let Some(machine) = machine {
            self.stop_work(machine, id);
        }
    }

    /// Ends the work on a job that has ended without its agent: by ending the machine, or, where it
    /// is its owner's, by asking the agent.
    pub(super) fn stop_work(&mut self, machine: MachineId, job: JobId) {
        match self.machines.get(&machine).map(|machine| machine.kind) {
            Some(MachineKind::Launched) => self.end_machine(machine),
            // It stays busy until its agent says that it has stopped.
            Some(MachineKind::Static) => self.emit(Effect::Cancel { machine, job }),
            None => {}
        }
    }

    /// Gives a job its final state, fails the jobs that wait for it in vain, and ends the run when it
    /// was the last.
    pub(super) fn finish_job(&mut self, id: JobId, end: JobState, now: Timestamp) {
        let completed = matches!(end, JobState::Completed { .. });
        let mut ended = None;
        self.change_job(id, |job| {
            job.state = end;
            job.ended_at = Some(now);
            ended = Some((job.run, job.name.clone()));
        });
        let Some((run, name)) = ended else { return };
        if !completed {
            self.fail_dependents(run, id, &name, now);
        }
        self.end_run_if_done(run, now);
    }

    fn fail_dependents(&mut self, run: RunId, needed: JobId, name: &str, now: Timestamp) {
        let waits = |job: &Job| job.needs.contains(&needed) && job.state.is_queued();
        let dependents: Vec<JobId> =
            self.jobs_of(run).filter(|job| waits(job)).map(|job| job.id).collect();
        for dependent in dependents {
            let reason = FailureReason::DependencyFailed { job: name.to_owned() };
            let message = reason.to_string();
            self.finish_job(dependent, JobState::Failed { reason, message, exit_code: None }, now);
        }
    }

    fn end_run_if_done(&mut self, id: RunId, now: Timestamp) {
        let Some(run) = self.runs.get(&id) else { return };
        if run.state.is_final() || !self.jobs_of(id).all(|job| job.state.is_final()) {
            return;
        }
        let all_completed =
            self.jobs_of(id).all(|job| matches!(job.state, JobState::Completed { .. }));
        let state = match run.cancelling {
            Some(reason) => RunState::Cancelled { reason },
            None if all_completed => RunState::Completed,
            None => RunState::Failed { plan_error: None },
        };
        self.change_run(id, |run| {
            run.state = state;
            run.ended_at = Some(now);
        });
    }

    pub(super) fn forgotten(&mut self, runs: &[RunId], machines: &[MachineId]) {
        for id in runs {
            if self.runs.get(id).is_some_and(|run| run.state.is_final()) {
                self.remove_run(*id);
            }
        }
        for id in machines {
            if self.machines.get(id).is_some_and(|machine| machine.state.is_terminated()) {
                self.remove_machine(*id);
            }
        }
    }

    /// The jobs of a run.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.run_jobs.get(&run).into_iter().flatten().filter_map(|job| self.jobs.get(job))
    }
}

fn queued(run: RunId, planned: PlannedJob, now: Timestamp) -> Job {
    Job {
        id: planned.id,
        run,
        name: planned.name,
        build: planned.build,
        kind: planned.kind,
        size: planned.size,
        needs: planned.needs,
        timeout: planned.timeout,
        state: JobState::Queued { attempt: 1 },
        attempt: 0,
        lost_attempts: Vec::new(),
        queued_at: now,
        started_at: None,
        ended_at: None,
        steps: Vec::new(),
        warnings: Vec::new(),
    }
}
