//! Machines: how they start, end and are interrupted without core, and the sweeps that compare a provider's list with
//! the records.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::comparison::Listed;
use stagely_state::comparison::{Comparison, Verdict};
use stagely_state::ids::MachineId;
use stagely_state::{
    Event, Interruption, JobKind, LaunchFailure, MachineKind, Market, Placement, ProviderName,
    Timestamp, Usd,
};

use super::World;
use crate::agents::Agent;
use crate::cloud::{End, LIST_GRACE};
use crate::money;

/// A machine that is missing in this many lists in a row counts as gone.
const LISTS_MISSING: u32 = 2;

/// A provider's list that core has not received yet.
pub(super) struct MachineList {
    provider: ProviderName,
    asked_at: Timestamp,
    listed: Vec<Listed>,
}

impl World {
    // The machines.

    pub(super) fn start_machine(&mut self, machine: MachineId, provider: ProviderName) {
        let lag = self.lag();
        if !self.cloud.has_launched(machine) {
            self.cloud.launch(machine, provider, lag);
            self.agents.insert(machine, Agent::new(machine));
        } else if self.fault(30) && self.cloud.duplicate(machine, lag) {
            self.count("a machine is launched twice");
        }
    }

    /// Ends all instances of the machine that can be found.
    pub(super) fn end_found(&mut self, machine: MachineId) {
        let only_found = self.cloud.is_hidden(machine) && self.fault(70);
        if only_found {
            self.count("a new machine cannot be found to be ended");
        }
        let end = End { lag: self.lag(), taken_back: false };
        self.end_as(machine, only_found, end);
    }

    fn end_as(&mut self, machine: MachineId, only_found: bool, end: End) {
        if self.cloud.end(machine, only_found, end) {
            self.break_session(machine);
            self.agents.remove(&machine);
        }
    }

    /// How long a change is missing from the list.
    fn lag(&mut self) -> Duration {
        let lag = self.rng.below(LIST_GRACE.as_secs());
        if self.fault(40) { Duration::from_secs(lag) } else { Duration::ZERO }
    }

    pub(super) fn placement(&self, machine: MachineId) -> Placement {
        let on_demand = self.disk.machines.get(&machine).is_some_and(|record| record.on_demand);
        Placement {
            provider_id: machine.to_string(),
            instance_type: String::new(),
            zone: None,
            market: if on_demand { Market::OnDemand } else { Market::Spot },
            price: Some(Usd(360_000)),
            spot_price: (!on_demand).then(|| money::spot_price(machine, self.now)),
        }
    }

    pub(super) fn lose_a_machine(&mut self) {
        let alive: Vec<MachineId> = self.cloud.alive().collect();
        if let Some(machine) = self.rng.pick(&alive) {
            self.trace(|_| format!("{machine} dies"));
            self.count("a machine vanishes");
            let end = End { lag: self.lag(), taken_back: self.rng.chance(30) };
            self.end_as(machine, false, end);
            // Most lost machines time out before a list proves anything. Sometimes the sweep is first.
            if self.rng.chance(20) {
                self.pass(LIST_GRACE + Duration::from_secs(1));
                self.sweep();
                self.sweep();
            }
        }
    }

    pub(super) fn arrive(&mut self) {
        if let Some((machine, provider)) = self.cloud.in_transit.pop() {
            self.trace(|_| format!("a late request launches {machine}"));
            if !self.cloud.has_launched(machine) {
                self.count("a launch request of a crashed core arrives late");
                self.start_machine(machine, provider);
                self.cloud.strays.insert(machine);
            }
        }
    }

    // Notices.

    pub(super) fn interrupt_a_machine(&mut self) {
        if let Some(machine) = self.interruptible() {
            self.interrupt(machine);
        }
    }

