//! What happens to machines: launched, connected, out of contact, gone.

use stagely_agent::protocol::{Arch, FailureReason, SystemInfo};

use super::{
    Effect, JobState, LaunchRefusal, Machine, MachineKind, MachineSize, MachineState, State,
    Timestamp,
};
use crate::ids::{JobId, MachineId};

impl State {
    /// Nobody is connected to a core that has just started, and nobody is late either.
    pub(super) fn core_started(&mut self, now: Timestamp) {
        for id in self.live_machines.clone() {
            self.change_machine(id, |machine| {
                machine.connected = false;
                machine.contact_at = now;
            });
        }
    }

    pub(super) fn machine_launched(&mut self, id: MachineId) {
        self.settle(&Effect::Launch { machine: id });
        match self.machines.get(&id).map(|machine| machine.state) {
            Some(MachineState::Requested) => {
                self.change_machine(id, |machine| machine.state = MachineState::Booting);
            }
            // It was not wanted any more while it was being launched.
            Some(MachineState::Terminating) => self.emit_terminate(id),
            _ => {}
        }
    }

    pub(super) fn launch_refused(&mut self, id: MachineId, refusal: LaunchRefusal, now: Timestamp) {
        self.settle(&Effect::Launch { machine: id });
        let Some(machine) = self.machines.get(&id) else { return };
        let never_was = match machine.state {
            MachineState::Requested => true,
            // Only what was launched before is being ended by an effect.
            MachineState::Terminating => !self.is_outstanding(&Effect::Terminate { machine: id }),
            _ => false,
        };
        if !never_was {
            return;
        }
        let job = self.live_job_of(machine);
        self.change_machine(id, |machine| {
            machine.state = MachineState::Terminated;
            machine.terminated_at = Some(now);
        });
        let Some(job) = job else { return };
        let (reason, message) = match refusal {
            LaunchRefusal::NoCapacity(message) => (FailureReason::NoCapacity, message),
            LaunchRefusal::Permanent(message) => (FailureReason::Provider, message),
        };
        self.lose_attempt(job, reason, Some(message), now);
    }

    pub(super) fn machine_gone(&mut self, id: MachineId, now: Timestamp) {
        self.settle(&Effect::Terminate { machine: id });
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.kind == MachineKind::Static || machine.state.is_terminated() {
            return;
        }
        let job = self.live_job_of(machine);
        self.change_machine(id, |machine| {
            machine.state = MachineState::Terminated;
            machine.connected = false;
            machine.terminated_at = Some(now);
        });
        if let Some(job) = job {
            self.lose_attempt(job, FailureReason::MachineLost, None, now);
        }
    }

    pub(super) fn agent_connected(
        &mut self,
        id: MachineId,
        system_info: SystemInfo,
        holds: &[JobId],
        now: Timestamp,
    ) {
        let Some(machine) = self.machines.get(&id) else {
            self.emit(Effect::Disconnect { machine: id });
            return;
        };
        let state = machine.state;
        if state.is_terminated() {
            self.emit(Effect::Disconnect { machine: id });
            return;
        }
        self.change_machine(id, |machine| {
            machine.connected = true;
            machine.contact_at = now;
            machine.system_info = Some(system_info);
        });
        match state {
            MachineState::Requested | MachineState::Booting => self.first_contact(id, now),
            MachineState::Ready => self.stop_strays(id, holds),
            MachineState::Busy { job } => {
                self.resume(id, job, holds, now);
                self.stop_strays(id, holds);
            }
            MachineState::Terminating | MachineState::Terminated => {}
        }
    }

    /// A launched machine is there: it gets the job that it was launched for.
    fn first_contact(&mut self, id: MachineId, now: Timestamp) {
        match self.machines.get(&id).and_then(|machine| self.live_job_of(machine)) {
            Some(job) => self.give(id, job, now),
            None => self.end_machine(id),
        }
    }

    /// A machine with a job is back.
    fn resume(&mut self, id: MachineId, job: JobId, holds: &[JobId], now: Timestamp) {
        let is_held = holds.contains(&job);
        let state = self.jobs.get(&job).map(|job| &job.state);
        match state {
            Some(JobState::Provisioning { machine, .. }) if *machine == id => {
                // BUILD did not arrive, or not before the connection broke.
                if !is_held {
                    self.emit(Effect::Assign { machine: id, job });
                }
            }
            Some(JobState::Running { machine, .. }) if *machine == id => {
                if !is_held {
                    self.release(id);
                    self.lose_attempt(job, FailureReason::MachineLost, None, now);
                }
            }
            // It had ended without the agent.
            _ if !is_held => self.release(id),
            _ => {}
        }
    }

