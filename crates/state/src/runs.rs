//! The life of a run, from its request to its end.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use stagely_protocol::FailureReason;

use super::step::Step;
use super::{
    Approval, CancelReason, Cost, Effect, Environment, Job, JobKind, JobState, PlanFailure,
    PlannedJob, PlannedRun, Project, Run, RunEvent, RunState, State, Timestamp,
};
use crate::ids::{JobId, RunId};

impl Step<'_> {
    pub(super) fn request_run(&mut self, run: Run, project: Project, environment: Environment) {
        if self.state.runs.contains_key(&run.id) {
            return;
        }
        self.state.insert_new_project(project);
        self.start_run(run, environment);
    }

    /// Stores a new run of a known project, and cancels the runs that it supersedes.
    pub(super) fn start_run(&mut self, mut run: Run, environment: Environment) {
        let id = run.id;
        if let Some(by) = self.state.approver(&run) {
            run = run.with_approval(Approval::Given { by });
        }
        self.open_environment(&run, environment);
        self.state.insert_run(run);
        self.supersede(id);
    }

    /// Begins the planning of waiting runs, up to `planned_at_once`.
    pub(super) fn begin_plannings(&mut self) {
        let now = self.now;
        while self.state.index.planning.len() < self.state.limits.planned_at_once
            && let Some(run) = self.state.next_to_plan()
        {
            if !self.move_run(run, RunEvent::PlanningBegan { at: now }) {
                return;
            }
            self.emit(Effect::Plan { run });
        }
    }

    /// Defers the planning of a run until GitHub may answer again, so that other runs are planned.
    pub(super) fn defer_planning(&mut self, id: RunId, until: Timestamp) {
        if self.state.index.planning.contains(&id) {
            self.state.remove_from_outbox(&Effect::Plan { run: id });
            self.move_run(id, RunEvent::PlanningDeferred { until });
        }
    }

    /// Resumes the deferred plannings that are due.
    pub(super) fn resume_plannings(&mut self) {
        let due = self.state.index.deferred.iter().take_while(|(after, _)| *after <= self.now);
        let due: Vec<_> = due.copied().collect();
        for (_, run) in due {
            self.move_run(run, RunEvent::PlanningResumed);
        }
    }

    pub(super) fn plan_run(&mut self, id: RunId, plan: Result<PlannedRun, PlanFailure>) {
        // The run may be cancelled or planned already.
        if !self.state.index.planning.contains(&id) {
            return;
        }
        match plan {
            Ok(plan) => self.queue_jobs(id, plan),
            Err(error) => self.end_run(id, RunEvent::PlanFailed(error)),
        }
    }

    fn queue_jobs(&mut self, id: RunId, plan: PlannedRun) {
        self.state.remove_from_outbox(&Effect::Plan { run: id });
        let Some(run) = self.state.runs.get(&id) else { return };
        let (environment, reuses) = (run.environment, run.reuses);
        let (trigger, fresh) = (run.trigger, run.with_fresh_data);
        if !self.move_run(id, RunEvent::Planned) {
            return;
        }
        self.state.change_run(id, |run| {
            run.commit = Some(plan.commit);
            run.branch = plan.branch;
            run.skipped = plan.skipped;
        });
        let mut jobs = plan.jobs;
        jobs.retain(|job| !self.state.is_unwanted(id, job));
        let planned: BTreeSet<JobId> = jobs.iter().map(|job| job.id).collect();
        // The tests of a preview that is not wanted.
        jobs.retain(|job| {
            !job.kind.is_test() || job.needs.iter().all(|need| planned.contains(need))
        });
        let pushes = !jobs.is_empty() && trigger.builds();
        self.state.change_environment(environment, |environment| {
            environment.cache_refs.extend(plan.own_cache_refs);
            environment.has_images |= pushes && environment.pull_request.is_some();
        });
        for planned in jobs {
            let mut job = Job::queued(planned, id, self.now);
            if let JobKind::Deploy { deployment, .. } = &mut job.kind {
                deployment.fresh |= fresh;
            }
            self.state.insert_job(job);
        }
        if let Some(earlier) = reuses {
            self.reuse_completed(id, earlier);
        }
        self.settle_run(id);
    }

    /// Cancels the run and all its open jobs at once. Its machines may take longer to stop.
    pub(super) fn cancel_run(&mut self, id: RunId, reason: CancelReason) {
        if self.state.runs.get(&id).is_none_or(|run| run.state.is_final()) {
            return;
        }
        let open = self.state.jobs_of(id).filter(|job| !job.state.is_final());
        let open: Vec<JobId> = open.map(|job| job.id).collect();
        for job in open {
            self.cancel_job(job);
        }
        self.end_exports_of(id);
        self.end_run(id, RunEvent::Cancelled { reason });
    }

    /// Ends the run if all its jobs have ended and no reference is yet to be moved to an image of it.
    pub(super) fn settle_run(&mut self, id: RunId) {
        if let Some(phase) = self.state.runs.get(&id).and_then(|run| self.next_phase(run)) {
            self.move_run(id, phase);
        }
        let run = self.state.runs.get(&id).filter(|run| !run.state.is_final());
        if let Some(end) = run.and_then(|run| self.end_of(run)) {
            self.end_run(id, end);
        }
    }

    /// The phase that the run enters because only its deployment and its tests are left, or only its tests.
    fn next_phase(&self, run: &Run) -> Option<RunEvent> {
        let open = || self.state.jobs_of(run.id).filter(|job| !job.state.is_final());
        let is_late = |job: &Job| job.kind.is_deploy() || job.kind.is_test();
        let is_open_deployment = |id: &JobId| {
            let needed = self.state.jobs.get(id);
            needed.is_some_and(|needed| needed.kind.is_deploy() && !needed.state.is_final())
        };
        let mut all = open().peekable();
        all.peek()?;
        // A job whose need has failed fails as well, in the same step.
        let has_built = all.all(|job| {
            is_late(job) && job.missing_needs(&self.state.jobs).all(|id| is_open_deployment(&id))
        });
        let is_deploying = open().any(|job| job.kind.is_deploy());
        match (&run.state, is_deploying) {
            (RunState::Building, true) if has_built => Some(RunEvent::BuildsCompleted),
            (RunState::Building | RunState::Deploying, false) if has_built => {
                Some(RunEvent::DeploymentEnded)
            }
            _ => None,
        }
    }

    fn end_of(&self, run: &Run) -> Option<RunEvent> {
        let jobs = || self.state.jobs_of(run.id);
        if !jobs().all(|job| job.state.is_final()) || self.waits_for_tag(run) {
            return None;
        }
        // A deployment that nobody wants any more is no failure of the run, and neither are its tests.
        let is_dropped = |job: &Job| {
            (job.kind.is_deploy() || job.kind.is_test()) && job.state == JobState::Cancelled
        };
        let all_completed =
            jobs().all(|job| matches!(job.state, JobState::Completed { .. }) || is_dropped(job));
        Some(if all_completed { RunEvent::JobsCompleted } else { RunEvent::JobFailed })
    }

    fn end_run(&mut self, id: RunId, end: RunEvent) {
        self.state.remove_from_outbox(&Effect::Plan { run: id });
        if self.move_run(id, end) {
            let now = self.now;
            self.state.change_run(id, |run| run.ended_at = Some(now));
        }
    }

    pub(super) fn give_up_planning(&mut self, id: RunId) {
        let limit_seconds = self.state.limits.planning.as_secs();
        let limit = Duration::from_secs(limit_seconds);
        let message = format!(
            "stagely.yaml could not be read within {limit:?}: the repository did not answer, or is \
             too large to fetch in that time"
        );
        let reason = FailureReason::Timeout { limit_seconds };
        self.end_run(id, RunEvent::PlanFailed(PlanFailure { reason, message }));
    }
}

