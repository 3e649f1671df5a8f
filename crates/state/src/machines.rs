//! The life of a machine, from its launch or registration to its end.

use std::collections::BTreeSet;

use stagely_protocol::{Arch, DeployProblem, FailureReason, SystemInfo};

use super::step::Step;
use super::{
    Attempt, Effect, ExportEvent, Fleet, JobFailure, JobState, LaunchFailure, Machine,
    MachineEvent, MachineKind, MachineState, Placement, StopReason, Timestamp,
};
use crate::ids::{JobId, MachineId, SessionId};

impl Step<'_> {
    /// Marks all agents as disconnected, and grants them time to reconnect.
    pub(super) fn start_core(&mut self) {
        let (now, limits) = (self.now, &self.state.limits);
        self.state.started_at = now;
        self.state.startup_grace_until = now.after(limits.reconnect_grace).after(limits.job_grace);
        let connected = self.state.live_machines().filter(|machine| machine.connected);
        let connected: Vec<MachineId> = connected.map(|machine| machine.id).collect();
        for machine in connected {
            self.disconnect(machine);
        }
        // No agent could report an archive meanwhile.
        self.state.note_previews();
        self.retry_reports();
    }

    pub(super) fn machine_launched(&mut self, id: MachineId, placement: Option<Placement>) {
        self.state.remove_from_outbox(&Effect::Launch { machine: id });
        self.begin_bill(id, placement.as_ref());
        if let Some(placement) = placement {
            self.state.change_machine(id, |machine| machine.placement = Some(placement));
        }
        let Some(machine) = self.state.machines.get(&id) else { return };
        match machine.state {
            MachineState::Requested => {
                let now = self.now;
                self.move_machine(id, MachineEvent::Launched);
                self.state.change_machine(id, |machine| machine.contact_at = now);
            }
            // Its job ended before the provider answered, or it was recorded as terminated by mistake.
            MachineState::Terminating | MachineState::Terminated => {
                self.terminate(id);
                self.invalidate_cleanup(id);
            }
            // Its agent connected before the provider answered.
            MachineState::Booting | MachineState::Ready | MachineState::Busy { .. } => {}
        }
    }

    pub(super) fn launch_failed(&mut self, id: MachineId, failure: LaunchFailure) {
        if !self.state.remove_from_outbox(&Effect::Launch { machine: id }) {
            return;
        }
        let Some(machine) = self.state.machines.get(&id) else { return };
        // If the agent has sent HELLO, an earlier try has succeeded.
        let may_exist = machine.system_info.is_some() || failure.may_have_started();
        match machine.state {
            MachineState::Requested | MachineState::Terminating => {
                self.lose_job(id, failure.into());
                if may_exist {
                    self.begin_bill(id, None);
                    self.terminate(id);
                } else {
                    self.end_machine(id);
                }
            }
            MachineState::Booting
            | MachineState::Ready
            | MachineState::Busy { .. }
            | MachineState::Terminated => {}
        }
    }

    pub(super) fn ended_at_launch(&mut self, id: MachineId, failure: LaunchFailure) {
        let has_agent = |machine: &Machine| machine.system_info.is_some();
        if self.state.machines.get(&id).is_none_or(has_agent) {
            return self.machine_gone(id, false);
        }
        self.end_gone(id, failure.into());
    }

    pub(super) fn machine_gone(&mut self, id: MachineId, taken_back: bool) {
        let failure = if taken_back {
            JobFailure::taken_back()
        } else {
            self.loss_of(id, "the provider ended the machine")
        };
        self.end_gone(id, failure);
    }

    fn end_gone(&mut self, id: MachineId, failure: JobFailure) {
        // While the launch has no outcome, a list without the machine proves nothing.
        let is_launching = self.state.is_in_outbox(&Effect::Launch { machine: id });
        let is_launched = self.kind(id) == Some(MachineKind::Launched);
        if is_launched && !is_launching {
            self.state.remove_from_outbox(&Effect::Terminate { machine: id });
            self.lose_job(id, failure);
            self.end_machine(id);
        }
    }

    pub(super) fn agent_connected(
        &mut self,
        id: MachineId,
        session: SessionId,
        system_info: SystemInfo,
        holds: &[Attempt],
    ) {
        if self.state.sessions.get(&id).is_some_and(|newest| *newest > session) {
            return;
        }
        if self.state.machines.get(&id).is_none_or(|machine| machine.state.is_terminated()) {
            return self.emit(Effect::Disconnect { machine: id });
        }
        self.state.sessions.insert(id, session);
        let now = self.now;
        self.state.change_machine(id, |machine| {
            machine.connected = true;
            machine.contact_at = now;
            machine.system_info = Some(system_info);
        });
        self.begin_bill(id, None);
        self.resume(id, holds);
        self.forget_interruption(id);
    }

    /// Reconciles the attempts that an agent holds with the records, after its HELLO.
    fn resume(&mut self, id: MachineId, holds: &[Attempt]) {
        let current = self.resume_current(id, holds);
        self.resume_export(id, holds);
        let Some(machine) = self.state.machines.get(&id) else { return };
        let is_stray = |held: &Attempt| current != Some(*held) && !machine.exports(*held);
        let strays: BTreeSet<Attempt> = holds.iter().copied().filter(is_stray).collect();
        for &attempt in &strays {
            let is_cancelled = self.job_state(attempt.job) == Some(&JobState::Cancelled);
            let reason =
                if is_cancelled { StopReason::RunCancelled } else { StopReason::NotWanted };
            self.emit(Effect::Cancel { machine: id, attempt, reason });
        }
        self.state.change_machine(id, |machine| machine.stopping = strays);
        match current {
            Some(attempt) => {
                self.move_machine(id, MachineEvent::Assigned { attempt });
            }
            None => self.release(id),
        }
    }

    /// The attempt of the machine after its HELLO. Sends the attempt again if the agent never had it, and fails it if
    /// the agent has lost it.
    fn resume_current(&mut self, id: MachineId, holds: &[Attempt]) -> Option<Attempt> {
        let current = self.attempt_on(id)?;
        if holds.contains(&current) {
            return Some(current);
        }
        if matches!(self.job_state(current.job), Some(JobState::Running { .. })) {
            self.lose_to_restart(id, current.job, "the agent was restarted");
            return None;
        }
        self.assign(id, current.job);
        Some(current)
    }

    pub(super) fn agent_disconnected(&mut self, id: MachineId, session: SessionId) {
        let is_newest = self.state.sessions.get(&id) == Some(&session);
        if is_newest && self.state.machines.get(&id).is_some_and(|machine| machine.connected) {
            self.disconnect(id);
        }
    }

    pub(super) fn disconnect(&mut self, id: MachineId) {
        let now = self.now;
        self.state.change_machine(id, |machine| {
            machine.connected = false;
            machine.contact_at = now;
        });
    }

    pub(super) fn register_machine(
        &mut self,
        id: MachineId,
        name: String,
        arch: Arch,
        fleet: Fleet,
    ) {
        if self.state.machines.contains_key(&id) {
            return;
        }
        let machine = Machine::new(id, MachineKind::Registered, arch, self.now);
        self.state.insert_machine(Machine { name, fleet, state: MachineState::Ready, ..machine });
    }

    pub(super) fn unregister_machine(&mut self, id: MachineId) {
        let serves = self.state.machines.get(&id).and_then(|machine| machine.serves);
        if self.is_registered(id) && serves.is_none() {
            self.lose_job(id, JobFailure::machine_lost("the machine's owner took it back"));
            self.end_machine(id);
            self.emit(Effect::Disconnect { machine: id });
        }
    }

    /// The machine has no job any more. A launched one is terminated, unless it exports the cache of its job.
    pub(super) fn release(&mut self, id: MachineId) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let is_launched = machine.kind == MachineKind::Launched;
        if is_launched && machine.exporting.is_none() && machine.serves.is_none() {
            return self.terminate(id);
        }
        let stopping = machine.yet_to_stop();
        self.move_machine(id, MachineEvent::Released { stopping });
    }

    /// Drops what a disconnected agent has yet to stop or export. Its next HELLO lists what it still runs.
    pub(super) fn mark_lost(&mut self, id: MachineId) {
        self.state.change_machine(id, |machine| machine.stopping.clear());
        self.move_export(id, ExportEvent::Abandoned);
        self.release(id);
    }

    /// Extends the lease to cover work that core ends at `end`, so that the lease never ends live work. Returns false if
    /// the budget does not suffice for that.
    pub(super) fn extend_lease(&mut self, id: MachineId, end: Timestamp) -> bool {
        if !self.state.may_extend_lease(id, end) {
            return false;
        }
        let needed = end.after(self.state.limits.job_grace);
        self.state.change_machine(id, |machine| {
            machine.lease_until = machine.lease_until.map(|lease| lease.max(needed));
        });
        true
    }

    /// Terminates a launched machine, also one that is recorded as terminated.
    pub(super) fn terminate(&mut self, id: MachineId) {
        if !self.move_machine(id, MachineEvent::TerminationRequested) {
            return;
        }
        self.lose_preview(id);
        self.move_export(id, ExportEvent::Abandoned);
        self.state.change_machine(id, |machine| machine.terminated_at = None);
        let terminate = Effect::Terminate { machine: id };
        // A launch under way could start the machine after its termination, so its outcome comes first.
        let is_launching = self.state.is_in_outbox(&Effect::Launch { machine: id });
        if !is_launching && !self.state.is_in_outbox(&terminate) {
            self.emit(terminate);
        }
    }

    /// Fails the machine's attempt, if it has one.
    pub(super) fn lose_job(&mut self, id: MachineId, failure: JobFailure) {
        if let Some(Attempt { job, .. }) = self.attempt_on(id) {
            self.fail_attempt(job, failure);
        }
    }

    fn end_machine(&mut self, id: MachineId) {
        let now = self.now;
        self.end_bill(id);
        self.move_machine(id, MachineEvent::Gone);
        self.lose_preview(id);
        self.move_export(id, ExportEvent::Abandoned);
        self.state.change_machine(id, |machine| {
            machine.connected = false;
            machine.terminated_at = machine.terminated_at.or(Some(now));
        });
    }

    pub(super) fn attempt_on(&self, id: MachineId) -> Option<Attempt> {
        let job = self.state.machines.get(&id)?.job()?;
        self.attempt_of(job, id)
    }

    fn kind(&self, id: MachineId) -> Option<MachineKind> {
        self.state.machines.get(&id).map(|machine| machine.kind)
    }

    pub(super) fn is_registered(&self, id: MachineId) -> bool {
        self.kind(id) == Some(MachineKind::Registered)
    }
}

