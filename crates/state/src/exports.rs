//! The export of a layer cache: it goes on after the image was reported, so that nobody waits for it
//! but the machine, and those who wait for that machine or for its slot among `max_concurrent`.
//!
//! An agent that was told to stop an export has the attempt in [`Machine::stopping`] as well, and
//! `until` is the moment at which it was told.

use super::step::Step;
use super::{
    Attempt, CacheExport, Effect, Interruption, Machine, MachineKind, StopReason, Timestamp,
};
use crate::ids::{MachineId, RunId};

impl Step<'_> {
    /// The agent has reported the image of `attempt` and goes on to export the cache.
    pub(super) fn begin_export(&mut self, id: MachineId, attempt: Attempt) {
        let until = self.now.after(self.state.limits.cache_export);
        self.extend_lease(id, until);
        self.state.change_machine(id, |machine| {
            machine.exporting = Some(CacheExport { attempt, until });
        });
        let interruption = self.state.machines.get(&id).and_then(|machine| machine.interruption);
        if let Some(Interruption::Certain { at }) = interruption {
            self.cut_export(id, at);
        }
    }

    /// The cloud takes the machine back `at` that moment: nobody waits for an export after it.
    pub(super) fn cut_export(&mut self, id: MachineId, at: Timestamp) {
        self.state.change_machine(id, |machine| {
            let is_told = machine.is_told_to_end_export();
            if let Some(export) = machine.exporting.as_mut().filter(|_| !is_told) {
                export.until = export.until.min(at);
            }
        });
    }

    /// Ends the export of an agent that does not hold it any more, or had been told to stop it: then it
    /// counts as any other stray.
    pub(super) fn resume_export(&mut self, id: MachineId, holds: &[Attempt]) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let goes_on = |export: &CacheExport| {
            holds.contains(&export.attempt) && !machine.stopping.contains(&export.attempt)
        };
        if machine.exporting.is_some_and(|export| !goes_on(&export)) {
            self.state.change_machine(id, |machine| machine.exporting = None);
        }
    }

    /// The export has had its time.
    pub(super) fn give_up_export(&mut self, id: MachineId) {
        if self.is_registered(id) {
            return self.stop_export(id, StopReason::ExportOverrun);
        }
        self.state.change_machine(id, |machine| machine.exporting = None);
        if self.attempt_on(id).is_none() {
            self.release(id);
        }
    }

    /// Ends the exports of a run that is being cancelled. What else these machines do is of the same run.
    pub(super) fn end_exports_of(&mut self, run: RunId) {
        let is_its_own = |machine: &&Machine| {
            let export = machine.exporting.filter(|_| !machine.is_told_to_end_export());
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

    /// Asks the agent to stop the export. Until it answers, the machine stays busy.
    fn stop_export(&mut self, id: MachineId, reason: StopReason) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let Some(CacheExport { attempt, .. }) = machine.exporting else { return };
        self.emit(Effect::Cancel { machine: id, attempt, reason });
        let now = self.now;
        self.state.change_machine(id, |machine| {
            machine.stopping.insert(attempt);
            machine.exporting = Some(CacheExport { attempt, until: now });
        });
    }
}

impl Machine {
    /// Whether its agent exports the cache of `attempt`.
    pub(super) fn exports(&self, attempt: Attempt) -> bool {
        self.exporting.is_some_and(|export| export.attempt == attempt)
    }

    /// Whether its agent was told to stop what it exports.
    pub(super) fn is_told_to_end_export(&self) -> bool {
        self.exporting.is_some_and(|export| self.stopping.contains(&export.attempt))
    }
}
