//! A provider that keeps its promises and no more: a token that has launched a machine never
//! launches another, and terminating what is gone is success.

use std::collections::BTreeSet;

use stagely::ids::MachineId;

#[derive(Default)]
pub(crate) struct Cloud {
    /// What the owner pays for.
    pub(crate) alive: BTreeSet<MachineId>,
    launched: BTreeSet<MachineId>,
    /// Machines that the request of a crashed core started. Core may have been refused them since.
    pub(crate) late: BTreeSet<MachineId>,
    /// Requests of a core that has crashed, still on their way here.
    pub(crate) travelling: Vec<MachineId>,
}

impl Cloud {
    /// Starts the machine, unless it was started before.
    pub(crate) fn launch(&mut self, machine: MachineId) {
        if self.launched.insert(machine) {
            self.alive.insert(machine);
        }
    }

    pub(crate) fn has_launched(&self, machine: MachineId) -> bool {
        self.launched.contains(&machine)
    }

    pub(crate) fn terminate(&mut self, machine: MachineId) {
        self.alive.remove(&machine);
    }
}
