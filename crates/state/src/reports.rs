//! Reports to GitHub: one run of each environment, at most one report of an environment at a time.

use std::collections::BTreeSet;
use std::mem;

use super::step::Step;
use super::{Effect, PublishedReport, State};
use crate::ids::{EnvironmentId, RunId};

impl Step<'_> {
    /// Requests reports of the environments whose reported run this step has changed.
    pub(super) fn report_changes(&mut self) {
        let runs = mem::take(&mut self.state.index.changed_runs);
        let mut environments = mem::take(&mut self.state.index.environments_to_report);
        environments
            .extend(runs.into_iter().filter_map(|run| self.state.environment_reporting(run)));
        for id in environments {
            if self.state.is_reported(id) {
                self.state.change_environment(id, |environment| environment.report.wanted += 1);
                self.request_report(id);
            }
        }
    }

    fn request_report(&mut self, environment: EnvironmentId) {
        let report = Effect::Report { environment };
        if !self.state.is_in_outbox(&report) {
            self.emit(report);
        }
    }

    pub(super) fn reported(
        &mut self,
        id: EnvironmentId,
        wanted: u64,
        result: Result<PublishedReport, String>,
    ) {
        if !self.state.remove_from_outbox(&Effect::Report { environment: id }) {
            return;
        }
        let mut is_outdated = false;
        self.state.change_environment(id, |environment| {
            let report = &mut environment.report;
            report.published = wanted;
            is_outdated = report.wanted > wanted;
            match result {
                Ok(published) => {
                    report.comment = published.comment;
                    report.comment_digest = published.comment_digest;
                    report.commit = published.commit;
                    report.statuses = published.statuses;
                    report.deployments = published.deployments;
                    report.problem = None;
                }
                Err(problem) => report.problem = Some(problem),
            }
        });
        if is_outdated && self.state.is_reported(id) {
            return self.request_report(id);
        }
        self.forget_empty_environments(BTreeSet::from([id]));
    }

    /// Requests the reports again that failed.
    pub(super) fn retry_reports(&mut self) {
        let failed = self
            .state
            .environments
            .values()
            .filter(|environment| environment.report.problem.is_some());
        let failed: Vec<EnvironmentId> = failed.map(|environment| environment.id).collect();
        for id in failed {
            self.state.request_report_of(id);
        }
    }
}

impl State {
    /// Has the environment reported at the end of this step, whether its run changes or not.
    pub(super) fn request_report_of(&mut self, id: EnvironmentId) {
        self.index.environments_to_report.insert(id);
    }

    /// The environment whose reported run is `run`.
    fn environment_reporting(&self, run: RunId) -> Option<EnvironmentId> {
        let environment = self.runs.get(&run)?.environment;
        let reported = self.environments.get(&environment)?.report.run;
        (reported == Some(run)).then_some(environment)
    }

    /// Whether the environment has a reported run and a repository at GitHub.
    fn is_reported(&self, id: EnvironmentId) -> bool {
        let Some(environment) = self.environments.get(&id) else { return false };
        let project = self.projects.get(&environment.project);
        environment.report.run.is_some() && project.is_some_and(|project| project.github.is_some())
    }
}
