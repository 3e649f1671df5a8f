//! One step: an event goes in, records change, effects come out.

use std::collections::BTreeSet;

use super::{
    Anomaly, BudgetUse, ClosedBy, DeliveryId, Effect, Event, FingerprintChange, JobState, Month,
    State, Timestamp,
};
use crate::ids::{JobId, MachineId, PreviewId, ProjectId, RunId};

/// The decisions of a step, beside the changed records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// To be performed once the changed records are stored.
    pub effects: Vec<Effect>,
    /// Changes of stored fingerprints, for the same transaction as the changed records.
    pub fingerprints: Vec<FingerprintChange>,
    /// Errors of core's own, to be logged.
    pub anomalies: Vec<Anomaly>,
    /// Budgets that are nearly used up, to be logged.
    pub warnings: Vec<BudgetWarning>,
}

/// At least 80 % of a month's budget is spent or reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetWarning {
    pub project: ProjectId,
    pub month: Month,
    pub used: BudgetUse,
}

/// Previews that the rest of a step has to look at.
#[derive(Debug, Default)]
pub(super) struct PreviewRequests {
    /// Sleeping previews that were requested.
    pub(super) wake: Vec<PreviewId>,
    /// Previews that get fresh data.
    pub(super) reset: Vec<PreviewId>,
    /// Deploy jobs whose images are gone from the registry.
    pub(super) lost_images: Vec<JobId>,
    /// Previews whose time was over while they were deployed in vain.
    pub(super) end: Vec<PreviewId>,
    /// Previews whose machine runs something else than they show.
    pub(super) restore: Vec<PreviewId>,
}

/// One call of [`State::step`]: its methods apply one event to the records and collect what follows from it.
pub(super) struct Step<'a> {
    pub(super) state: &'a mut State,
    pub(super) now: Timestamp,
    pub(super) outcome: Outcome,
    pub(super) preview_requests: PreviewRequests,
}

impl State {
    /// Applies one event. Nothing else changes the state.
    ///
    /// The effects may run once the changed records and the outbox are stored. [Durable](Effect::is_durable) effects
    /// stay in the [`outbox`](Self::outbox) until their outcome arrives. Repeated and late events change nothing.
    /// `new_id` makes the bits of ids for new records.
    pub fn step(
        &mut self,
        event: Event,
        now: Timestamp,
        new_id: &mut dyn FnMut() -> u128,
    ) -> Outcome {
        let (outcome, preview_requests) = (Outcome::default(), PreviewRequests::default());
        self.stepped_at = now;
        let mut step = Step { state: self, now, outcome, preview_requests };
        let is_tick = matches!(event, Event::Tick);
        step.apply(event);
        step.build_lost_images(new_id);
        step.begin_plannings();
        loop {
            step.schedule(new_id);
            step.schedule_previews(new_id);
            if !step.schedule_tests() {
                break;
            }
            if is_tick {
                // A test that no machine can run has ended only now, and its preview stayed for it.
                step.fire_preview_timeouts();
            }
        }
        step.warn_of_budgets();
        step.clean_up();
        step.report_changes();
        step.outcome
    }
}

