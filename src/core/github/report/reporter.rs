//! Publishes an environment's comment, statuses and deployments.
//!
//! The records are read right before each write, and the digest of the written text is kept. So the last state
//! is published whatever happens meanwhile and however long GitHub does not answer, and nothing is written
//! twice.

mod comment;
mod deployments;
mod statuses;

use std::time::Duration;

use rand::RngExt as _;
use stagely_protocol::ErrorChain;
use stagely_state::ids::EnvironmentId;
use stagely_state::{PublishedReport, Report};
use tracing::warn;
use url::Url;

use self::comment::PublishedComment;
use self::statuses::PublishedStatuses;
use super::queue::ReportQueue;
use super::target::ReportTarget;
use super::view::ReportView;
use crate::core::github::GithubError;
use crate::core::logs::LogStore;
use crate::core::previews::PreviewLinks;
use crate::core::records::{Records, SharedRecords};
use crate::core::retry::{Backoff, Retry, RetryPolicy};

/// The waits after GitHub did not answer.
const WRITE_RETRIES: RetryPolicy =
    RetryPolicy::new(Duration::from_secs(1), Duration::from_secs(30)).jitter();

/// After a rate limit writes are spread over this time, so that they are not sent all at once.
const SPREAD: Duration = Duration::from_secs(1);

/// The end of a rate limit is in whole seconds.
const LIMIT_MARGIN: Duration = Duration::from_millis(100);

/// Publishes one environment.
pub(crate) struct EnvironmentReporter<T> {
    pub(crate) target: T,
    /// Whether there is a pull request to comment on.
    pub(crate) has_comment: bool,
    pub(crate) environment: EnvironmentId,
    pub(crate) records: SharedRecords,
    pub(crate) logs: LogStore,
    pub(crate) public_url: Url,
    pub(crate) approval_label: String,
    /// `core.open-logs`.
    pub(crate) open_logs: bool,
    pub(crate) links: PreviewLinks,
    pub(crate) queue: ReportQueue,
    /// The shortest time between two writes.
    pub(crate) interval: Duration,
}

/// A write that GitHub refused.
struct WriteRefused {
    /// The [`Report::wanted`] that was to be published.
    wanted: u64,
    /// For people.
    problem: String,
}

/// A kind of write, in messages.
#[derive(Clone, Copy)]
struct WriteKind {
    what: &'static str,
    /// The permission that it needs.
    permission: &'static str,
}

impl<T: ReportTarget> EnvironmentReporter<T> {
    /// Publishes the current state. Returns what is published, and of which [`Report::wanted`].
    pub(crate) async fn publish(&self) -> (u64, Result<PublishedReport, String>) {
        self.queue.pause(self.environment, self.interval).await;
        let before = self.published_before();
        let mut comment = PublishedComment { id: before.comment, digest: before.comment_digest };
        let mut statuses = PublishedStatuses {
            commit: before.commit,
            by_context: before.statuses,
            deployments: before.deployments,
        };
        let (comment_result, statuses_result) = {
            let publishing_comment = self.publish_comment(&mut comment);
            self.publish_statuses_beside(&mut statuses, publishing_comment).await
        };
        let published = PublishedReport {
            comment: comment.id,
            comment_digest: comment.digest,
            commit: statuses.commit,
            statuses: statuses.by_context,
            deployments: statuses.deployments,
        };
        match (comment_result, statuses_result) {
            (Ok(of_comment), Ok(of_statuses)) => {
                self.queue.remember(self.environment, None);
                (of_comment.min(of_statuses), Ok(published))
            }
            (Err(WriteRefused { wanted, problem }), _)
            | (_, Err(WriteRefused { wanted, problem })) => {
                // The event carries the problem alone, so the successful half is kept in memory.
                self.queue.remember(self.environment, Some(published));
                (wanted, Err(problem))
            }
        }
    }

    fn published_before(&self) -> PublishedReport {
        let remembered = self.queue.remembered(self.environment);
        remembered.unwrap_or_else(|| published(&self.records, self.environment).1)
    }

    fn view<'a>(&'a self, records: &'a Records) -> Option<ReportView<'a>> {
        let Self { environment, public_url, approval_label, open_logs, links, .. } = self;
        ReportView::find(records, *environment, public_url, approval_label, *open_logs, links)
    }

    /// Waits before the next attempt of a failed write.
    ///
    /// # Errors
    /// If a further attempt would fail as well: the problem, for people.
    async fn wait_for_retry(
        &self,
        error: GithubError,
        backoff: &mut Backoff,
        write: WriteKind,
    ) -> Result<(), String> {
        let environment = self.environment;
        let wait = match error.retry() {
            Retry::After(limit) => {
                let spread = SPREAD.mul_f64(rand::rng().random_range(0.0..=1.0));
                Some(limit + LIMIT_MARGIN + spread)
            }
            retry => backoff.next_wait(retry),
        };
        let Some(wait) = wait else {
            let problem = advice(&error, write);
            warn!(%environment, problem, "a report was refused");
            return Err(problem);
        };
        let wait = wait.max(self.interval);
        warn!(%environment, error = %ErrorChain(&error), "{} was not written; trying again in {wait:?}", write.what);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The published state of an environment according to its record, and its [`Report::wanted`].
pub(crate) fn published(
    records: &SharedRecords,
    environment: EnvironmentId,
) -> (u64, PublishedReport) {
    let records = records.read();
    let environment = records.environments.get(&environment);
    let report = environment.map(|environment| environment.report.clone()).unwrap_or_default();
    let Report { wanted, comment, comment_digest, commit, statuses, deployments, .. } = report;
    (wanted, PublishedReport { comment, comment_digest, commit, statuses, deployments })
}

/// The problem of a refused write, with what the operator can do.
fn advice(error: &GithubError, WriteKind { what, permission }: WriteKind) -> String {
    match error {
        GithubError::Refused { status: 401 | 403, .. } | GithubError::NotFound(_) => format!(
            "{what} was not written: {error}; give the app or token this repository and the \
             permission `{permission}`"
        ),
        _ => format!("{what} was not written: {error}"),
    }
}

#[cfg(test)]
mod tests;
