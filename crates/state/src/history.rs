//! Ended records leave the state when nothing in it refers to them any more, and come back for the events that need
//! them. So the memory and the time of a step depend on what is open, and not on what has been.
//!
//! [`State::step`] decides as if all records were there: the caller recalls what [`State::missing_for`] names before
//! each step, and takes [`State::take_ended`] away after it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Changes, CommandVerdict, Effect, Event, Job, JobOutcome, Machine, PreviewState, Run, State,
};
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};

/// A run in a final state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedRun {
    pub run: Run,
    /// In the order of the plan.
    pub jobs: Vec<Job>,
}

/// Records that have left the state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ended {
    pub runs: Vec<EndedRun>,
    pub machines: Vec<Machine>,
}

impl Ended {
    pub fn extend(&mut self, others: Self) {
        self.runs.extend(others.runs);
        self.machines.extend(others.machines);
    }

    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.machines.is_empty()
    }

    /// The ids of all of them.
    pub fn ids(&self) -> Changes {
        let jobs = self.runs.iter().flat_map(|ended| &ended.jobs);
        Changes {
            runs: self.runs.iter().map(|ended| ended.run.id).collect(),
            jobs: jobs.map(|job| job.id).collect(),
            machines: self.machines.iter().map(|machine| machine.id).collect(),
            ..Changes::default()
        }
    }
}

/// Records that an event refers to and that are not in the state. Some may not exist at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    pub runs: BTreeSet<RunId>,
    /// Jobs, whose runs are meant.
    pub jobs: BTreeSet<JobId>,
    pub machines: BTreeSet<MachineId>,
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.jobs.is_empty() && self.machines.is_empty()
    }
}

impl State {
    /// The records that must be [recalled](Self::recall) before `event` is stepped. If some were recalled, ask again,
    /// because they may refer to others.
    pub fn missing_for(&self, event: &Event) -> Missing {
        let mut missing = Missing::default();
        self.collect_missing(event, &mut missing);
        // What a machine has worked for tells which caches it may have written.
        let machines = missing.machines.iter().filter_map(|machine| self.machines.get(machine));
        missing.jobs.extend(machines.flat_map(Machine::all_jobs));
        missing.runs.retain(|run| !self.runs.contains_key(run));
        missing.jobs.retain(|job| !self.jobs.contains_key(job));
        missing.machines.retain(|machine| !self.machines.contains_key(machine));
        missing
    }

    fn collect_missing(&self, event: &Event, missing: &mut Missing) {
        match event {
            Event::Delivered { event, .. } => {
                if let Some(event) = event {
                    self.collect_missing(event, missing);
                }
            }
            Event::RunRequested { run, .. } | Event::HeadMoved { run, .. } => {
                self.collect_of_request(run, missing);
            }
            Event::CommandChecked { environment, verdict, .. } => {
                // Its outcome is reported with the reported run, and a preview is that of the newest run.
                missing.runs.extend(self.reported_run(*environment));
                let found = self.environments.get(environment);
                missing.runs.extend(found.and_then(|environment| environment.newest_run));
                let preview = self.preview_of(*environment).map(|preview| preview.id);
                missing.jobs.extend(preview.and_then(|preview| self.failed_job_of(preview)));
                if let CommandVerdict::Rebuild(run) = verdict {
                    self.collect_of_request(run, missing);
                }
            }
            Event::CoreStarted | Event::RetryReports => {
                let failed =
                    self.environments.values().filter(|found| found.report.problem.is_some());
                missing.runs.extend(failed.filter_map(|environment| environment.report.run));
            }
            Event::RunPlanned { run, .. } => {
                missing.runs.extend(self.runs.get(run).and_then(|run| run.reuses));
            }
            Event::JobStarted { machine, attempt } | Event::FilesNeedReset { machine, attempt } => {
                missing.machines.insert(*machine);
                missing.jobs.insert(attempt.job);
            }
            Event::JobReported { machine, attempt, report } => {
                missing.machines.insert(*machine);
                missing.jobs.insert(attempt.job);
                let run = self.jobs.get(&attempt.job).and_then(|job| self.runs.get(&job.run));
                if let (JobOutcome::Failed(failure), Some(run)) = (&report.outcome, run)
                    && failure.lacks_image()
                {
                    self.collect_newest(run.environment, missing);
                }
            }
            Event::AgentConnected { machine, holds, .. } => {
                missing.machines.insert(*machine);
                missing.jobs.extend(holds.iter().map(|attempt| attempt.job));
            }
            Event::MachineLaunched { machine, .. }
            | Event::LaunchFailed { machine, .. }
            | Event::EndedAtLaunch { machine, .. }
            | Event::MachineGone { machine, .. }
            | Event::MachineInterrupted { machine, .. }
            | Event::AgentDisconnected { machine, .. }
            | Event::PreviewArchived { machine, .. }
            | Event::PreviewArchiveFailed { machine, .. }
            | Event::MachineRegistered { machine, .. }
            | Event::MachineUnregistered { machine } => {
                missing.machines.insert(*machine);
            }
            Event::PreviewResetRequested { preview } => {
                missing.jobs.extend(self.failed_job_of(*preview));
            }
            Event::PreviewLabelRemoved { environment } => {
                let preview = self.preview_of(*environment).map(|preview| preview.id);
                missing.jobs.extend(preview.and_then(|preview| self.failed_job_of(preview)));
            }
            Event::Forgotten { runs, machines, .. } => {
                missing.runs.extend(runs);
                missing.machines.extend(machines);
            }
            // An ended run does not change, and environments are always there.
            Event::RunApproved { .. }
            | Event::CancelRequested { .. }
            | Event::PlanDeferred { .. }
            | Event::PullRequestClosed { .. }
            | Event::CommandGiven { .. }
            | Event::Reported { .. }
            | Event::ImageTagged { .. }
            | Event::EnvironmentClosed { .. }
            | Event::CleanedUp { .. }
            | Event::PreviewRequested { .. }
            | Event::PreviewWakeRequested { .. }
            | Event::PreviewSleepRequested { .. }
            | Event::PreviewEndRequested { .. }
            | Event::PreviewExtended { .. }
            | Event::ProjectSet { .. }
            | Event::ProjectRemoved { .. }
            | Event::ProviderDescribed { .. }
            | Event::SpotPriceChanged { .. }
            | Event::BudgetAllowed { .. }
            | Event::Tick => {}
        }
    }

