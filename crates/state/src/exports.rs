//! The export of a layer cache goes on after the image was reported. Only the machine is busy with it, and only those
//! wait for it who wait for that machine or for its slot among `max_concurrent`.

use super::step::Step;
use super::{
    Attempt, CacheExport, Effect, ExportEvent, ExportState, Interruption, Machine, MachineKind,
    StopReason, Timestamp,
};
use crate::ids::{MachineId, RunId};

impl Step<'_> {
    /// The agent has reported the image of `attempt` and goes on to export the cache.
    pub(super) fn begin_export(&mut self, id: MachineId, attempt: Attempt) {
        let deadline = self.now.after(self.state.limits.cache_export);
        let deadline = self.longest_export(id, deadline);
        self.state.change_machine(id, |machine| {
            let state = ExportState::Running { deadline };
            machine.exporting = Some(CacheExport { attempt, state });
        });
        let interruption = self.state.machines.get(&id).and_then(|machine| machine.interruption);
        if let Some(Interruption::Certain { at }) = interruption {
            self.cut_export(id, at);
        }
    }

    /// Extends the lease for an export until `deadline`. If the budget does not suffice, the export ends before the lease.
    fn longest_export(&mut self, id: MachineId, deadline: Timestamp) -> Timestamp {
        if self.extend_lease(id, deadline) {
            return deadline;
        }
        let lease = self.state.machines.get(&id).and_then(|machine| machine.lease_until);
        let grace = self.state.limits.job_grace;
        lease.map_or(deadline, |lease| lease.before(grace).min(deadline))
    }

    /// Ends the export no later than `at`, the moment at which the cloud takes the machine back.
    pub(super) fn cut_export(&mut self, id: MachineId, at: Timestamp) {
        self.move_export(id, ExportEvent::MachineReclaimed { at });
    }

    /// Drops the export if the agent does not hold it any more, or was asked to stop it. In the second case
    /// [`Machine::stopping`] gets the attempt, as any other that the agent is to stop.
    pub(super) fn resume_export(&mut self, id: MachineId, holds: &[Attempt]) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let goes_on =
            |export: &CacheExport| holds.contains(&export.attempt) && !export.is_stopping();
        if machine.exporting.is_some_and(|export| !goes_on(&export)) {
            self.move_export(id, ExportEvent::Abandoned);
        }
    }

    /// Ends an export that has run until its deadline.
    pub(super) fn give_up_export(&mut self, id: MachineId) {
        if self.is_registered(id) {
            return self.stop_export(id, StopReason::ExportOverrun);
        }
        self.move_export(id, ExportEvent::Abandoned);
        if self.attempt_on(id).is_none() {
            self.release(id);
        }
    }

    /// Ends the exports of a run that is being cancelled. The other work of these machines is of the same run.
    pub(super) fn end_exports_of(&mut self, run: RunId) {
        let is_its_own = |machine: &&Machine| {
            let export = machine.exporting.filter(|export| !export.is_stopping());
            let job = export.and_then(|export| self.state.jobs.get(&export.attempt.job));
            job.is_some_and(|job| job.run == run)
        };
        let machines = self.state.live_machines().filter(is_its_own);
        let machines: Vec<(MachineId, MachineKind)> =
            machines.map(|machine| (machine.id, machine.kind)).collect();
        for (machine, kind) in machines {
            match kind {
                MachineKind::Launched => self.terminate(machine),
                MachineKind::Registered => self.stop_export(machine, StopReason::RunCancelled),
            }
        }
    }

    /// Asks the agent to stop the export. The machine stays busy until the agent confirms it.
    fn stop_export(&mut self, id: MachineId, reason: StopReason) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let Some(CacheExport { attempt, .. }) = machine.exporting else { return };
        self.emit(Effect::Cancel { machine: id, attempt, reason });
        self.move_export(id, ExportEvent::StopRequested { at: self.now });
    }
}

impl Machine {
    /// Whether its agent exports the cache of `attempt`.
    pub(super) fn exports(&self, attempt: Attempt) -> bool {
        self.exporting.is_some_and(|export| export.attempt == attempt)
    }

    /// Whether its agent has yet to stop an attempt or an export.
    pub(super) fn has_to_stop(&self) -> bool {
        !self.stopping.is_empty() || self.exporting.is_some_and(|export| export.is_stopping())
    }
}
