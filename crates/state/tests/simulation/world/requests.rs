//! Requests of people and scripts, and of retention.

use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::ids::{EnvironmentId, MachineId, PreviewId, RunId};
use stagely_state::{CancelReason, Event, Fleet, MachineKind, Timestamp};

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

    pub(super) fn register_any_machine(&mut self) {
        if self.registered_machines < REGISTERED_MACHINES_MAX {
            let arch = self.rng.pick(&Arch::ALL).expect("there are arches");
            let fleet = match self.rng.below(10) {
                0..3 => Fleet::Preview,
                3..5 => Fleet::Tester,
                _ => Fleet::Builder,
            };
            self.register_machine(arch, fleet);
        }
    }

    pub(super) fn register_machine(&mut self, arch: Arch, fleet: Fleet) {
        self.registered_machines += 1;
        let machine = MachineId::from_bits(self.rng.id());
        self.agents.insert(machine, Agent::new(machine));
        self.deliver(Event::MachineRegistered { machine, name: String::new(), arch, fleet });
        // Its owner has got the token, so the record is committed.
        self.commit();
    }

    pub(super) fn request_preview(&mut self) {
        let at = Timestamp(self.now.0 - self.rng.below(20_000));
        if let Some(preview) = self.any_preview() {
            let by_person = self.rng.chance(20);
            self.deliver(if by_person {
                Event::PreviewWakeRequested { preview }
            } else {
                Event::PreviewRequested { preview, at }
            });
        }
    }

    pub(super) fn send_a_preview_to_sleep(&mut self) {
        if let Some(preview) = self.any_preview() {
            self.deliver(Event::PreviewSleepRequested { preview });
        }
    }

    pub(super) fn end_a_preview(&mut self) {
        if let Some(preview) = self.any_preview() {
            self.deliver(Event::PreviewEndRequested { preview });
        }
    }

    pub(super) fn reset_a_preview(&mut self) {
        if let Some(preview) = self.any_preview() {
            self.deliver(Event::PreviewResetRequested { preview });
        }
    }

    pub(super) fn extend_a_preview(&mut self) {
        let by = Duration::from_hours(self.rng.below(1_000));
        if let Some(preview) = self.any_preview() {
            self.deliver(Event::PreviewExtended { preview, by });
        }
    }

    fn any_preview(&mut self) -> Option<PreviewId> {
        let previews: Vec<PreviewId> = self.core.previews.keys().copied().collect();
        self.rng.pick(&previews)
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
