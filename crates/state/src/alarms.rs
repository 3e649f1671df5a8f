//! What happens when nothing happens: the limits that end waiting.
//!
//! Only live machines and runs that are being planned have limits, so looking at all of those is
//! cheap, and no timer can be left behind.

use stagely_protocol::FailureReason;

use super::attempts::Failure;
use super::merges::ABSENT_BUILDER_GRACE;
use super::step::Step;
use super::{
    Attempt, Effect, JobState, Machine, MachineState, RunState, State, StopReason, Timestamp,
};
use crate::ids::{JobId, MachineId, RunId};

/// A limit of a machine's life.
#[derive(Clone, Copy)]
enum Alarm {
    /// Its agent did not connect in time.
    Boot,
    /// Its agent has been out of contact for too long.
    Silence,
    /// Its agent was given a job and has not said anything about it.
    NoStart(JobId),
    /// Its agent works on a job for longer than it may.
    Overrun(JobId),
    /// Its agent left before it began the merge that it was given.
    Absence(JobId),
    /// Its agent was told to stop a job and has not answered.
    NoStop,
    /// Its agent exports a cache for longer than it may.
    Export,
    /// The cloud takes it back, and what it does should have ended by now.
    TakenBack,
    /// Its time is over, whatever it does.
    Lease,
}

impl State {
    /// The next moment at which [`Event::Tick`](super::Event::Tick) changes something.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let planning = self.planning_limits().map(|(due, _)| due);
        let alarms = self.live_machines().filter_map(|machine| self.next_alarm(machine));
        let deferred = self.index.deferred.first().map(|(after, _)| *after);
        let postponed = self.index.postponed.first().map(|(until, _)| *until);
        planning.chain(alarms.map(|(due, _)| due)).chain(deferred).chain(postponed).min()
    }

    fn planning_limits(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        let planned = self.index.planning.iter().filter_map(|id| self.runs.get(id));
        planned.filter_map(|run| {
            let RunState::Planning { since } = run.state else { return None };
            Some((self.due(since, since.after(self.limits.planning)), run.id))
        })
    }

    fn due_alarms(&self, now: Timestamp) -> Vec<(MachineId, Alarm)> {
        let alarms = self.live_machines().filter_map(|machine| {
            let (due, alarm) = self.next_alarm(machine)?;
            (due <= now).then_some((machine.id, alarm))
        });
        alarms.collect()
    }

    fn next_alarm(&self, machine: &Machine) -> Option<(Timestamp, Alarm)> {
        let (requested_at, boot) = (machine.requested_at, self.limits.boot);
        let first = match machine.state {
            MachineState::Requested | MachineState::Booting => {
                Some((self.due(requested_at, requested_at.after(boot)), Alarm::Boot))
            }
            MachineState::Busy { attempt } if !machine.connected => {
                Some(self.absence_alarm(machine, attempt.job))
            }
            MachineState::Busy { attempt } => self.work_alarm(machine, attempt),
            MachineState::Ready | MachineState::Terminating | MachineState::Terminated => {
                return None;
            }
        };
        let lease = machine.lease_until.map(|at| (self.due(requested_at, at), Alarm::Lease));
        let taken_back = self.taken_back_at(machine);
        let taken_back = taken_back.map(|at| (self.due(requested_at, at), Alarm::TakenBack));
        let alarms = [first, self.export_alarm(machine), taken_back, lease];
        alarms.into_iter().flatten().min_by_key(|(due, _)| *due)
    }

    /// The limit of an agent that is out of contact.
    fn absence_alarm(&self, machine: &Machine, id: JobId) -> (Timestamp, Alarm) {
        let left_at = machine.contact_at;
        let job = self.jobs.get(&id).filter(|job| job.state.attempt_on(machine.id).is_some());
        if job.is_some_and(|job| job.may_leave_builder(self.limits.max_attempts)) {
            let due = self.due(left_at, left_at.after(ABSENT_BUILDER_GRACE));
            return (due, Alarm::Absence(id));
        }
        (self.due(left_at, left_at.after(self.limits.reconnect_grace)), Alarm::Silence)
    }

    /// The limit of what a connected agent does.
    fn work_alarm(&self, machine: &Machine, attempt: Attempt) -> Option<(Timestamp, Alarm)> {
        let id = attempt.job;
        let grace = self.limits.job_grace;
        let job = self.jobs.get(&id);
        let own = job.filter(|job| job.state.attempt_on(machine.id) == Some(attempt.number));
        match own.map(|job| (job, &job.state)) {
            Some((job, JobState::Running { deadline, .. })) => {
                let started_at = job.started_at.unwrap_or_default();
                Some((self.due(started_at, *deadline), Alarm::Overrun(id)))
            }
            // The simplest agents never say `running`: they have the job's whole time.
            Some((job, _)) => {
                let assigned_at = job.assigned_at.unwrap_or(machine.contact_at);
                let due = self.due(assigned_at, assigned_at.after(job.timeout).after(grace));
                Some((due, Alarm::NoStart(id)))
            }
            None if machine.exporting.is_some() && machine.stopping.is_empty() => None,
            None => {
                let ended_at = job.and_then(|job| job.ended_at).unwrap_or_default();
                let told_at = machine.exporting.map(|export| export.until);
                let told_at = told_at.filter(|_| machine.is_told_to_end_export());
                let since = machine.contact_at.max(ended_at).max(told_at.unwrap_or_default());
                Some((self.due(since, since.after(grace)), Alarm::NoStop))
            }
        }
    }

    fn export_alarm(&self, machine: &Machine) -> Option<(Timestamp, Alarm)> {
        let export = machine.exporting.filter(|_| !machine.is_told_to_end_export())?;
        let began_at = self.jobs.get(&export.attempt.job).and_then(|job| job.ended_at);
        Some((self.due(began_at.unwrap_or_default(), export.until), Alarm::Export))
    }

    /// When the limit `at` of what goes on `since` then is reached. Time in which core was not there
    /// counts against nobody.
    fn due(&self, since: Timestamp, at: Timestamp) -> Timestamp {
        if since <= self.started_at { at.max(self.patient_until) } else { at }
    }
}