impl Machine {
    /// An attempt that its agent has yet to stop or to export.
    fn yet_to_stop(&self) -> Option<Attempt> {
        let exporting = self.exporting.map(|export| export.attempt);
        self.stopping.first().copied().or(exporting)
    }

    /// The job that the machine was requested for, or is busy with. The job's record decides whether the machine still
    /// has it.
    pub const fn job(&self) -> Option<JobId> {
        match self.state {
            MachineState::Busy { attempt } => Some(attempt.job),
            _ => self.requested_for,
        }
    }
}

impl LaunchFailure {
    const fn may_have_started(&self) -> bool {
        match self {
            Self::NoCapacity(_)
            | Self::Permanent(_)
            | Self::Internal(_)
            | Self::MissingSecrets(_) => false,
            Self::Unclear(_) => true,
        }
    }
}

impl From<LaunchFailure> for JobFailure {
    fn from(failure: LaunchFailure) -> Self {
        match failure {
            LaunchFailure::NoCapacity(why) => Self::new(FailureReason::NoCapacity, why),
            LaunchFailure::Unclear(why) => {
                let why = format!("the provider gave no clear answer: {why}");
                Self::new(FailureReason::NoCapacity, why)
            }
            LaunchFailure::Permanent(why) => Self::new(FailureReason::Provider, why),
            LaunchFailure::Internal(why) => Self::new(FailureReason::Internal, why),
            LaunchFailure::MissingSecrets(why) => {
                Self::new(FailureReason::Deploy { problem: DeployProblem::Secret }, why)
            }
        }
    }
}
