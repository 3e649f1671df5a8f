//! What core's effects do to the cloud, the registry and the agents, and what comes back.

use std::collections::BTreeSet;

use stagely_state::ids::{EnvironmentId, MachineId, RunId};
use stagely_state::{
    Attempt, Effect, Event, JobKind, JobState, LaunchFailure, PreviewState, VariantName,
};

use super::{World, is_superseded};
use crate::agents::{Order, Task};
use crate::plans;

impl World {
    pub(super) fn perform_any(&mut self) {
        if !self.volatile.in_flight.is_empty() {
            let index = self.rng.below(self.volatile.in_flight.len() as u64);
            let effect =
                self.volatile.in_flight.swap_remove(usize::try_from(index).expect("small"));
            self.perform(&effect);
        }
    }

    pub(super) fn perform(&mut self, effect: &Effect) {
        self.trace(|_| format!("performs {effect:?}"));
        match *effect {
            Effect::CheckCommand { environment, ref command } => {
                self.check_command(environment, command);
            }
            Effect::Report { environment } => self.report(environment),
            Effect::Tag { environment, ref variant } => self.tag(environment, variant),
            Effect::CleanUp { environment } => self.delete_caches(environment),
            Effect::Plan { run } => self.plan(run),
            Effect::Launch { machine } => self.launch(machine),
            Effect::Terminate { machine } => self.terminate(machine),
            Effect::Assign { machine, attempt } => self.assign(machine, attempt),
            Effect::Cancel { machine, attempt, .. } => {
                self.send_order(machine, Order::Stop(attempt));
            }
            Effect::Sleep { machine, preview } => self.send_order(machine, Order::Sleep(preview)),
            Effect::Retire { machine, preview } => self.send_order(machine, Order::Retire(preview)),
            Effect::Disconnect { machine } => self.break_session(machine),
        }
    }

    pub(super) fn fault(&mut self, percent: u64) -> bool {
        self.has_faults && self.rng.chance(percent)
    }

    fn plan(&mut self, run: RunId) {
        let Some(record) = self.disk.runs.get(&run) else { return };
        if self.has_faults && self.rng.chance(10) {
            return self.defer(run);
        }
        let plan = if self.has_faults && self.rng.chance(10) {
            Err(plans::failure())
        } else {
            Ok(plans::plan(&mut self.rng, record, self.is_about_previews))
        };
        self.deliver(Event::RunPlanned { run, plan });
    }

    /// Reads the committed record when it begins, like every effect.
    fn tag(&mut self, environment: EnvironmentId, variant: &VariantName) {
        let again = Effect::Tag { environment, variant: variant.clone() };
        let Some(image) = self.disk.environments[&environment].images.get(variant).cloned() else {
            panic!("{variant} is tagged without an image");
        };
        if self.fault(10) {
            return self.volatile.in_flight.push(again);
        }
        let is_old = self.disk.runs.get(&image.run).is_some_and(is_superseded);
        let result = if is_old || self.fault(10) {
            self.registry.refuse(&image);
            Err("refused".to_owned())
        } else {
            self.registry.tag(&image, &self.requested);
            Ok(())
        };
        if self.fault(15) {
            // The answer is lost, so core repeats the request.
            return self.volatile.in_flight.push(again);
        }
        let (variant, digest) = (variant.clone(), image.digest);
        self.volatile.answers.push(Event::ImageTagged { environment, variant, digest, result });
    }

    /// Deletes nothing of an environment that is open again.
    fn delete_caches(&mut self, environment: EnvironmentId) {
        let record = &self.disk.environments[&environment];
        let refs =
            if record.state.is_closed() { record.cache_refs.clone() } else { BTreeSet::new() };
        for cache in &refs {
            self.registry.caches.remove(cache);
        }
        if record.state.is_closed() && record.has_images && record.pull_request.is_some() {
            self.registry.delete_images(environment);
        }
        if self.fault(20) {
            return self.volatile.in_flight.push(Effect::CleanUp { environment });
        }
        self.volatile.answers.push(Event::CleanedUp { environment, refs });
    }

    /// Core receives an answer of the registry.
    pub(super) fn answer(&mut self) {
        if !self.volatile.answers.is_empty() {
            let index = self.rng.below(self.volatile.answers.len() as u64);
            let answer = self.volatile.answers.swap_remove(usize::try_from(index).expect("small"));
            self.deliver(answer);
        }
    }