impl Step<'_> {
    fn apply(&mut self, event: Event) {
        match event {
            Event::CoreStarted => self.start_core(),
            Event::Tick => self.fire_timeouts(),
            Event::RunRequested { run, project, environment } => {
                self.request_run(*run, project, environment);
            }
            Event::Delivered { delivery, event } => self.apply_delivery(delivery, event),
            Event::HeadMoved { run, environment, head, source } => {
                self.move_head(*run, environment, head, &source);
            }
            Event::PullRequestClosed { environment, at } => {
                self.close_pull_request(environment, at);
            }
            Event::CommandGiven { environment, command } => {
                self.check_command(environment, command);
            }
            Event::CommandChecked { environment, command, verdict } => {
                self.follow_command(environment, command, verdict);
                self.forget_empty_environments(BTreeSet::from([environment]));
            }
            Event::RunApproved { run, by } => self.approve_run(run, &by),
            Event::Reported { environment, wanted, result } => {
                self.reported(environment, wanted, result);
            }
            Event::RetryReports => self.retry_reports(),
            Event::ProjectSet { project } => self.set_project(project),
            Event::ProjectRemoved { project } => self.remove_project(project),
            Event::RunPlanned { run, plan } => self.plan_run(run, plan),
            Event::PlanDeferred { run, until } => self.defer_planning(run, until),
            Event::CancelRequested { run, reason } => self.cancel_run(run, reason),
            Event::MachineLaunched { machine, placement } => {
                self.machine_launched(machine, placement);
            }
            Event::LaunchFailed { machine, failure } => self.launch_failed(machine, failure),
            Event::EndedAtLaunch { machine, failure } => self.ended_at_launch(machine, failure),
            Event::MachineGone { machine, taken_back } => self.machine_gone(machine, taken_back),
            Event::MachineInterrupted { machine, interruption } => {
                self.machine_interrupted(machine, interruption);
            }
            Event::ProviderDescribed { provider, arches } => {
                self.state.note_offered(provider, arches);
            }
            Event::AgentConnected { machine, session, system_info, holds, previews } => {
                self.agent_connected(machine, session, system_info, &holds);
                self.resume_preview(machine, session, previews.as_ref());
            }
            Event::AgentDisconnected { machine, session } => {
                self.agent_disconnected(machine, session);
            }
            Event::JobStarted { machine, attempt } => self.start_job(machine, attempt),
            Event::JobReported { machine, attempt, report } => {
                self.report_job(machine, attempt, report);
            }
            Event::FilesNeedReset { machine, attempt } => self.reset_by_files(machine, attempt),
            Event::MachineRegistered { machine, name, arch, fleet } => {
                self.register_machine(machine, name, arch, fleet);
            }
            Event::MachineUnregistered { machine } => self.unregister_machine(machine),
            Event::ImageTagged { environment, variant, digest, result } => {
                self.image_tagged(environment, variant, &digest, result);
                self.forget_empty_environments(BTreeSet::from([environment]));
            }
            Event::EnvironmentClosed { environment } => {
                self.close_environment(environment, ClosedBy::Request);
            }
            Event::PreviewRequested { preview, at } => self.preview_requested(preview, at),
            Event::PreviewArchiveFailed { machine, preview, problem } => {
                self.archive_failed(machine, preview, problem);
            }
            Event::PreviewWakeRequested { preview } => self.preview_wake_requested(preview),
            Event::PreviewSleepRequested { preview } => {
                // What is tested stays as it is.
                if !self.state.is_tested(preview) {
                    self.send_to_sleep(preview, false);
                }
            }
            Event::PreviewEndRequested { preview } => {
                if let Some(preview) = self.state.previews.get(&preview) {
                    self.stop_preview(preview.environment);
                }
            }
            Event::PreviewResetRequested { preview } => self.preview_requests.reset.push(preview),
            Event::PreviewExtended { preview, by } => {
                self.extend_preview(preview, by);
            }
            Event::PreviewLabelRemoved { environment } => self.remove_preview_label(environment),
            Event::PreviewArchived { machine, preview, archive, problem } => {
                self.preview_archived(machine, preview, archive, problem);
            }
            Event::CleanedUp { environment, refs } => self.cleaned_up(environment, &refs),
            Event::SpotPriceChanged { machine, price } => self.change_price(machine, price),
            Event::BudgetAllowed { project, pull_request, amount } => {
                self.allow_budget(project, pull_request, amount);
            }
            Event::Forgotten { runs, machines, deliveries } => {
                self.forget(runs, machines);
                self.state.forget_deliveries(&deliveries);
            }
        }
    }

    /// Applies the event of a delivery, unless the delivery came before.
    fn apply_delivery(&mut self, delivery: DeliveryId, event: Option<Box<Event>>) {
        if self.state.note_delivery(delivery, self.now)
            && let Some(event) = event
        {
            self.apply(*event);
        }
    }

    fn forget(&mut self, runs: Vec<RunId>, machines: Vec<MachineId>) {
        let environment = |run: &RunId| self.state.runs.get(run).map(|run| run.environment);
        let environments = runs.iter().filter_map(environment).collect();
        for run in runs {
            self.state.forget_run(run);
        }
        self.forget_empty_environments(environments);
        for machine in machines {
            self.state.forget_machine(machine);
        }
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        if effect.is_durable() {
            self.state.add_to_outbox(effect.clone());
        }
        self.outcome.effects.push(effect);
    }

    pub(super) fn change_fingerprint(&mut self, change: FingerprintChange) {
        self.outcome.fingerprints.push(change);
    }

    pub(super) fn job_state(&self, job: JobId) -> Option<&JobState> {
        self.state.jobs.get(&job).map(|job| &job.state)
    }
}