    pub(super) fn interrupt(&mut self, machine: MachineId) {
        let Some(mut agent) = self.agents.remove(&machine) else { return };
        let interruption = if self.rng.chance(30) {
            self.count("a likely interruption");
            Interruption::Likely
        } else {
            self.count("a certain interruption");
            let seconds = if self.rng.chance(50) { 120 } else { self.rng.below(20_000) };
            Interruption::Certain { at: self.now.after(Duration::from_secs(seconds)) }
        };
        let is_delivered = !self.fault(10);
        if !is_delivered {
            self.count("a notice is lost");
        }
        agent.interrupt(interruption, is_delivered);
        self.agents.insert(machine, agent);
    }

    /// Picks a machine, preferably one with a job, and of those one with a merge.
    fn interruptible(&mut self) -> Option<MachineId> {
        let jobs = self.core.jobs.values().filter(|job| job.state.machine().is_some());
        let merges = jobs.clone().filter(|job| matches!(job.kind, JobKind::Merge { .. }));
        let merging: Vec<MachineId> = merges.filter_map(|job| job.state.machine()).collect();
        let working: Vec<MachineId> = jobs.filter_map(|job| job.state.machine()).collect();
        let all: Vec<MachineId> = self.agents.keys().copied().collect();
        let choices = match self.rng.below(10) {
            0..3 if !merging.is_empty() => &merging,
            0..7 if !working.is_empty() => &working,
            _ => &all,
        };
        self.rng.pick(choices)
    }

    /// Takes an interrupted machine back whose time is over, and seldom one too early.
    pub(super) fn take_machines_back(&mut self) {
        let is_hasty = self.fault(5);
        let due = self.agents.iter().filter_map(|(machine, agent)| match agent.interruption()? {
            Interruption::Certain { at } => (is_hasty || at <= self.now).then_some(*machine),
            Interruption::Likely => None,
        });
        let due: Vec<MachineId> = due.collect();
        if let Some(machine) = self.rng.pick(&due) {
            self.take_back(machine);
        }
    }

    fn take_back(&mut self, machine: MachineId) {
        self.trace(|_| format!("the cloud takes {machine} back"));
        if self.cloud.is_alive(machine) {
            self.count("an interrupted machine is taken back");
            let end = End { lag: self.lag(), taken_back: true };
            self.end_as(machine, false, end);
        } else {
            // A registered machine restarts.
            self.count("an interrupted registered machine comes back");
            self.change_agent(machine, Agent::reboot);
        }
    }

    /// Takes all interrupted machines back.
    pub(super) fn settle_interruptions(&mut self) {
        let interrupted = self.agents.iter().filter(|(_, agent)| agent.interruption().is_some());
        let interrupted: Vec<MachineId> = interrupted.map(|(machine, _)| *machine).collect();
        for machine in interrupted {
            self.take_back(machine);
        }
    }

    // Sweeps.

    /// Core receives the arches of a provider.
    pub(super) fn describe(&mut self) {
        let providers: Vec<ProviderName> = self.providers().into_iter().collect();
        let Some(provider) = self.rng.pick(&providers) else { return };
        let arches = Arch::ALL.into_iter().filter(|_| self.rng.chance(60)).collect();
        self.count("a provider is described");
        self.deliver(Event::ProviderDescribed { provider, arches });
    }

    /// Every provider has all arches.
    pub(super) fn describe_all(&mut self) {
        for provider in self.providers() {
            let arches = Arch::ALL.into_iter().collect();
            self.deliver(Event::ProviderDescribed { provider, arches });
        }
    }

    fn providers(&self) -> BTreeSet<ProviderName> {
        let limits = &self.core.limits;
        limits.launchable.values().chain(limits.launchable_testers.values()).copied().collect()
    }

    pub(super) fn request_list(&mut self) {
        let providers: Vec<ProviderName> = self.providers().into_iter().collect();
        let Some(provider) = self.rng.pick(&providers) else { return };
        if self.volatile.lists.iter().all(|list| list.provider != provider) {
            self.volatile.lists.push_back(self.list_of(provider));
        }
    }

    fn list_of(&self, provider: ProviderName) -> MachineList {
        let listed = self.cloud.list(provider, !self.has_faults);
        MachineList { provider, asked_at: self.now, listed }
    }

