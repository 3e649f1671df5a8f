//! What happens when nothing happens: the limits that end waiting.
//!
//! Only live machines and runs that are being planned have limits, so looking at all of those is
//! cheap, and no timer can be left behind.

use stagely_agent::protocol::FailureReason;

use super::attempts::Failure;
use super::step::Turn;
use super::{Effect, JobState, Machine, MachineState, State, StopReason, Timestamp};
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
    /// Its agent was told to stop a job and has not answered.
    NoStop,
    /// Its time is over, whatever it does.
    Lease,
}

impl State {
    /// The next moment at which [`Event::Tick`](super::Event::Tick) changes something.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let planning = self.planning_limits().map(|(due, _)| due);
        let alarms = self.live_machines().filter_map(|machine| self.next_alarm(machine));
        planning.chain(alarms.map(|(due, _)| due)).min()
    }

    fn planning_limits(&self) -> impl Iterator<Item = (Timestamp, RunId)> {
        let planned = self.index.planning.iter().filter_map(|id| self.runs.get(id));
        planned.filter_map(|run| {
            let since = run.planning_since?;
            Some((self.due(since, since.after(self.limits.planning)), run.id))
        })
    }

    fn next_alarm(&self, machine: &Machine) -> Option<(Timestamp, Alarm)> {
        let limits = &self.limits;
        let (requested_at, contact_at) = (machine.requested_at, machine.contact_at);
        let first = match machine.state {
            MachineState::Requested | MachineState::Booting => {
                (self.due(requested_at, requested_at.after(limits.boot)), Alarm::Boot)
            }
            MachineState::Busy { .. } if !machine.connected => {
                (self.due(contact_at, contact_at.after(limits.reconnect_grace)), Alarm::Silence)
            }
            MachineState::Busy { job, attempt } => self.work_alarm(machine, job, attempt),
            MachineState::Ready | MachineState::Terminating | MachineState::Terminated => {
                return None;
            }
        };
        let lease = machine.lease_until.map(|lease| self.due(requested_at, lease));
        Some(lease.filter(|due| *due < first.0).map_or(first, |due| (due, Alarm::Lease)))
    }

    /// The limit of what a connected agent does.
    fn work_alarm(&self, machine: &Machine, id: JobId, attempt: u32) -> (Timestamp, Alarm) {
        let grace = self.limits.job_grace;
        let job = self.jobs.get(&id);
        let own = job.filter(|job| job.state.attempt_on(machine.id) == Some(attempt));
        match own.map(|job| (job, &job.state)) {
            Some((job, JobState::Running { deadline, .. })) => {
                let started_at = job.started_at.unwrap_or_default();
                (self.due(started_at, *deadline), Alarm::Overrun(id))
            }
            // The simplest agents never say `running`: they have the job's whole time.
            Some((job, _)) => {
                let assigned_at = job.assigned_at.unwrap_or(machine.contact_at);
                let due = self.due(assigned_at, assigned_at.after(job.timeout).after(grace));
                (due, Alarm::NoStart(id))
            }
            None => {
                let ended_at = job.and_then(|job| job.ended_at).unwrap_or_default();
                let since = machine.contact_at.max(ended_at);
                (self.due(since, since.after(grace)), Alarm::NoStop)
            }
        }
    }

    /// When the limit `at` of what goes on `since` then is reached. Time in which core was not there
    /// counts against nobody.
    fn due(&self, since: Timestamp, at: Timestamp) -> Timestamp {
        if since <= self.started_at { at.max(self.patient_until) } else { at }
    }
}

impl Turn<'_> {
    pub(super) fn ring_alarms(&mut self) {
        let now = self.now;
        let planning = self.state.planning_limits().filter(|(due, _)| *due <= now);
        let planning: Vec<RunId> = planning.map(|(_, run)| run).collect();
        for run in planning {
            self.give_up_planning(run);
        }
        let alarms = self.state.live_machines().filter_map(|machine| {
            let (due, alarm) = self.state.next_alarm(machine)?;
            (due <= now).then_some((machine.id, alarm))
        });
        let alarms: Vec<(MachineId, Alarm)> = alarms.collect();
        for (machine, alarm) in alarms {
            self.ring(machine, alarm);
        }
    }

    fn ring(&mut self, machine: MachineId, alarm: Alarm) {
        match alarm {
            Alarm::Boot => {
                let message = "the machine's agent did not connect in time";
                self.lose_job(machine, Failure::new(FailureReason::BootTimeout, message));
                self.release(machine);
            }
            Alarm::Silence => {
                let message = "the machine's agent was out of contact for too long";
                self.lose_job(machine, Failure::machine_lost(message));
                // What it still runs it says at its next HELLO.
                self.state.change_machine(machine, |machine| machine.stopping.clear());
                self.release(machine);
            }
            Alarm::NoStart(job) => {
                let message = "the machine's agent did not begin the job";
                self.fail_attempt(job, Failure::machine_lost(message));
                self.give_up_agent(machine);
            }
            Alarm::Overrun(job) => self.end_overrun(machine, job),
            Alarm::NoStop => self.give_up_agent(machine),
            Alarm::Lease => {
                self.lose_job(machine, Failure::machine_lost("the machine's lease is over"));
                self.release(machine);
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
    fn give_up_agent(&mut self, machine: MachineId) {
        if !self.is_static(machine) {
            return self.release(machine);
        }
        self.disconnect(machine);
        self.emit(Effect::Disconnect { machine });
    }
}
