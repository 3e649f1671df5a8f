//! The end of a schedule: without further faults, everything must end.

use std::mem;
use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::ids::{MachineId, PreviewId};
use stagely_state::{Event, Fleet, Preview, PreviewState};

use super::World;
use crate::invariants;
use crate::registry;

/// Rounds in which everything must end once the faults have stopped. Far more than any needs.
const ROUNDS_MAX: u32 = 2_000;

impl World {
    /// Stops the faults and plays until everything has ended.
    pub(super) fn drain(&mut self) {
        self.trace(|_| "the faults stop".to_owned());
        self.has_faults = false;
        self.commit();
        self.settle_interruptions();
        self.describe_all();
        if self.core.limits.launchable.is_empty() {
            for arch in Arch::ALL {
                self.register_machine(arch, Fleet::Builder);
            }
        }
        // Deployments are not emulated.
        for arch in Arch::ALL {
            let has_arch =
                self.core.launchable(Fleet::Preview).any(|(launchable, _)| launchable == arch);
            if !has_arch {
                self.register_machine(arch, Fleet::Preview);
            }
        }
        let mut is_mended = false;
        for number in 0..ROUNDS_MAX {
            let is_idle = self.round();
            invariants::check_leases(self, number);
            if is_idle && invariants::is_over(self) {
                if self.reconcile() {
                    continue;
                }
                let has_problem = self
                    .core
                    .environments
                    .values()
                    .any(|environment| environment.report.problem.is_some());
                if has_problem && !mem::replace(&mut is_mended, true) {
                    // The causes of failed reports are removed, and core retries the reports.
                    self.deliver(Event::RetryReports);
                    continue;
                }
                self.memory.check_at_rest(self);
                return registry::check_at_rest(self);
            }
            if is_idle && self.allow_what_is_missing() {
                continue;
            }
            if is_idle {
                self.send_restless_previews_to_sleep();
            }
            self.pass_time_after(is_idle);
        }
        panic!("not everything ends: {:?} {:?}", self.core.queue(), self.core.outbox);
    }

    /// Lets everybody do all pending work. Returns true if there was none.
    fn round(&mut self) -> bool {
        while !self.cloud.in_transit.is_empty() {
            self.arrive();
        }
        self.sweep();
        let effects = mem::take(&mut self.volatile.in_flight);
        let mut is_idle =
            effects.is_empty() && self.volatile.answers.is_empty() && self.github.writes.is_empty();
        for effect in effects {
            self.perform(&effect);
        }
        while !self.github.writes.is_empty() {
            self.write();
        }
        while !self.volatile.answers.is_empty() {
            self.answer();
        }
        while !self.volatile.broken.is_empty() {
            self.notice_broken();
        }
        // An agent whose machine has no live record cannot connect any more.
        let is_live = |id: &MachineId| self.core.live_machines().any(|machine| machine.id == *id);
        self.agents.retain(|machine, _| is_live(machine));
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        for machine in machines {
            while self.go_on(machine) {
                is_idle = false;
            }
        }
        is_idle
    }

    /// Previews that never sleep would move from machine to machine for weeks.
    fn send_restless_previews_to_sleep(&mut self) {
        let is_restless = |preview: &&Preview| {
            let settings = preview.settings();
            matches!(preview.state, PreviewState::Live { .. })
                && settings.is_some_and(|settings| settings.sleep_after.is_none())
        };
        let restless = self.core.previews.values().filter(is_restless);
        let restless: Vec<PreviewId> = restless.map(|preview| preview.id).collect();
        for preview in restless {
            self.deliver(Event::PreviewSleepRequested { preview });
        }
    }

    fn pass_time_after(&mut self, is_idle: bool) {
        self.pass(Duration::from_secs(1));
        if is_idle && let Some(next) = self.core.next_deadline() {
            self.pass(next.since(self.now));
        }
        if self.core.next_deadline().is_some_and(|next| next <= self.now) {
            self.deliver(Event::Tick);
        }
    }
}