impl State {
    /// The next run to plan: of the highest priority, and of the project with the fewest runs being planned, the
    /// oldest. So a project whose server does not answer does not block the others.
    fn next_to_plan(&self) -> Option<RunId> {
        let project_of = |id: &RunId| self.runs.get(id).map(|run| run.project);
        let planned: Vec<_> = self.index.planning.iter().map(project_of).collect();
        let unplanned = self.index.unplanned.iter();
        let next = unplanned.min_by_key(|id| {
            let priority = self.runs.get(id).map(|run| self.limits.priority_of(run.trigger));
            let project = project_of(id);
            (Reverse(priority), planned.iter().filter(|planned| **planned == project).count())
        });
        next.copied()
    }
}

impl Job {
    /// The job, queued for its first attempt.
    pub fn queued(planned: PlannedJob, run: RunId, now: Timestamp) -> Self {
        Self {
            id: planned.id,
            run,
            name: planned.name,
            build: planned.build,
            variant: planned.variant,
            kind: planned.kind,
            tag: planned.tag,
            size: planned.size,
            needs: planned.needs,
            timeout: planned.timeout,
            state: JobState::Queued { attempt: 1 },
            attempt: 0,
            lost_attempts: Vec::new(),
            restarted_attempts: Vec::new(),
            missing_capacity: None,
            queued_at: now,
            assigned_at: None,
            started_at: None,
            ended_at: None,
            steps: Vec::new(),
            warnings: Vec::new(),
            cache_miss: None,
            emulated: false,
            took_over: None,
            reused_from: None,
            cost: Cost::ZERO,
            results: None,
            artifacts: None,
        }
    }
}
