//! What GitHub is told: of each environment one run, as it is at the moment of telling.

use std::collections::BTreeSet;
use std::mem;

use super::step::Step;
use super::{Effect, State, Told};
use crate::ids::{EnvironmentId, RunId};

impl Step<'_> {
    /// Lets GitHub be told of what this step changed.
    pub(super) fn report_changes(&mut self) {
        let runs = mem::take(&mut self.state.index.touched_runs);
        let mut environments = mem::take(&mut self.state.index.touched_environments);
        environments.extend(runs.into_iter().filter_map(|run| self.state.shown_in(run)));
        for id in environments {
            if self.state.is_reported(id) {
                self.state.change_environment(id, |environment| environment.report.wanted += 1);
                self.ask_for_report(id);
            }
        }
    }

    fn ask_for_report(&mut self, environment: EnvironmentId) {
        let report = Effect::Report { environment };
        if !self.state.is_in_outbox(&report) {
            self.emit(report);
        }
    }

    pub(super) fn reported(
        &mut self,
        id: EnvironmentId,
        wanted: u64,
        result: Result<Told, String>,
    ) {
        if !self.state.remove_from_outbox(&Effect::Report { environment: id }) {
            return;
        }
        let mut is_outdated = false;
        self.state.change_environment(id, |environment| {
            let report = &mut environment.report;
            report.told = wanted;
            is_outdated = report.wanted > wanted;
            match result {
                Ok(told) => {
                    report.comment = told.comment;
                    report.comment_digest = told.comment_digest;
                    report.commit = told.commit;
                    report.statuses = told.statuses;
                    report.problem = None;
                }
                Err(problem) => report.problem = Some(problem),
            }
        });
        if is_outdated && self.state.is_reported(id) {
            return self.ask_for_report(id);
        }
        self.state.forget_empty_environments(BTreeSet::from([id]));
    }

    /// What GitHub refused to be told may succeed after whoever runs core has changed something.
    pub(super) fn report_again(&mut self) {
        let failed = self
            .state
            .environments
            .values()
            .filter(|environment| environment.report.problem.is_some());
        let failed: Vec<EnvironmentId> = failed.map(|environment| environment.id).collect();
        for id in failed {
            self.state.touch(id);
        }
    }
}

impl State {
    /// Lets GitHub be told of the environment in any case.
    pub(super) fn touch(&mut self, id: EnvironmentId) {
        self.index.touched_environments.insert(id);
    }

    /// The environment that tells of `run`. It tells of no other: those are superseded, or somebody's own.
    fn shown_in(&self, run: RunId) -> Option<EnvironmentId> {
        let environment = self.runs.get(&run)?.environment;
        let told = self.environments.get(&environment)?.report.run;
        (told == Some(run)).then_some(environment)
    }

    /// Whether GitHub has a place for what is told of the environment.
    fn is_reported(&self, id: EnvironmentId) -> bool {
        let Some(environment) = self.environments.get(&id) else { return false };
        let project = self.projects.get(&environment.project);
        let is_told = environment.report.run.is_some_and(|run| self.runs.contains_key(&run));
        is_told && project.is_some_and(|project| project.github.is_some())
    }
}
