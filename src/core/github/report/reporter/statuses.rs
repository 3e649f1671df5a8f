//! Writes the statuses of a commit.

use std::collections::BTreeMap;
use std::pin::pin;

use stagely_protocol::CommitSha;
use stagely_state::CommitStatus;

use super::{EnvironmentReporter, WRITE_RETRIES, WriteKind, WriteRefused};
use crate::core::github::report::statuses;
use crate::core::github::report::target::ReportTarget;

const STATUS: WriteKind =
    WriteKind { what: "a commit's status", permission: "Commit statuses: write" };

/// The statuses of a commit as GitHub has them.
#[derive(Clone, Default)]
pub(super) struct PublishedStatuses {
    pub(super) commit: Option<CommitSha>,
    pub(super) by_context: BTreeMap<String, CommitStatus>,
}

struct NextStatus {
    commit: CommitSha,
    context: String,
    status: CommitStatus,
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
        loop {
            if let (wanted, None) = self.next_status(published) {
                return Ok(wanted);
            }
            let permit = self.queue.status_permit(self.environment).await;
            self.target.status_allowed().await;
            // The records may have changed during the wait.
            let (wanted, next) = self.next_status(published);
            let Some(NextStatus { commit, context, status }) = next else { return Ok(wanted) };
            let written = self.target.set_status(&commit, &context, &status).await;
            drop(permit);
            self.queue.note_write(self.environment, self.interval);
            match written {
                Ok(()) => {
                    if published.commit.as_ref() != Some(&commit) {
                        let by_context = BTreeMap::new();
                        *published = PublishedStatuses { commit: Some(commit), by_context };
                    }
                    published.by_context.insert(context, status);
                    backoff = WRITE_RETRIES.start();
                }
                Err(error) => self
                    .wait_for_retry(error, &mut backoff, STATUS)
                    .await
                    .map_err(|problem| WriteRefused { wanted, problem })?,
            }
        }
    }

    /// The first status that differs at GitHub, and the
    /// [`Report::wanted`](stagely_state::Report::wanted) of its records.
    fn next_status(&self, published: &PublishedStatuses) -> (u64, Option<NextStatus>) {
        let records = self.records.read();
        let Some(view) = self.view(&records) else { return (0, None) };
        let wanted = view.environment.report.wanted;
        let Some((commit, statuses)) = statuses::of(&view) else { return (wanted, None) };
        let is_same_commit = published.commit.as_ref() == Some(&commit);
        let at_github =
            |context: &String| published.by_context.get(context).filter(|_| is_same_commit);
        let mut statuses = statuses.into_iter();
        let next = statuses.find(|(context, status)| at_github(context) != Some(status));
        (wanted, next.map(|(context, status)| NextStatus { commit, context, status }))
    }
}
