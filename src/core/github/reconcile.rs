//! Compares open pull requests at GitHub with the records, and reads failed deliveries again, so that a lost
//! delivery is made up for.

mod deliveries;
mod differences;
mod reads;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use stagely_protocol::CommitSha;
use stagely_state::ids::ProjectId;
use stagely_state::{Event, Project, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::differences::{Differences, KnownPullRequest, differences};
use self::reads::GithubReads;
use self::status::{LastReconcile, ReconcileStatus};
use super::{GithubError, PullRequest, PullRequestState, Repository};
use crate::config::Config;
use crate::core::clock::now;
use crate::core::intake::github_events::{self, Ignored};
use crate::core::intake::{IngestOutcome, Intake, IntakeError};
use crate::core::records::{Records, SharedRecords};

/// Projects that are compared at once. More would use up GitHub's limits, which urgent requests need.
const AT_ONCE: usize = 4;

/// The shortest time between two rounds.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Compares all projects in rounds.
pub(crate) struct Reconciler<G> {
    pub(crate) github: G,
    pub(crate) config: Arc<Config>,
    pub(crate) records: SharedRecords,
    pub(crate) intake: Intake,
    pub(crate) status: ReconcileStatus,
}

/// A comparison has failed.
struct ReconcileError {
    /// For people.
    problem: String,
    /// The end of a rate limit.
    until: Option<Timestamp>,
}

impl From<GithubError> for ReconcileError {
    fn from(error: GithubError) -> Self {
        let until = match &error {
            GithubError::RateLimited { until } => Some(*until),
            _ => None,
        };
        Self { problem: error.to_string(), until }
    }
}

impl<E: Display> From<IntakeError<E>> for ReconcileError {
    fn from(error: IntakeError<E>) -> Self {
        Self { problem: error.to_string(), until: None }
    }
}

impl<G: GithubReads> Reconciler<G> {
    /// Starts a round at once, after each interval, when it is triggered, and at the end of a rate limit, until
    /// `stop` fires.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            let Some(until) = stop.run_until_cancelled(self.round()).await else { return };
            let interval = self.config.github.reconcile_interval;
            // The minimum: without it a limit of one project alone could start rounds without a pause.
            let wait =
                until.map_or(interval, |until| until.since(now()).max(PAUSE_MIN).min(interval));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.status.triggered() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Compares all projects once. Returns the end of the latest rate limit that was met.
    async fn round(&self) -> Option<Timestamp> {
        let projects: Vec<Project> = {
            let records = self.records.read();
            records.projects.values().filter(|project| project.github.is_some()).cloned().collect()
        };
        if projects.is_empty() {
            return None;
        }
        let compared = stream::iter(projects).map(|project| self.compare(project));
        let compared: Vec<_> = compared.buffer_unordered(AT_ONCE).collect().await;
        let mut until = None;
        let mut listed = Vec::new();
        for (project, result) in compared {
            let id = project.id;
            let problem = match result {
                Ok(()) => {
                    listed.push(project);
                    None
                }
                Err(ReconcileError { problem, until: limit }) => {
                    warn!(project = project.name, problem, "not compared with its repository");
                    until = until.max(limit);
                    Some(problem)
                }
            };
            self.status.set_last(id, LastReconcile { at: now(), problem });
        }
        // After the lists, which are newer than failed deliveries about the same pull requests.
        let failure = self.ingest_failed_deliveries(&listed).await.err();
        until = until.max(failure.as_ref().and_then(|failure| failure.until));
        self.status.set_deliveries_problem(failure.map(|failure| failure.problem));
        self.retry_reports().await;
        until
    }

    /// Lets reports be sent again that GitHub refused.
    async fn retry_reports(&self) {
        let has_refused = {
            let records = self.records.read();
            let mut environments = records.environments.values();
            environments.any(|environment| environment.report.problem.is_some())
        };
        if has_refused {
            // An error means that core stops. The next core starts with all reports.
            let _ = self.intake.ingest(None, |_| Ok(Event::RetryReports)).await;
        }
    }

    async fn compare(&self, project: Project) -> (Project, Result<(), ReconcileError>) {
        let result = self.compare_project(&project).await;
        (project, result)
    }

    async fn compare_project(&self, project: &Project) -> Result<(), ReconcileError> {
        // Read before the list is asked for: otherwise an event that comes meanwhile looks like a difference.
        let known = self.known_pull_requests(project.id);
        let listed = self.github.open_pull_requests(project).await?;
        let Differences { moved, missing } = differences(&known, &listed);
        if !moved.is_empty() {
            let repository = self.github.repository(project).await?;
            for pull_request in moved {
                let head = known.get(&pull_request.number).and_then(KnownPullRequest::open_head);
                self.head_moved(repository.clone(), pull_request.clone(), head).await?;
            }
        }
        for number in missing {
            let pull_request = match self.github.pull_request(project, number).await {
                // A request for a run may name any number.
                Err(GithubError::NotFound(_)) => continue,
                response => response?,
            };
            if pull_request.state == PullRequestState::Closed {
                let environment = known[&number].environment;
                let at = pull_request.closed_at.unwrap_or(pull_request.updated_at);
                self.ingest(move |_| Ok(Event::PullRequestClosed { environment, at })).await?;
            }
        }
        Ok(())
    }

    fn known_pull_requests(&self, project: ProjectId) -> BTreeMap<u64, KnownPullRequest> {
        let records = self.records.read();
        let environments = records.environments.values();
        let known = environments.filter(|environment| environment.project == project);
        let known = known.filter_map(|environment| {
            let known = KnownPullRequest {
                environment: environment.id,
                head: environment.head.as_ref().map(|head| head.commit.clone()),
                is_closed: environment.state.is_closed(),
            };
            Some((environment.pull_request?, known))
        });
        known.collect()
    }

    async fn head_moved(
        &self,
        repository: Repository,
        pull_request: PullRequest,
        believed: Option<CommitSha>,
    ) -> Result<(), ReconcileError> {
        let config = Arc::clone(&self.config);
        let number = pull_request.number;
        let make = move |records: &_| {
            github_events::listed(records, &config.github, &repository, &pull_request, believed)
        };
        if let IngestOutcome::Accepted(_) = self.ingest(make).await? {
            info!(number, "found a change of a pull request that no delivery reported");
        }
        Ok(())
    }

    async fn ingest(
        &self,
        make: impl FnOnce(&Records) -> Result<Event, Ignored> + Send + 'static,
    ) -> Result<IngestOutcome, ReconcileError> {
        Ok(self.intake.ingest(None, make).await?)
    }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;
