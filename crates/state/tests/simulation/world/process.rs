//! Core and its disk: steps with their checks, transactions, crashes, and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use stagely_state::ids::EnvironmentId;
use stagely_state::{Changes, Effect, Event, JobKind, Outcome, Snapshot, State, Table, Trigger};

use super::lean::LeanCore;
use super::{Volatile, World};
use crate::agents::Order;
use crate::invariants;
use crate::money;
use crate::registry;
use crate::transitions::Before;

impl World {
    /// Steps `event`, checks the invariants, and commits the changes at once or with a later step.
    pub(super) fn deliver(&mut self, event: Event) {
        if let Event::MachineLaunched { machine, .. } = event
            && self.core.machines.get(&machine).is_some_and(|machine| machine.state.is_terminated())
        {
            self.swept.insert(machine);
        }
        if let Event::AgentConnected { machine, session, .. } = event {
            self.volatile.newest.insert(machine, session);
        }
        if let Event::ProviderDescribed { provider, arches } = &event {
            self.volatile.described.insert(*provider, arches.clone());
        }
        self.step(&event);
        if let Event::JobReported { machine, attempt, report } = &event {
            let acknowledgement =
                Order::Acknowledge { attempt: *attempt, is_early: report.exporting_cache };
            self.volatile.acknowledgements.push((*machine, acknowledgement));
        }
        // Random interruptions seldom hit a machine that has just begun a job, so some are made here.
        if let Event::JobStarted { machine, attempt } = event
            && let Some(job) = self.core.jobs.get(&attempt.job)
            && let percent = if matches!(job.kind, JobKind::Merge { .. }) { 40 } else { 5 }
            && self.fault(percent)
        {
            self.interrupt(machine);
        }
        if self.may_come_again(&event) {
            self.repeatable.push(event);
        }
        if !self.has_faults || self.rng.chance(80) {
            self.commit();
        }
        if self.has_faults && self.rng.chance(1) {
            self.crash();
        }
    }

    fn step(&mut self, event: &Event) {
        let mut memory = mem::take(&mut self.memory);
        memory.note(self, event);
        let repeated = self.repeated(event);
        let is_cleaned = self.is_cleaned(event);
        let before = Before::of(&self.core, event);
        let were_completed = registry::completed(&self.core);
        if let Event::AgentConnected { machine, holds, .. } = event {
            let strays = holds.iter().filter(|held| !self.knows(*machine, held.job));
            let strays: Vec<_> = strays.map(|held| (*machine, *held)).collect();
            self.model.lost_attempts.extend(strays);
        }
        let rng = &mut self.rng;
        let mut new_ids = Vec::new();
        let mut new_id = || {
            let id = rng.id();
            new_ids.push(id);
            id
        };
        let outcome = self.core.step(event.clone(), self.now, &mut new_id);
        if let Some(lean) = &mut self.lean {
            let decided = lean.step(event.clone(), self.now, &new_ids);
            assert_eq!(
                decided, outcome,
                "a core without ended records decides otherwise on {event:?}"
            );
        }
        let Outcome { effects, fingerprints, anomalies, warnings } = outcome;
        money::check_warnings(self, &warnings);
        assert_eq!(anomalies, [], "{event:?}");
        self.trace(|world| format!("{} {event:?} -> {effects:?}", world.now.0));
        if let Some(run) = before.started(&self.core) {
            if run.trigger == Trigger::ImagesGone {
                *self.counts.entry("lost images are built again").or_default() += 1;
            }
            self.requested.push((run.id, run.original()));
            self.model.expected.note_request(&self.core, run);
        }
        if let Some(environment) = is_cleaned {
            self.model.expected.forget(environment);
        }
        if let Some(records) = repeated {
            assert!(
                effects.is_empty() && self.core.snapshot() == records,
                "{event:?} is taken twice"
            );
        }
        invariants::check(self, event);
        money::check(self);
        memory.check(self);
        self.memory = memory;
        before.check(self, event, &effects);
        before.check_fingerprints(event, &fingerprints);
        self.model.fingerprints.change(event, &fingerprints);
        before.note(self, event);
        before.note_previews(self, event);
        before.note_tests(self);
        self.service_order.check(&self.core, &before, &effects);
        self.strays.check(&self.core, event);
        self.model.expected.check(&self.core, &were_completed);
        self.volatile.uncommitted.extend(effects);
    }

    /// The records before the step, if the event is a repeated delivery.
    fn repeated(&self, event: &Event) -> Option<Snapshot> {
        let Event::Delivered { delivery, .. } = event else { return None };
        self.core.deliveries.contains_key(delivery).then(|| self.core.snapshot())
    }

    /// The environment whose images are deleted with this answer.
    fn is_cleaned(&self, event: &Event) -> Option<EnvironmentId> {
        let Event::CleanedUp { environment, .. } = event else { return None };
        let is_awaited = self
            .core
            .outbox
            .values()
            .any(|effect| *effect == Effect::CleanUp { environment: *environment });
        let record = self.core.environments.get(environment);
        let is_gone = record.is_some_and(|environment| {
            environment.has_images && !environment.state.has_outdated_cleanup()
        });
        (is_awaited && is_gone).then_some(*environment)
    }