    /// Stops jobs that the machine holds and that are not its own any more. It gets no other until
    /// it says that it has stopped.
    fn stop_strays(&mut self, id: MachineId, holds: &[JobId]) {
        let Some(machine) = self.machines.get(&id) else { return };
        let own = self.live_job_of(machine);
        for job in holds.iter().copied().filter(|job| Some(*job) != own) {
            self.emit(Effect::Cancel { machine: id, job });
            self.change_machine(id, |machine| {
                if machine.state == MachineState::Ready {
                    machine.state = MachineState::Busy { job };
                }
            });
        }
    }

    pub(super) fn agent_disconnected(&mut self, id: MachineId, now: Timestamp) {
        if self.machines.get(&id).is_some_and(|machine| machine.connected) {
            self.change_machine(id, |machine| {
                machine.connected = false;
                machine.contact_at = now;
            });
        }
    }

    pub(super) fn static_machine_added(
        &mut self,
        id: MachineId,
        name: String,
        arch: Arch,
        now: Timestamp,
    ) {
        if self.machines.contains_key(&id) {
            return;
        }
        self.put_machine(Machine {
            id,
            kind: MachineKind::Static,
            name,
            arch,
            size: MachineSize::Medium,
            state: MachineState::Ready,
            requested_for: None,
            requested_at: now,
            lease_until: None,
            connected: false,
            contact_at: now,
            system_info: None,
            terminated_at: None,
        });
    }

    pub(super) fn static_machine_removed(&mut self, id: MachineId, now: Timestamp) {
        let Some(machine) = self.machines.get(&id) else { return };
        if machine.kind != MachineKind::Static || machine.state.is_terminated() {
            return;
        }
        let job = self.live_job_of(machine);
        self.change_machine(id, |machine| {
            machine.state = MachineState::Terminated;
            machine.connected = false;
            machine.terminated_at = Some(now);
        });
        self.emit(Effect::Disconnect { machine: id });
        if let Some(job) = job {
            self.lose_attempt(job, FailureReason::MachineLost, None, now);
        }
    }

    /// The job that a machine has, or was launched for, and that has not ended or gone elsewhere.
    pub(super) fn live_job_of(&self, machine: &Machine) -> Option<JobId> {
        let job = match machine.state {
            MachineState::Busy { job } => Some(job),
            _ => machine.requested_for,
        };
        job.filter(|job| self.machine_of(*job) == Some(machine.id))
    }

    /// Makes the machine busy with `job` and tells its agent.
    pub(super) fn give(&mut self, machine: MachineId, job: JobId, now: Timestamp) {
        self.change_machine(machine, |machine| {
            machine.state = MachineState::Busy { job };
            // The time to begin counts from here.
            machine.contact_at = now;
        });
        self.emit(Effect::Assign { machine, job });
    }

    /// The machine's work is over: one that was launched ends, one of its owner's is free again.
    pub(super) fn release(&mut self, id: MachineId) {
        match self.machines.get(&id).map(|machine| machine.kind) {
            Some(MachineKind::Launched) => self.end_machine(id),
            Some(MachineKind::Static) => {
                self.change_machine(id, |machine| machine.state = MachineState::Ready);
            }
            None => {}
        }
    }

    /// Ends a launched machine. One that is being launched ends as soon as the provider has answered:
    /// asked to end it now, it might say that there is no such machine, and then start it.
    pub(super) fn end_machine(&mut self, id: MachineId) {
        let Some(state) = self.machines.get(&id).map(|machine| machine.state) else { return };
        match state {
            MachineState::Terminating | MachineState::Terminated => return,
            MachineState::Requested => {}
            MachineState::Booting | MachineState::Ready | MachineState::Busy { .. } => {
                self.emit_terminate(id);
            }
        }
        self.change_machine(id, |machine| machine.state = MachineState::Terminating);
    }

    fn emit_terminate(&mut self, machine: MachineId) {
        let terminate = Effect::Terminate { machine };
        if !self.is_outstanding(&terminate) {
            self.emit(terminate);
        }
    }
}
