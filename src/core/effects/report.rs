//! Publishes the reports of environments at GitHub.

use std::sync::Arc;

use stagely_state::ids::EnvironmentId;
use stagely_state::{Event, Project};

use crate::config::Config;
use crate::core::github::Github;
use crate::core::github::report::queue::ReportQueue;
use crate::core::github::report::reporter::{EnvironmentReporter, published};
use crate::core::github::report::target::GithubTarget;
use crate::core::logs::LogStore;
use crate::core::previews::PreviewLinks;
use crate::core::records::SharedRecords;

/// Reports environments to GitHub.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) logs: LogStore,
    pub(crate) github: Github,
    pub(crate) links: PreviewLinks,
    pub(crate) queue: ReportQueue,
}

impl Reporter {
    /// Tries until the report is published or refused.
    pub(super) async fn report(&self, environment: EnvironmentId) -> Event {
        let Some((project, number)) = self.linked_project(environment) else {
            self.queue.remember(environment, None);
            let (wanted, published) = published(&self.records, environment);
            return Event::Reported { environment, wanted, result: Ok(published) };
        };
        let reporter = EnvironmentReporter {
            target: GithubTarget { github: self.github.clone(), project, number },
            has_comment: number.is_some(),
            environment,
            records: self.records.clone(),
            logs: self.logs.clone(),
            public_url: self.config.core.url(),
            approval_label: self.config.github.approval_label.clone(),
            open_logs: self.config.core.open_logs,
            links: self.links.clone(),
            queue: self.queue.clone(),
            interval: self.config.github.report_interval,
        };
        let (wanted, result) = reporter.publish().await;
        Event::Reported { environment, wanted, result }
    }

    /// The project and the pull request of an environment; `None` if its project has no repository at GitHub.
    fn linked_project(&self, environment: EnvironmentId) -> Option<(Project, Option<u64>)> {
        let records = self.records.read();
        let environment = records.environments.get(&environment)?;
        let project = records.projects.get(&environment.project)?;
        project.github.as_ref()?;
        Some((project.clone(), environment.pull_request))
    }
}
