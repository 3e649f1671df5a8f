//! Tells GitHub of an environment.

use std::sync::Arc;

use stagely_state::ids::EnvironmentId;
use stagely_state::{Event, Project};

use crate::config::Config;
use crate::core::github::Github;
use crate::core::github::report::{AtGithub, Reporting, Teller, told};
use crate::core::logs::LogStore;
use crate::core::records::SharedRecords;

/// Reports environments to GitHub.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) logs: LogStore,
    pub(crate) github: Github,
    pub(crate) reporting: Reporting,
}

impl Reporter {
    /// Tells until it is told, or GitHub refuses.
    pub(super) async fn report(&self, environment: EnvironmentId) -> Event {
        let Some((project, number)) = self.place_of(environment) else {
            self.reporting.remember(environment, None);
            let records = self.records.read();
            let report = records.environments.get(&environment).map(|found| found.report.clone());
            let report = report.unwrap_or_default();
            return Event::Reported {
                environment,
                wanted: report.wanted,
                result: Ok(told(report)),
            };
        };
        let teller = Teller {
            place: AtGithub { github: self.github.clone(), project, number },
            has_comment: number.is_some(),
            environment,
            records: self.records.clone(),
            logs: self.logs.clone(),
            public_url: self.config.core.url(),
            approval_label: self.config.github.approval_label.clone(),
            reporting: self.reporting.clone(),
            interval: self.config.github.report_interval,
        };
        let (wanted, result) = teller.tell().await;
        Event::Reported { environment, wanted, result }
    }

    /// The repository and the pull request; `None` where nobody listens.
    fn place_of(&self, environment: EnvironmentId) -> Option<(Project, Option<u64>)> {
        let records = self.records.read();
        let environment = records.environments.get(&environment)?;
        let project = records.projects.get(&environment.project)?;
        project.github.as_ref()?;
        Some((project.clone(), environment.pull_request))
    }
}
