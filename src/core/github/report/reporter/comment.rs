//! Writes the comment on a pull request.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use stagely_protocol::{ErrorChain, FailureReason};
use stagely_state::{Attempt, Job, JobFailure, JobState};
use tracing::{info, warn};

use super::{EnvironmentReporter, WRITE_RETRIES, WriteKind, WriteRefused};
use crate::core::github::GithubError;
use crate::core::github::report::comment::{self, Excerpts};
use crate::core::github::report::excerpt;
use crate::core::github::report::target::ReportTarget;

const COMMENT: WriteKind =
    WriteKind { what: "the comment on a pull request", permission: "Pull requests: write" };

/// The comment as GitHub has it.
#[derive(Clone, Default)]
pub(super) struct PublishedComment {
    pub(super) id: Option<u64>,
    /// `None` if the last write may or may not have succeeded.
    pub(super) digest: Option<String>,
}

struct Draft {
    /// The [`Report::wanted`](stagely_state::Report::wanted) of its records.
    wanted: u64,
    digest: String,
    body: String,
}

impl<T: ReportTarget> EnvironmentReporter<T> {
    /// Writes until GitHub has the comment of the newest records. Returns their
    /// [`Report::wanted`](stagely_state::Report::wanted).
    pub(super) async fn publish_comment(
        &self,
        published: &mut PublishedComment,
    ) -> Result<u64, WriteRefused> {
        let mut backoff = WRITE_RETRIES.start();
        let mut excerpts = Excerpts::new();
        loop {
            let Some(draft) = self.draft(&mut excerpts).await else { return Ok(self.wanted()) };
            let is_published =
                published.id.is_some() && published.digest.as_ref() == Some(&draft.digest);
            if !self.has_comment || is_published {
                return Ok(draft.wanted);
            }
            let permit = self.queue.comment_permit(self.environment).await;
            self.target.comment_allowed().await;
            // The records may have changed during the wait.
            let Some(draft) = self.draft(&mut excerpts).await else { return Ok(self.wanted()) };
            let written = self.write_comment(published, &draft.body).await;
            drop(permit);
            self.queue.note_write(self.environment, self.interval);
            match written {
                Ok(()) => {
                    published.digest = Some(draft.digest);
                    return Ok(draft.wanted);
                }
                Err(error) => {
                    published.digest = None;
                    let wanted = draft.wanted;
                    self.wait_for_retry(error, &mut backoff, COMMENT)
                        .await
                        .map_err(|problem| WriteRefused { wanted, problem })?;
                }
            }
        }
    }

    async fn write_comment(
        &self,
        published: &mut PublishedComment,
        body: &str,
    ) -> Result<(), GithubError> {
        if let Some(id) = published.id {
            match self.target.edit_comment(id, body).await {
                // Somebody deleted the comment.
                Err(GithubError::NotFound(_)) => published.id = None,
                result => return result,
            }
        }
        // The comment may exist without its id: a response was lost, or core stopped before it stored the id.
        let marker = comment::marker(self.environment);
        if let Some(id) = self.target.find_comment(&marker).await? {
            self.target.edit_comment(id, body).await?;
            published.id = Some(id);
        } else {
            let id = self.target.create_comment(body).await?;
            published.id = Some(id);
            info!(environment = %self.environment, comment = id, "commented");
        }
        Ok(())
    }

    /// The comment of the newest records; `None` if there is no run to report.
    async fn draft(&self, excerpts: &mut Excerpts) -> Option<Draft> {
        loop {
            let unread = {
                let records = self.records.read();
                let view = self.view(&records)?;
                let failed = view.failed_jobs().take(comment::FAILURES_MAX);
                let unread =
                    failed.filter(|job| job.attempt > 0 && !excerpts.contains_key(&job.id));
                let unread: Vec<_> = unread.map(failed_step).collect();
                if unread.is_empty() {
                    let body = comment::render(&view, excerpts);
                    let wanted = view.environment.report.wanted;
                    return Some(Draft { wanted, digest: digest_of(&body), body });
                }
                unread
            };
            for (attempt, step) in unread {
                excerpts.insert(attempt.job, self.excerpt(attempt, &step).await);
            }
        }
    }

    async fn excerpt(&self, attempt: Attempt, step: &str) -> Vec<String> {
        match self.logs.tail(attempt, excerpt::SEARCHED_LINES).await {
            Ok((_, tail)) => excerpt::of(&tail, step),
            Err(error) => {
                warn!(job = %attempt.job, error = %ErrorChain(&error), "the log cannot be read; the comment shows no lines of the step");
                Vec::new()
            }
        }
    }

    fn wanted(&self) -> u64 {
        let records = self.records.read();
        let environment = records.environments.get(&self.environment);
        environment.map_or(0, |environment| environment.report.wanted)
    }
}

/// The attempt of a failed job that has the log, and the step that failed.
fn failed_step(job: &Job) -> (Attempt, String) {
    let step = match &job.state {
        JobState::Failed(JobFailure { reason: FailureReason::User { step, .. }, .. }) => {
            step.clone()
        }
        _ => String::new(),
    };
    (Attempt { job: job.id, number: job.attempt }, step)
}

fn digest_of(body: &str) -> String {
    Sha256::digest(body).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}