impl Step<'_> {
    pub(super) fn ring_alarms(&mut self) {
        let now = self.now;
        self.resume_plannings();
        self.resume_postponed();
        let planning = self.state.planning_limits().filter(|(due, _)| *due <= now);
        let planning: Vec<RunId> = planning.map(|(_, run)| run).collect();
        for run in planning {
            self.give_up_planning(run);
        }
        // An export and the work beside it each have a limit of their own, so once is not always enough.
        while let due @ [_, ..] = &self.state.due_alarms(now)[..] {
            for (machine, alarm) in due {
                self.ring(*machine, *alarm);
            }
        }
    }

    fn ring(&mut self, machine: MachineId, alarm: Alarm) {
        match alarm {
            Alarm::Boot => {
                let message = "the machine's agent did not connect in time";
                self.lose_job(machine, Failure::new(FailureReason::BootTimeout, message));
                self.terminate(machine);
            }
            Alarm::Silence => {
                let message = "the machine's agent was out of contact for too long";
                let failure = self.loss_of(machine, message);
                self.lose_job(machine, failure);
                self.write_off(machine);
            }
            Alarm::Absence(job) => {
                let message = "the machine's agent left before it began the job";
                let failure = self.loss_of(machine, message);
                self.fail_attempt(job, failure);
                self.release(machine);
            }
            Alarm::NoStart(job) => {
                let message = "the machine's agent did not begin the job";
                let failure = self.loss_of(machine, message);
                self.fail_attempt(job, failure);
                self.give_up_agent(machine);
            }
            Alarm::Overrun(job) => self.end_overrun(machine, job),
            Alarm::NoStop => self.give_up_agent(machine),
            Alarm::Export => self.give_up_export(machine),
            Alarm::TakenBack => self.take_back(machine),
            Alarm::Lease => {
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
        self.fail_attempt(id, Failure::new(reason, message));
    }

    /// Ends the session of an agent that does not do what it is told. A registered machine stays busy
    /// until it says HELLO again, or is out of contact for too long.
    pub(super) fn give_up_agent(&mut self, machine: MachineId) {
        if !self.is_static(machine) {
            return self.terminate(machine);
        }
        self.disconnect(machine);
        self.emit(Effect::Disconnect { machine });
    }
}
