//! Agents: what they do next, their sessions, and what core receives from them.

use std::mem;

use stagely_state::ids::{JobId, MachineId};
use stagely_state::{Attempt, Event, Fleet, Machine};

use super::World;
use crate::agents::{self, Agent};

impl World {
    pub(super) fn let_an_agent_act(&mut self) {
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        let Some(machine) = self.rng.pick(&machines) else { return };
        match self.rng.below(100) {
            0..80 => {
                self.go_on(machine);
            }
            80..90 => self.break_session(machine),
            90..94 => self.change_agent(machine, Agent::crash),
            94..96 => self.change_agent(machine, |agent| agent.is_hung = true),
            _ => {}
        }
    }

    /// Lets the agent of a machine for previews or tests take a few steps.
    pub(super) fn let_a_preview_act(&mut self) {
        let machines = self.core.live_machines().filter(|machine| machine.fleet != Fleet::Builder);
        let machines: Vec<MachineId> = machines.map(|machine| machine.id).collect();
        let Some(machine) = self.rng.pick(&machines) else { return };
        for _ in 0..self.rng.below(5) {
            self.go_on(machine);
        }
    }

    pub(super) fn change_agent(&mut self, machine: MachineId, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.agents.get_mut(&machine) {
            let session = agent.session.as_ref().map(|session| session.number);
            change(agent);
            if let Some(session) = session.filter(|_| agent.session.is_none()) {
                self.volatile.broken.insert((machine, session));
            }
        }
    }

    /// Lets the agent take one step. Returns false if it has nothing to do.
    pub(super) fn go_on(&mut self, machine: MachineId) -> bool {
        let Some(agent) = self.agents.get_mut(&machine) else { return false };
        if agent.session.is_none() {
            self.volatile.last_session = self.volatile.last_session.next();
            agent.connect(self.volatile.last_session, &mut self.rng);
            return true;
        }
        if self.receive(machine) {
            return true;
        }
        let Some(agent) = self.agents.get_mut(&machine) else { return false };
        let has_acted = agent.take_order(&mut self.rng, self.has_faults)
            || agent.work(&mut self.rng, self.has_faults);
        let written = mem::take(&mut agent.written);
        for (attempt, cache) in written {
            let is_known = self.knows(machine, attempt.job);
            if is_known && !self.model.lost_attempts.contains(&(machine, attempt)) {
                self.registry.caches.insert(cache);
            }
        }
        has_acted
    }

    /// Whether core's record says that the machine may work for the job.
    pub(super) fn knows(&self, machine: MachineId, job: JobId) -> bool {
        let machine =
            self.core.machines.get(&machine).filter(|machine| !machine.state.is_terminated());
        machine.is_some_and(|machine| jobs_of(machine).any(|known| known == job))
    }

    /// Core receives the oldest message of the agent.
    fn receive(&mut self, machine: MachineId) -> bool {
        let agent = self.agents.get(&machine);
        if agent.and_then(|agent| agent.session.as_ref()).is_some_and(|session| !session.is_open) {
            self.send_messages();
        }
        let session = self.agents.get_mut(&machine).and_then(|agent| agent.session.as_mut());
        let message = session.and_then(|session| {
            session.is_open = true;
            session.to_core.pop_front()
        });
        let is_some = message.is_some();
        if let Some(event) = message {
            self.deliver(event);
        }
        is_some
    }

    /// A machine reports the end of a job that another machine has.
    pub(super) fn report_for_another_machine(&mut self) {
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        let attempts = self.core.jobs.values().filter_map(|job| {
            Some(Attempt { job: job.id, number: job.state.attempt_on(job.state.machine()?)? })
        });
        let attempts: Vec<Attempt> = attempts.collect();
        let (reporter, attempt) = (self.rng.pick(&machines), self.rng.pick(&attempts));
        if let (Some(reporter), Some(attempt)) = (reporter, attempt)
            && self.core.jobs[&attempt.job].state.machine() != Some(reporter)
        {
            let is_early = self.rng.chance(30);
            let pushed = agents::pushed(attempt, true);
            self.deliver(agents::reported(reporter, attempt, pushed, is_early));
            // It must not come again when the reporter has got the attempt, whose cache it has not written.
            self.repeatable.retain(|event| {
                let Event::JobReported { machine, attempt: claimed, .. } = event else {
                    return true;
                };
                (*machine, *claimed) != (reporter, attempt)
            });
        }
    }

    pub(super) fn notice_broken(&mut self) {
        if let Some((machine, session)) = self.volatile.broken.pop_first() {
            self.deliver(Event::AgentDisconnected { machine, session });
        }
    }
}

/// The jobs that the machine may work for, by its record.
fn jobs_of(machine: &Machine) -> impl Iterator<Item = JobId> {
    let exporting = machine.exporting.map(|export| export.attempt.job);
    let stopping = machine.stopping.iter().map(|attempt| attempt.job);
    machine.job().into_iter().chain(exporting).chain(stopping)
}
