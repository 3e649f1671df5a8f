//! What happens when nothing else does: limits that pass.

use stagely_agent::protocol::FailureReason;

use super::{Effect, JobState, Machine, MachineKind, MachineState, RunState, State, Timestamp};
use crate::ids::{JobId, MachineId};

/// Which limit of a machine passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// Its agent has not connected.
    Boot,
    /// Its agent has been out of contact.
    Contact,
    /// Its job has run too long, and its agent did not say so.
    Job(JobId),
    /// Its agent was told to stop a job, and did not say that it has.
    Stop,
    /// Its life is over.
    Lease,
}

impl State {
    /// The next moment at which [`Event::Tick`](super::Event::Tick) changes something.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let runs = self.active_runs.iter().filter_map(|run| self.planning_deadline(*run));
        let machines = self.limits_of_machines().map(|(at, _, _)| at);
        runs.chain(machines).min()
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        let late: Vec<_> = self
            .active_runs
            .iter()
            .copied()
            .filter(|run| self.planning_deadline(*run).is_some_and(|deadline| deadline <= now))
            .collect();
        for run in late {
            let error = "stagely.yaml could not be read in time; see core's log".to_owned();
            self.fail_planning(run, error, now);
        }
        let passed: Vec<_> = self
            .limits_of_machines()
            .filter(|(at, _, _)| *at <= now)
            .map(|(_, machine, limit)| (machine, limit))
            .collect();
        for (machine, limit) in passed {
            self.limit_passed(machine, limit, now);
        }
    }

    fn planning_deadline(&self, run: crate::ids::RunId) -> Option<Timestamp> {
        let run = self.runs.get(&run)?;
        (run.state == RunState::Pending).then(|| run.created_at.after(self.limits.planning))
    }

    /// The limit of each machine that passes first.
    fn limits_of_machines(&self) -> impl Iterator<Item = (Timestamp, MachineId, Limit)> {
        self.live_machines.iter().filter_map(|id| {
            let machine = self.machines.get(id)?;
            let (at, limit) = self.limit_of(machine)?;
            Some((at, *id, limit))
        })
    }

    fn limit_of(&self, machine: &Machine) -> Option<(Timestamp, Limit)> {
        if machine.state == MachineState::Terminating {
            return None;
        }
        let lease = machine.lease_until.map(|until| (until, Limit::Lease));
        let other = match machine.state {
            MachineState::Requested | MachineState::Booting => {
                Some((machine.requested_at.after(self.limits.boot), Limit::Boot))
            }
            MachineState::Busy { job } => Some(self.limit_of_work(machine, job)),
            _ => None,
        };
        // Of two that pass at once the one that says more about the job comes first.
        [other, lease].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn limit_of_work(&self, machine: &Machine, job: JobId) -> (Timestamp, Limit) {
        let contact = (machine.contact_at.after(self.limits.reconnect_grace), Limit::Contact);
        match self.jobs.get(&job).map(|job| (&job.state, job.ended_at)) {
            Some((JobState::Running { deadline, machine: current, .. }, _))
                if *current == machine.id =>
            {
                let limit = (*deadline, Limit::Job(job));
                if machine.connected || limit.0 < contact.0 { limit } else { contact }
            }
            Some((JobState::Provisioning { machine: current, .. }, _))
                if *current == machine.id =>
            {
                // An agent that has the job and does not begin is no better than one that is away.
                let begin = (machine.contact_at.after(self.limits.boot), Limit::Contact);
                if machine.connected { begin } else { contact }
            }
            _ if !machine.connected => contact,
            ended => {
                let ended_at = ended.and_then(|(_, ended_at)| ended_at).unwrap_or_default();
                (ended_at.max(machine.contact_at).after(self.limits.job_grace), Limit::Stop)
            }
        }
    }

    fn limit_passed(&mut self, id: MachineId, limit: Limit, now: Timestamp) {
        match limit {
            Limit::Boot => self.lose_machine(id, FailureReason::BootTimeout, now),
            Limit::Contact | Limit::Lease => {
                self.lose_machine(id, FailureReason::MachineLost, now);
            }
            Limit::Job(job) => {
                let limit_seconds = self.jobs.get(&job).map_or(0, |job| job.timeout.as_secs());
                let reason = FailureReason::Timeout { limit_seconds };
                let message = format!("{reason}, and its agent did not end it");
                self.stop_work(id, job);
                self.finish_job(job, JobState::Failed { reason, message, exit_code: None }, now);
            }
            Limit::Stop => self.drop_session(id, now),
        }
    }

    /// Gives a machine up, and its job to another.
    fn lose_machine(&mut self, id: MachineId, reason: FailureReason, now: Timestamp) {
        let Some(machine) = self.machines.get(&id) else { return };
        let (kind, connected) = (machine.kind, machine.connected);
        let job = self.live_job_of(machine);
        self.release(id);
        if kind == MachineKind::Static && connected {
            self.drop_session(id, now);
        }
        if let Some(job) = job {
            self.lose_attempt(job, reason, None, now);
        }
    }

    /// Ends a session whose agent does not do what it is told. Its next HELLO says what it holds.
    fn drop_session(&mut self, id: MachineId, now: Timestamp) {
        self.emit(Effect::Disconnect { machine: id });
        self.change_machine(id, |machine| {
            machine.state = MachineState::Ready;
            machine.connected = false;
            machine.contact_at = now;
        });
    }
}