    /// Core receives a list and compares it with the present records.
    pub(super) fn compare_machines(&mut self) {
        let Some(list) = self.volatile.lists.pop_front() else { return };
        self.count("a sweep");
        let verdicts = self.verdicts(&list);
        let provider = list.provider;
        let missing = |machine: &MachineId| verdicts.get(machine) == Some(&Verdict::Missing);
        let is_others = |machine: &MachineId| self.cloud.provider_of(*machine) != Some(provider);
        self.volatile.missing.retain(|machine, _| is_others(machine) || missing(machine));
        let cores = self.cores;
        for (machine, verdict) in verdicts {
            self.act_on(machine, verdict);
            if self.cores != cores {
                return;
            }
        }
    }

    /// Core requests and compares all lists at once.
    pub(super) fn sweep(&mut self) {
        self.volatile.lists.clear();
        for provider in self.providers() {
            self.volatile.lists.push_back(self.list_of(provider));
            self.compare_machines();
        }
    }

    fn act_on(&mut self, machine: MachineId, verdict: Verdict) {
        match verdict {
            Verdict::EndUnknown => {
                self.count("a sweep ends an unknown machine");
                let is_known = self.core.live_machines().any(|record| record.id == machine);
                assert!(!is_known, "a sweep ends {machine}, which has a record");
                self.end_found(machine);
            }
            Verdict::Elsewhere => self.count("a sweep finds another provider's machine"),
            Verdict::Returned => {
                self.count("a sweep finds a machine recorded as terminated");
                self.deliver(Event::MachineLaunched { machine, placement: None });
            }
            Verdict::Gone { taken_back } => {
                self.count("a sweep finds a machine gone");
                self.report_gone(machine, taken_back);
            }
            Verdict::Missing => {
                let lists = self.volatile.missing.entry(machine).or_default();
                *lists += 1;
                if *lists >= LISTS_MISSING {
                    self.count("a sweep finds a machine missing");
                    self.report_gone(machine, false);
                }
            }
        }
    }

    /// 2. A sweep reports a machine as gone only if it is.
    fn report_gone(&mut self, machine: MachineId, taken_back: bool) {
        assert!(!self.cloud.is_alive(machine), "a sweep ends {machine} alive");
        let had_agent =
            self.disk.machines.get(&machine).is_none_or(|machine| machine.system_info.is_some());
        // No draw, so that the schedules of known seeds stay the same.
        let failure = match machine.bits() % 3 {
            _ if taken_back || had_agent => None,
            0 => Some(LaunchFailure::Permanent(String::new())),
            1 => Some(LaunchFailure::NoCapacity(String::new())),
            _ => None,
        };
        match failure {
            Some(failure) => {
                self.count("a provider ends a machine at launch");
                self.deliver(Event::EndedAtLaunch { machine, failure });
            }
            None => self.deliver(Event::MachineGone { machine, taken_back }),
        }
    }

    /// The verdicts by the committed records.
    fn verdicts(&self, list: &MachineList) -> BTreeMap<MachineId, Verdict> {
        let machines = &self.disk.machines;
        let comparison = Comparison {
            provider: list.provider,
            grace: LIST_GRACE,
            listed: &list.listed,
            machines,
            live: machines.values().filter(|machine| !machine.state.is_terminated()).collect(),
            started_at: self.started_at,
            asked_at: list.asked_at,
            compared_at: self.now,
        };
        comparison.verdicts()
    }

    /// A provider reports that a machine is gone.
    pub(super) fn notice_gone(&mut self) {
        let gone = self.core.live_machines().filter(|machine| {
            machine.kind == MachineKind::Launched && !self.cloud.is_alive(machine.id)
        });
        let gone: Vec<MachineId> = gone.map(|machine| machine.id).collect();
        if let Some(machine) = self.rng.pick(&gone) {
            let taken_back = self.cloud.has_taken_back(machine);
            self.deliver(Event::MachineGone { machine, taken_back });
        }
    }
}
