//! Requests of people and scripts, and of retention.

use stagely_protocol::Arch;
use stagely_state::ids::{EnvironmentId, MachineId, RunId};
use stagely_state::{CancelReason, Event, MachineKind};

use super::World;
use crate::agents::Agent;
use crate::plans;

const RUNS_MAX: u64 = 7;
const REGISTERED_MACHINES_MAX: u64 = 3;

impl World {
    pub(super) fn request_run(&mut self) {
        if self.runs < RUNS_MAX {
            self.runs += 1;
            let request = plans::request(&mut self.rng, &self.core, self.now);
            self.deliver(request);
        }
    }

    pub(super) fn cancel_any_run(&mut self) {
        let runs: Vec<RunId> = self.core.runs.keys().copied().collect();
        if let Some(run) = self.rng.pick(&runs) {
            self.deliver(Event::CancelRequested { run, reason: CancelReason::Requested });
        }
    }

    pub(super) fn close_an_environment(&mut self) {
        let environments: Vec<EnvironmentId> = self.core.environments.keys().copied().collect();
        if let Some(environment) = self.rng.pick(&environments) {
            self.deliver(Event::EnvironmentClosed { environment });
        }
    }

    pub(super) fn register_machine(&mut self, arch: Option<Arch>) {
        if arch.is_some() || self.registered_machines < REGISTERED_MACHINES_MAX {
            self.registered_machines += 1;
            let machine = MachineId::from_bits(self.rng.id());
            let arch = arch.or_else(|| self.rng.pick(&Arch::ALL)).expect("there are arches");
            self.agents.insert(machine, Agent::new(machine));
            self.deliver(Event::MachineRegistered { machine, name: String::new(), arch });
            // Its owner has got the token, so the record is committed.
            self.commit();
        }
    }

    pub(super) fn unregister_machine(&mut self) {
        let registered =
            self.core.live_machines().filter(|machine| machine.kind == MachineKind::Registered);
        let registered: Vec<MachineId> = registered.map(|machine| machine.id).collect();
        if let Some(machine) = self.rng.pick(&registered) {
            self.deliver(Event::MachineUnregistered { machine });
        }
    }

    pub(super) fn forget(&mut self) {
        // The state must ignore open runs and live machines.
        let runs: Vec<RunId> = self.core.runs.keys().copied().collect();
        let machines: Vec<MachineId> = self.core.machines.keys().copied().collect();
        let runs = self.rng.pick(&runs).into_iter().collect();
        let machines = self.rng.pick(&machines).into_iter().collect();
        self.deliver(Event::Forgotten { runs, machines, deliveries: Vec::new() });
    }

    pub(super) fn repeat_an_event(&mut self) {
        if !self.repeatable.is_empty() {
            let index = self.rng.below(self.repeatable.len() as u64);
            let event = self.repeatable[usize::try_from(index).expect("small")].clone();
            self.deliver(event);
        }
    }
}