    fn launch(&mut self, machine: MachineId) {
        let record = self.disk.machines.get(&machine);
        let provider = record.expect("no machine is launched before its record is stored").provider;
        if self.cloud.has_launched(machine) {
            self.count("a launch is repeated");
        }
        let has_agent =
            self.core.machines.get(&machine).is_some_and(|machine| machine.system_info.is_some());
        // A provider may refuse to repeat a launch once its machine's agent has connected.
        let may_refuse = !self.cloud.has_launched(machine) || has_agent;
        if !may_refuse || !self.fault(30) {
            self.start_machine(machine, provider);
            if self.fault(15) {
                // The answer is lost, so core repeats the request.
                self.count("the answer to a launch is lost");
                return self.volatile.in_flight.push(Effect::Launch { machine });
            }
            let placement = Some(self.placement(machine));
            return self.deliver(Event::MachineLaunched { machine, placement });
        }
        let why = String::new();
        let failure = match self.rng.below(5) {
            0 => {
                self.count("a launch is refused for good");
                LaunchFailure::Permanent(why)
            }
            1 => {
                if self.rng.chance(50) {
                    self.count("an unclear launch has succeeded");
                    self.start_machine(machine, provider);
                } else {
                    self.count("an unclear launch has failed");
                }
                LaunchFailure::Unclear(why)
            }
            2 => {
                self.count("a launch cannot be prepared");
                LaunchFailure::Internal(why)
            }
            _ => {
                self.count("a launch finds no capacity");
                LaunchFailure::NoCapacity(why)
            }
        };
        self.deliver(Event::LaunchFailed { machine, failure });
    }

    fn terminate(&mut self, machine: MachineId) {
        let is_launching = self.volatile.in_flight.contains(&Effect::Launch { machine });
        assert!(!is_launching, "{machine} is launched and terminated at once");
        // A sweep may have found the machine gone, and retention may have deleted its record since.
        let Some(record) = self.disk.machines.get(&machine) else {
            return self.deliver(Event::MachineGone { machine, taken_back: false });
        };
        let (provider, has_it) = (record.provider, self.cloud.provider_of(machine));
        assert!(
            has_it.is_none_or(|found| found == provider),
            "{provider} is to end {machine} of another"
        );
        if self.fault(10) {
            self.count("a termination fails");
            return self.volatile.in_flight.push(Effect::Terminate { machine });
        }
        self.end_found(machine);
        if self.fault(10) {
            self.count("the answer to a termination is lost");
            return self.volatile.in_flight.push(Effect::Terminate { machine });
        }
        self.deliver(Event::MachineGone { machine, taken_back: false });
    }

    /// Sends the job, unless the committed record says that the machine does not have it any more.
    fn assign(&mut self, machine: MachineId, attempt: Attempt) {
        if self.fault(10) && self.needs_reset(machine, attempt) {
            self.count("files need a reset");
            return self.deliver(Event::FilesNeedReset { machine, attempt });
        }
        let holder = *self.given.entry(attempt).or_insert(machine);
        assert_eq!(holder, machine, "{attempt:?} is given to a second machine");
        let stored = self.disk.jobs.get(&attempt.job);
        let on_disk = stored.and_then(|job| job.state.attempt_on(machine));
        if let Some(job) = stored.filter(|_| on_disk == Some(attempt.number)) {
            let environment = self.disk.runs.get(&job.run).map(|run| run.environment);
            let mut previews = self.disk.previews.values();
            let preview = previews.find(|preview| Some(preview.environment) == environment);
            let preview = preview.map(|preview| preview.id);
            let task = match &job.kind {
                JobKind::Build { push, cache_to, .. } => {
                    Task { pushes: *push, cache: cache_to.clone(), ..Task::default() }
                }
                JobKind::Merge { .. } => Task { pushes: true, ..Task::default() },
                JobKind::Deploy { .. } => Task { deploys: preview, ..Task::default() },
                JobKind::Test { .. } => Task { tests: true, ..Task::default() },
            };
            if let Some(requested_at) = job.kind.test().and_then(|test| test.preview_of) {
                let mut previews = self.disk.previews.values();
                let is_live = previews.any(|tested| {
                    let shown = tested.shown.as_ref().map(|shown| shown.requested_at);
                    Some(tested.id) == preview
                        && matches!(tested.state, PreviewState::Live { .. })
                        && shown == Some(requested_at)
                });
                assert!(is_live, "{attempt:?} tests what does not serve");
            }
            // Core tracks the caches of this attempt again, also after a crash, since its assignment is committed.
            for model in [&mut self.model, &mut self.committed_model] {
                model.lost_attempts.remove(&(machine, attempt));
            }
            self.send_order(machine, Order::Begin(attempt, task));
        }
    }

    /// Whether files of `reset_when` may have been edited since the last deployment.
    fn needs_reset(&self, machine: MachineId, attempt: Attempt) -> bool {
        let job = self.disk.jobs.get(&attempt.job);
        job.is_some_and(|job| {
            let is_fresh = match &job.kind {
                JobKind::Deploy { deployment, .. } => deployment.fresh,
                JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => true,
            };
            !is_fresh && job.state == JobState::Provisioning { attempt: attempt.number, machine }
        })
    }

    pub(super) fn send_order(&mut self, machine: MachineId, order: Order) {
        let session = self.agents.get_mut(&machine).and_then(|agent| agent.session.as_mut());
        if let Some(session) = session.filter(|session| session.is_open) {
            session.to_agent.push_back(order);
        }
    }

    pub(super) fn break_session(&mut self, machine: MachineId) {
        let session = self.agents.get_mut(&machine).and_then(|agent| agent.session.take());
        if let Some(session) = session {
            self.volatile.broken.insert((machine, session.number));
        }
    }
}
