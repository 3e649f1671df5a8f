//! Writes deployments. Without the permission for them, the report is complete all the same.

use std::collections::BTreeSet;

use stagely_protocol::{CommitSha, ErrorChain};
use stagely_state::{DeploymentStatus, PublishedDeployment};
use tracing::warn;

use super::{EnvironmentReporter, WriteKind};
use crate::core::github::report::deployments::{self, DeploymentWrite};
use crate::core::github::report::target::ReportTarget;
use crate::core::github::report::view::ReportView;
use crate::core::github::{GithubError, NewDeployment};

pub(super) const DEPLOYMENT: WriteKind =
    WriteKind { what: "a deployment", permission: "Deployments: write" };

/// Deployments that one report replaces. If GitHub takes no status of their successors, something else is wrong.
const REPLACED_MAX: usize = 1;

/// What GitHub has refused while a report was written.
#[derive(Default)]
pub(super) struct DeploymentWriter {
    /// The deployments that get no further status.
    replaced: BTreeSet<u64>,
    is_refused: bool,
}

impl DeploymentWriter {
    /// The next request, if there may be one.
    pub(super) fn next<T: ReportTarget>(
        &self,
        reporter: &EnvironmentReporter<T>,
        view: &ReportView<'_>,
        published: &[PublishedDeployment],
    ) -> Option<DeploymentWrite> {
        if self.is_refused || !reporter.target.may_deploy() {
            return None;
        }
        let next = deployments::next_write(view, published)?;
        let is_refused = |commit: &CommitSha| {
            reporter.queue.refused_deployment(reporter.environment).as_ref() == Some(commit)
        };
        match &next {
            DeploymentWrite::Create { commit } if is_refused(commit) => None,
            DeploymentWrite::Create { .. } | DeploymentWrite::SetStatus { .. } => Some(next),
        }
    }

    /// Sends the request. Only errors that may pass are returned.
    pub(super) async fn write<T: ReportTarget>(
        &mut self,
        reporter: &EnvironmentReporter<T>,
        published: &mut Vec<PublishedDeployment>,
        write: DeploymentWrite,
    ) -> Result<(), GithubError> {
        match write {
            DeploymentWrite::Create { commit } => self.create(reporter, published, commit).await,
            DeploymentWrite::SetStatus { id, status } => {
                self.set_status(reporter, published, id, status).await
            }
        }
    }

    async fn create<T: ReportTarget>(
        &mut self,
        reporter: &EnvironmentReporter<T>,
        published: &mut Vec<PublishedDeployment>,
        commit: CommitSha,
    ) -> Result<(), GithubError> {
        let new = {
            let records = reporter.records.read();
            let Some(view) = reporter.view(&records) else { return Ok(()) };
            NewDeployment {
                commit: commit.clone(),
                environment: view.environment.name.clone(),
                is_transient: view.environment.pull_request.is_some(),
                marker: reporter.environment.to_string(),
                replaced: self.replaced.clone(),
            }
        };
        match reporter.target.create_deployment(&new).await {
            Ok(id) => {
                published.push(PublishedDeployment { id, commit, status: None });
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.is_refused = true;
                if reporter.target.may_deploy() {
                    let environment = reporter.environment;
                    warn!(%environment, %commit, error = %ErrorChain(&error), "GitHub has no deployment of a preview");
                    reporter.queue.refuse_deployment(environment, commit);
                }
                Ok(())
            }
        }
    }

    async fn set_status<T: ReportTarget>(
        &mut self,
        reporter: &EnvironmentReporter<T>,
        published: &mut Vec<PublishedDeployment>,
        id: u64,
        status: DeploymentStatus,
    ) -> Result<(), GithubError> {
        match reporter.target.set_deployment_status(id, &status).await {
            Ok(()) => {
                let records = reporter.records.read();
                let view = reporter.view(&records);
                deployments::note_status(view.as_ref(), published, id, status);
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                let environment = reporter.environment;
                warn!(%environment, deployment = id, error = %ErrorChain(&error), "a deployment has no new status");
                // Somebody has deleted it, or it has had too many statuses. Another one takes its place.
                let index = published.iter().position(|known| known.id == id);
                let commit = index.map(|index| published.remove(index).commit);
                self.replaced.insert(id);
                if self.replaced.len() > REPLACED_MAX
                    && let Some(commit) = commit
                {
                    self.is_refused = true;
                    reporter.queue.refuse_deployment(environment, commit);
                }
                Ok(())
            }
        }
    }
}
