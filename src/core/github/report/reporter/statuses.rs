//! Writes the statuses of a commit, and those of deployments, which count against the same limit.

use std::collections::BTreeMap;
use std::pin::pin;

use stagely_protocol::CommitSha;
use stagely_state::{CommitStatus, PublishedDeployment};

use super::deployments::{DEPLOYMENT, DeploymentWriter};
use super::{EnvironmentReporter, WRITE_RETRIES, WriteKind, WriteRefused};
use crate::core::github::GithubError;
use crate::core::github::report::deployments::DeploymentWrite;
use crate::core::github::report::statuses;
use crate::core::github::report::target::ReportTarget;
use crate::core::github::report::view::ReportView;

const STATUS: WriteKind =
    WriteKind { what: "a commit's status", permission: "Commit statuses: write" };

/// The statuses of a commit as GitHub has them.
#[derive(Clone, Default)]
pub(super) struct PublishedStatuses {
    pub(super) commit: Option<CommitSha>,
    pub(super) by_context: BTreeMap<String, CommitStatus>,
    pub(super) deployments: Vec<PublishedDeployment>,
}

/// The next request.
enum StatusWrite {
    Status { commit: CommitSha, context: String, status: CommitStatus },
    Deployment(DeploymentWrite),
}

impl<T: ReportTarget> EnvironmentReporter<T> {
    /// Publishes the statuses, again and again until `publishing_comment` is done: the comment may wait much
    /// longer, for its rate limit or for a response.
    pub(super) async fn publish_statuses_beside<R>(
        &self,
        published: &mut PublishedStatuses,
        publishing_comment: impl Future<Output = R>,
    ) -> (R, Result<u64, WriteRefused>) {
        let mut publishing_comment = pin!(publishing_comment);
        let mut comment_result = None;
        let mut changes = self.records.changes();
        loop {
            changes.mark_unchanged();
            let result = {
                let mut publishing = pin!(self.publish_statuses(published));
                loop {
                    tokio::select! {
                        result = &mut publishing => break result,
                        done = &mut publishing_comment, if comment_result.is_none() => {
                            comment_result = Some(done);
                        }
                    }
                }
            };
            if let Some(comment_result) = comment_result {
                return (comment_result, result);
            }
            tokio::select! {
                comment_result = &mut publishing_comment => return (comment_result, result),
                more = changes.changed(), if result.is_ok() => if more.is_err() {
                    return (publishing_comment.await, result);
                },
            }
        }
    }

    async fn publish_statuses(
        &self,
        published: &mut PublishedStatuses,
    ) -> Result<u64, WriteRefused> {
        let mut backoff = WRITE_RETRIES.start();
        let mut deployments = DeploymentWriter::default();
        loop {
            if let (wanted, None) = self.next_write(published, &deployments) {
                return Ok(wanted);
            }
            let permit = self.queue.status_permit(self.environment).await;
            self.target.status_allowed().await;
            // The records may have changed during the wait.
            let (wanted, next) = self.next_write(published, &deployments);
            let (kind, written) = match next {
                None => return Ok(wanted),
                Some(StatusWrite::Status { commit, context, status }) => {
                    (STATUS, self.write_status(published, commit, context, status).await)
                }
                Some(StatusWrite::Deployment(write)) => {
                    let known = &mut published.deployments;
                    (DEPLOYMENT, deployments.write(self, known, write).await)
                }
            };
            drop(permit);
            self.queue.note_write(self.environment, self.interval);
            match written {
                Ok(()) => backoff = WRITE_RETRIES.start(),
                Err(error) => self
                    .wait_for_retry(error, &mut backoff, kind)
                    .await
                    .map_err(|problem| WriteRefused { wanted, problem })?,
            }
        }
    }

    async fn write_status(
        &self,
        published: &mut PublishedStatuses,
        commit: CommitSha,
        context: String,
        status: CommitStatus,
    ) -> Result<(), GithubError> {
        self.target.set_status(&commit, &context, &status).await?;
        if published.commit.as_ref() != Some(&commit) {
            published.commit = Some(commit);
            published.by_context.clear();
        }
        published.by_context.insert(context, status);
        Ok(())
    }

    /// The first difference at GitHub, and the [`Report::wanted`](stagely_state::Report::wanted) of its records.
    fn next_write(
        &self,
        published: &PublishedStatuses,
        deployments: &DeploymentWriter,
    ) -> (u64, Option<StatusWrite>) {
        let records = self.records.read();
        let Some(view) = self.view(&records) else { return (0, None) };
        let wanted = view.environment.report.wanted;
        let next = next_status(&view, published).or_else(|| {
            deployments.next(self, &view, &published.deployments).map(StatusWrite::Deployment)
        });
        (wanted, next)
    }
}

/// The first status that differs at GitHub.
fn next_status(view: &ReportView<'_>, published: &PublishedStatuses) -> Option<StatusWrite> {
    let (commit, statuses) = statuses::of(view)?;
    let is_same_commit = published.commit.as_ref() == Some(&commit);
    let at_github = |context: &String| published.by_context.get(context).filter(|_| is_same_commit);
    let mut statuses = statuses.into_iter();
    let next = statuses.find(|(context, status)| at_github(context) != Some(status));
    next.map(|(context, status)| StatusWrite::Status { commit, context, status })
}
