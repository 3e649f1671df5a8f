//! The timeouts of machines and of plannings: when each is due, and what it does.
//!
//! They are computed from the records at each tick. Only live machines and runs that are being planned have one, so
//! this is cheap, and no timer outlives its record. The previews, most of which sleep, have an index of theirs.

use std::time::Duration;

use stagely_protocol::{FailureReason, TEST_REPORT_SECONDS_MAX};

use super::merges::ABSENT_BUILDER_GRACE;
use super::step::Step;
use super::{
    Attempt, Effect, ExportState, Fleet, Job, JobFailure, JobKind, JobState, Limits, Machine,
    MachineState, RunState, State, StopReason, Timestamp,
};
use crate::ids::{JobId, MachineId, RunId};

#[derive(Clone, Copy)]
enum Timeout {
    /// The agent did not connect after the launch.
    Boot,
    /// The agent did not reconnect within `reconnect_grace`.
    Reconnect,
    /// The agent disconnected before it began a merge, and did not reconnect at once.
    BuilderReconnect(JobId),
    /// The agent did not begin the job that was assigned to it.
    Start(JobId),
    /// The agent runs the job past its deadline.
    Run(JobId),
    /// The agent did not confirm that it stopped a job.
    Stop,
    /// The export of the layer cache takes longer than `cache_export`.
    Export,
    /// The cloud has reclaimed the machine, and its job has not ended.
    TakenBack,
    Lease,
}

/// An agent may take this long to start again what served before a deployment that failed or was stopped.
pub const DEPLOYMENT_RETURN: Duration = Duration::from_mins(3);

/// An agent may take this long to read the results of a test and to upload its artifacts, after the command has ended.
pub const TEST_RESULTS: Duration = Duration::from_secs(TEST_REPORT_SECONDS_MAX);

impl Limits {
    /// Core ends a job itself this long after the job's own time limit, or after its agent was asked to stop it.
    pub const fn grace_of(&self, job: &Job) -> Duration {
        match job.kind {
            JobKind::Deploy { .. } => self.deployment_grace(),
            JobKind::Test { .. } => self.job_grace.saturating_add(TEST_RESULTS),
            JobKind::Build { .. } | JobKind::Merge { .. } => self.job_grace,
        }
    }

    /// The grace of a deployment, whose agent may have to go back to what served before.
    const fn deployment_grace(&self) -> Duration {
        self.job_grace.saturating_add(DEPLOYMENT_RETURN)
    }
}

impl State {
    /// The next moment at which [`Event::Tick`](super::Event::Tick) changes something.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let planning = self.planning_limits().map(|(due, _)| due);
        let timeouts = self.live_machines().filter_map(|machine| self.next_timeout(machine));
        let deferred = self.index.deferred.first().map(|(after, _)| *after);
        let postponed = self.index.postponed.first().map(|(until, _)| *until);
        let previews = self.index.due_previews.first().map(|(due, _)| *due);
        let machines = timeouts.map(|(due, _)| due);
        let others = [deferred, postponed, previews, self.next_eviction(), self.next_budget()];
        let others = others.into_iter().flatten();
        planning.chain(machines).chain(others).min()
    }

    fn planning_limits(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        let planned = self.index.planning.iter().filter_map(|id| self.runs.get(id));
        planned.filter_map(|run| {
            let RunState::Planning { since } = run.state else { return None };
            Some((self.due(since, since.after(self.limits.planning)), run.id))
        })
    }

    fn due_timeouts(&self, now: Timestamp) -> Vec<(MachineId, Timeout)> {
        let timeouts = self.live_machines().filter_map(|machine| {
            let (due, timeout) = self.next_timeout(machine)?;
            (due <= now).then_some((machine.id, timeout))
        });
        timeouts.collect()
    }

    fn next_timeout(&self, machine: &Machine) -> Option<(Timestamp, Timeout)> {
        let (requested_at, boot) = (machine.requested_at, self.limits.boot);
        let first = match machine.state {
            MachineState::Requested | MachineState::Booting => {
                Some((self.due(requested_at, requested_at.after(boot)), Timeout::Boot))
            }
            MachineState::Busy { attempt } if !machine.connected => {
                Some(self.reconnect_timeout(machine, attempt.job))
            }
            MachineState::Busy { attempt } => self.work_timeout(machine, attempt),
            MachineState::Ready if machine.serves.is_some() => {
                (!machine.connected).then(|| self.serving_timeout(machine))
            }
            MachineState::Ready | MachineState::Terminating | MachineState::Terminated => {
                return None;
            }
        };
        let lease = machine.lease_until.map(|at| (self.due(requested_at, at), Timeout::Lease));
        let taken_back = self.taken_back_at(machine);
        let taken_back = taken_back.map(|at| (self.due(requested_at, at), Timeout::TakenBack));
        let timeouts = [first, self.export_timeout(machine), taken_back, lease];
        timeouts.into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    /// The timeout of a busy machine whose agent is disconnected. One that serves a preview stays for as long as if it were
    /// idle, because its containers go on.
    fn reconnect_timeout(&self, machine: &Machine, id: JobId) -> (Timestamp, Timeout) {
        let left_at = machine.contact_at;
        if machine.serves.is_some() {
            return self.serving_timeout(machine);
        }
        let job = self.jobs.get(&id).filter(|job| job.state.attempt_on(machine.id).is_some());
        if job.is_some_and(|job| job.may_leave_builder(&self.limits)) {
            let due = self.due(left_at, left_at.after(ABSENT_BUILDER_GRACE));
            return (due, Timeout::BuilderReconnect(id));
        }
        (self.due(left_at, left_at.after(self.limits.reconnect_grace)), Timeout::Reconnect)
    }

    /// The timeout of a machine that serves a preview and whose agent is disconnected.
    fn serving_timeout(&self, machine: &Machine) -> (Timestamp, Timeout) {
        let left_at = machine.contact_at;
        (self.due(left_at, left_at.after(self.limits.previews.reconnect)), Timeout::Reconnect)
    }

    /// The timeout of a busy machine whose agent is connected.
    fn work_timeout(&self, machine: &Machine, attempt: Attempt) -> Option<(Timestamp, Timeout)> {
        let id = attempt.job;
        let job = self.jobs.get(&id);
        let own = job.filter(|job| job.state.attempt_on(machine.id) == Some(attempt.number));
        match own.map(|job| (job, &job.state)) {
            Some((job, JobState::Running { deadline, .. })) => {
                let started_at = job.started_at.expect("a job runs from its start on");
                Some((self.due(started_at, *deadline), Timeout::Run(id)))
            }
            // Simple agents never report `running`, so the job's whole time limit applies.
            Some((job, _)) => {
                let assigned_at = job.assigned_at.unwrap_or(machine.contact_at);
                let grace = self.limits.grace_of(job);
                let due = self.due(assigned_at, assigned_at.after(job.timeout).after(grace));
                Some((due, Timeout::Start(id)))
            }
            None if machine.exporting.is_some() && !machine.has_to_stop() => None,
            None => {
                let ended_at = job.and_then(|job| job.ended_at);
                let requested_at = match machine.exporting.map(|export| export.state) {
                    Some(ExportState::Stopping { since }) => Some(since),
                    Some(ExportState::Running { .. }) | None => None,
                };
                let later = [ended_at, requested_at, machine.stop_requested_at];
                let since = later.into_iter().flatten().fold(machine.contact_at, Timestamp::max);
                let grace = match machine.fleet {
                    Fleet::Preview => self.limits.deployment_grace(),
                    Fleet::Builder | Fleet::Tester => self.limits.job_grace,
                };
                Some((self.due(since, since.after(grace)), Timeout::Stop))
            }
        }
    }

    fn export_timeout(&self, machine: &Machine) -> Option<(Timestamp, Timeout)> {
        let export = machine.exporting?;
        let ExportState::Running { deadline } = export.state else { return None };
        let job_ended_at = self.jobs.get(&export.attempt.job).and_then(|job| job.ended_at);
        // The job's record may have been deleted. Its export is younger than its machine.
        let began_at = job_ended_at.unwrap_or(machine.requested_at);
        Some((self.due(began_at, deadline), Timeout::Export))
    }

    /// When a timeout that began at `since` and ends at `at` is due. Core grants `startup_grace_until` to what began
    /// before it started, because nobody could report meanwhile.
    pub(super) fn due(&self, since: Timestamp, at: Timestamp) -> Timestamp {
        if since <= self.started_at { at.max(self.startup_grace_until) } else { at }
    }
}