    /// Whether the event may arrive a second time. Reports are repeated if their acknowledgement is lost. Repeated
    /// outcomes must do no harm.
    fn may_come_again(&self, event: &Event) -> bool {
        match event {
            Event::JobStarted { .. }
            | Event::JobReported { .. }
            | Event::MachineLaunched { .. }
            | Event::LaunchFailed { .. }
            | Event::RunApproved { .. }
            | Event::RunPlanned { .. } => true,
            // The event would be wrong if the machine were launched later.
            Event::MachineGone { machine, .. } => {
                self.cloud.has_launched(*machine) && !self.cloud.is_alive(*machine)
            }
            _ => false,
        }
    }

    /// Commits the changes. Only then the effects run and the agents get acknowledgements.
    pub(super) fn commit(&mut self) {
        self.send_messages();
        let changes = self.core.take_changes();
        invariants::check_history(&self.disk, &self.core, &changes);
        store(&mut self.disk, &self.core, &changes);
        invariants::check_disk(&self.disk, &self.core);
        self.committed_model = self.model.clone();
        self.volatile.in_flight.append(&mut self.volatile.uncommitted);
        self.check_effects_in_flight();
        for (machine, acknowledgement) in mem::take(&mut self.volatile.acknowledgements) {
            self.send_order(machine, acknowledgement);
        }
    }

    /// At most one effect moves a reference, cleans up an environment, or reports it.
    fn check_effects_in_flight(&self) {
        let answered = self.volatile.answers.iter().filter_map(|answer| match answer {
            Event::ImageTagged { environment, variant, .. } => {
                Some(Effect::Tag { environment: *environment, variant: variant.clone() })
            }
            Event::CleanedUp { environment, .. } => {
                Some(Effect::CleanUp { environment: *environment })
            }
            Event::Reported { environment, .. } => {
                Some(Effect::Report { environment: *environment })
            }
            _ => None,
        });
        let writes = self.github.writes.iter();
        let written = writes.map(|write| Effect::Report { environment: write.environment });
        let running =
            self.volatile.in_flight.iter().filter(|effect| effect.environment().is_some()).cloned();
        let mut effects: Vec<String> =
            running.chain(answered).chain(written).map(|effect| format!("{effect:?}")).collect();
        effects.sort();
        let count = effects.len();
        effects.dedup();
        assert_eq!(effects.len(), count, "two at once: {effects:?}");
    }

    /// Sends the messages to agents. They may arrive after later events and in another order, but before the next
    /// transaction, and before the agent's next session.
    pub(super) fn send_messages(&mut self) {
        let (durable, messages): (Vec<_>, Vec<_>) =
            mem::take(&mut self.volatile.in_flight).into_iter().partition(Effect::is_durable);
        self.volatile.in_flight = durable;
        for message in messages {
            self.perform(&message);
        }
    }

    pub(super) fn crash(&mut self) {
        self.trace(|_| "core crashes".to_owned());
        self.count("core crashes");
        if let Some(lean) = &self.lean {
            lean.check(&self.core);
            if lean.ended_runs() > 0 {
                self.count("core crashes with ended runs out of memory");
            }
        }
        let Volatile { in_flight, .. } = mem::take(&mut self.volatile);
        self.forget_github();
        self.model = self.committed_model.clone();
        // The crash loses the outcomes of effects, but agents may repeat their reports.
        self.repeatable
            .retain(|event| matches!(event, Event::JobStarted { .. } | Event::JobReported { .. }));
        for effect in in_flight {
            match effect {
                Effect::Launch { machine } => {
                    self.count("core crashes between a launch and its answer");
                    // The request was sent before the crash.
                    if self.rng.chance(20) {
                        let provider = self.disk.machines[&machine].provider;
                        self.cloud.in_transit.push((machine, provider));
                    }
                }
                Effect::Terminate { .. } => {
                    self.count("core crashes between a termination and its answer");
                }
                _ => {}
            }
        }
        for agent in self.agents.values_mut() {
            agent.session = None;
        }
        let downtime = if self.rng.chance(30) { self.rng.below(8_000_000) } else { 1_000 };
        self.pass(Duration::from_millis(downtime));
        self.core = State::load(self.core.limits.clone(), self.disk.clone());
        if let Some(lean) = &mut self.lean {
            *lean = LeanCore::load(&self.core.limits, self.disk.clone());
        }
        self.restart();
    }

    pub(super) fn restart(&mut self) {
        self.started_at = self.now;
        self.cores += 1;
        let outbox: Vec<Effect> = self.core.outbox.values().cloned().collect();
        self.service_order.restart();
        self.step(&Event::CoreStarted);
        self.commit();
        self.volatile.in_flight.extend(outbox);
    }
}

fn store(disk: &mut Snapshot, core: &State, changes: &Changes) {
    copy(&mut disk.projects, &core.projects, &changes.projects);
    copy(&mut disk.environments, &core.environments, &changes.environments);
    copy(&mut disk.runs, &core.runs, &changes.runs);
    copy(&mut disk.jobs, &core.jobs, &changes.jobs);
    copy(&mut disk.machines, &core.machines, &changes.machines);
    copy(&mut disk.previews, &core.previews, &changes.previews);
    copy(&mut disk.deliveries, &core.deliveries, &changes.deliveries);
    copy(&mut disk.outbox, &core.outbox, &changes.outbox);
}

fn copy<K: Copy + Ord, V: Clone>(
    to: &mut BTreeMap<K, V>,
    from: &Table<K, V>,
    changed: &BTreeSet<K>,
) {
    for key in changed {
        match from.get(key) {
            Some(row) => to.insert(*key, row.clone()),
            None => to.remove(key),
        };
    }
}