    /// A repeated request changes nothing.
    fn collect_of_request(&self, run: &Run, missing: &mut Missing) {
        missing.runs.insert(run.id);
        if run.rebuilds.is_some() && run.trigger.builds() {
            self.collect_newest(run.environment, missing);
        }
    }

    /// The runs with which a rebuild is compared.
    fn collect_newest(&self, environment: EnvironmentId, missing: &mut Missing) {
        let found = self.environments.get(&environment);
        missing.runs.extend(found.and_then(|environment| environment.newest_run));
        missing.runs.extend(self.reported_run(environment));
    }

    fn reported_run(&self, environment: EnvironmentId) -> Option<RunId> {
        self.environments.get(&environment)?.report.run
    }

    /// The first deployment of a preview if it failed. A reset repeats it, and it says whether the preview depends on a label.
    fn failed_job_of(&self, preview: PreviewId) -> Option<JobId> {
        match self.previews.get(&preview)?.state {
            PreviewState::Failed { job } => Some(job),
            _ => None,
        }
    }

    /// Takes records back that have left the state. They count as changed, so the caller stores them again.
    pub fn recall(&mut self, ended: Ended) {
        for EndedRun { run, jobs } in ended.runs {
            self.insert_recalled(run, jobs);
        }
        for machine in ended.machines {
            self.insert_machine(machine);
        }
    }

    /// Removes the ended records that nothing refers to. They count as changed; the caller stores them elsewhere.
    pub fn take_ended(&mut self) -> Ended {
        let (runs, machines) = (&self.index.ended_runs, &self.index.terminated_machines);
        if runs.is_empty() && machines.is_empty() {
            return Ended::default();
        }
        let at_work: BTreeSet<RunId> = self.runs_at_work().collect();
        let runs = runs.iter().filter(|run| {
            !at_work.contains(run) && !self.has_effects(**run) && !self.is_shown(**run)
        });
        let runs: Vec<RunId> = runs.copied().collect();
        let awaited: BTreeSet<MachineId> =
            self.outbox.values().filter_map(Effect::machine).collect();
        let machines: Vec<MachineId> = machines.difference(&awaited).copied().collect();
        Ended {
            runs: runs.into_iter().filter_map(|run| self.take_run(run)).collect(),
            machines: machines
                .into_iter()
                .filter_map(|machine| self.take_machine(machine))
                .collect(),
        }
    }

    /// The runs of the jobs of live machines.
    fn runs_at_work(&self) -> impl Iterator<Item = RunId> {
        let jobs = self.live_machines().flat_map(|machine| {
            let payer = machine.bill.as_ref().map(|bill| bill.job);
            machine.jobs().chain(machine.requested_for).chain(payer)
        });
        jobs.filter_map(|job| self.jobs.get(&job)).map(|job| job.run)
    }

    /// Whether the run is reported together with an open preview, which may change at any time.
    fn is_shown(&self, run: RunId) -> bool {
        let environment = self.runs.get(&run).map(|run| run.environment);
        environment.is_some_and(|environment| {
            self.reported_run(environment) == Some(run)
                && self.preview_of(environment).is_some_and(|preview| !preview.has_ended())
        })
    }

    /// Whether an effect of the run's environment is under way, which may read the run.
    fn has_effects(&self, run: RunId) -> bool {
        let environment = self.runs.get(&run).map(|run| run.environment);
        environment.is_some_and(|environment| self.effects_of(environment).next().is_some())
    }
}

impl Machine {
    /// The jobs that it was requested for, works on, or may still have to stop.
    fn all_jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs().chain(self.requested_for)
    }
}