impl Step<'_> {
    pub(super) fn fire_timeouts(&mut self) {
        let now = self.now;
        self.resume_plannings();
        self.resume_postponed();
        let planning = self.state.planning_limits().filter(|(due, _)| *due <= now);
        let planning: Vec<RunId> = planning.map(|(_, run)| run).collect();
        for run in planning {
            self.give_up_planning(run);
        }
        // An export and the work beside it have timeouts of their own, and a preview whose deployment is given up may be
        // idle for long, so one pass is not enough. A machine whose lease is over is not kept for an archive.
        loop {
            let due = self.state.due_timeouts(now);
            for (machine, timeout) in &due {
                self.fire(*machine, *timeout);
            }
            if due.is_empty() && !self.fire_preview_timeouts() {
                return;
            }
        }
    }

    fn fire(&mut self, machine: MachineId, timeout: Timeout) {
        match timeout {
            Timeout::Boot => {
                let message = "the machine's agent did not connect in time";
                self.lose_job(machine, JobFailure::new(FailureReason::BootTimeout, message));
                self.terminate(machine);
            }
            Timeout::Reconnect => {
                let message = "the machine's agent was out of contact for too long";
                let failure = self.loss_of(machine, message);
                self.lose_job(machine, failure);
                self.lose_preview(machine);
                self.mark_lost(machine);
            }
            Timeout::BuilderReconnect(job) => {
                let message = "the machine's agent left before it began the job";
                let failure = self.loss_of(machine, message);
                self.fail_attempt(job, failure);
                self.release(machine);
            }
            Timeout::Start(job) => {
                let message = "the machine's agent did not begin the job";
                let failure = self.loss_of(machine, message);
                self.fail_attempt(job, failure);
                self.give_up_agent(machine);
            }
            Timeout::Run(job) => self.end_overrun(machine, job),
            Timeout::Stop => self.give_up_agent(machine),
            Timeout::Export => self.give_up_export(machine),
            Timeout::TakenBack => self.take_back(machine),
            Timeout::Lease => {
                let failure = self.loss_of(machine, "the machine's lease is over");
                self.lose_job(machine, failure);
                self.terminate(machine);
            }
        }
    }

    fn end_overrun(&mut self, machine: MachineId, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let reason = FailureReason::Timeout { limit_seconds: job.timeout.as_secs() };
        let message = format!("{reason}, and its agent did not end it");
        self.stop_work(machine, id, StopReason::Overrun);
        self.fail_attempt(id, JobFailure::new(reason, message));
    }

    /// Gives up an agent that does not follow orders. A launched machine is terminated. A registered machine stays busy
    /// until its agent sends HELLO again, or until the reconnect timeout.
    pub(super) fn give_up_agent(&mut self, machine: MachineId) {
        if !self.is_registered(machine) {
            return self.terminate(machine);
        }
        self.disconnect(machine);
        self.emit(Effect::Disconnect { machine });
    }
}
