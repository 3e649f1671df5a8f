//! Tells GitHub of an environment: the comment of its pull request, and the statuses of its commit.
//!
//! The records are read right before each write, and the digest of what was written is kept: so whatever
//! happens meanwhile, and however long GitHub does not answer, the last state arrives, and nothing is
//! written twice.

pub(crate) mod view;

mod comment;
mod excerpt;
mod markdown;
mod statuses;

mod queue;
mod target;

#[cfg(test)]
pub(crate) mod fixtures;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use stagely_protocol::{CommitSha, FailureReason};
use stagely_state::ids::EnvironmentId;
use stagely_state::{Attempt, CommitStatus, Job, JobState, Report, Told};
use tracing::{info, warn};
use url::Url;

use self::comment::Excerpts;
use self::target::Place;
use self::view::Shown;
use super::GithubError;
use crate::core::clock::now;
use crate::core::logs::LogStore;
use crate::core::records::{Records, SharedRecords};

pub(crate) use self::queue::Reporting;
pub(crate) use self::target::AtGithub;

/// The first wait after GitHub did not answer, and the longest: each is made up to twice as long at random.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Tells of one environment.
pub(crate) struct Teller<P> {
    pub(crate) place: P,
    /// Whether there is a pull request to comment on.
    pub(crate) has_comment: bool,
    pub(crate) environment: EnvironmentId,
    pub(crate) records: SharedRecords,
    pub(crate) logs: LogStore,
    pub(crate) public_url: Url,
    pub(crate) approval_label: String,
    pub(crate) reporting: Reporting,
    pub(crate) interval: Duration,
}

/// The comment as GitHub has it.
#[derive(Clone, Default)]
struct Comment {
    id: Option<u64>,
    digest: Option<String>,
}

/// The statuses of a commit as GitHub has them.
#[derive(Clone, Default)]
struct Statuses {
    commit: Option<CommitSha>,
    by_context: BTreeMap<String, CommitStatus>,
}

impl<P: Place> Teller<P> {
    /// Returns what was told, and of which [`Report::wanted`].
    pub(crate) async fn tell(&self) -> (u64, Result<Told, String>) {
        self.reporting.pause(self.environment, self.interval).await;
        let before = self.told_before();
        let mut comment = Comment { id: before.comment, digest: before.comment_digest };
        let mut statuses = Statuses { commit: before.commit, by_context: before.statuses };
        let (commented, stated) = {
            let commenting = self.tell_comment(&mut comment);
            self.tell_statuses_beside(&mut statuses, commenting).await
        };
        let told = Told {
            comment: comment.id,
            comment_digest: comment.digest,
            commit: statuses.commit,
            statuses: statuses.by_context,
        };
        match (commented, stated) {
            (Ok(of_comment), Ok(of_statuses)) => {
                self.reporting.remember(self.environment, None);
                (of_comment.min(of_statuses), Ok(told))
            }
            (Err((wanted, problem)), _) | (_, Err((wanted, problem))) => {
                // The event has no place for the half that went well.
                self.reporting.remember(self.environment, Some(told));
                (wanted, Err(problem))
            }
        }
    }

    fn told_before(&self) -> Told {
        let remembered = self.reporting.remembered(self.environment);
        remembered.unwrap_or_else(|| {
            let records = self.records.read();
            let report = records.environments.get(&self.environment).map(|it| it.report.clone());
            told(report.unwrap_or_default())
        })
    }

    fn shown<'a>(&'a self, records: &'a Records) -> Option<Shown<'a>> {
        Shown::find(records, self.environment, &self.public_url, &self.approval_label)
    }

    fn wanted(&self) -> u64 {
        let records = self.records.read();
        records.environments.get(&self.environment).map_or(0, |it| it.report.wanted)
    }

    async fn tell_comment(&self, comment: &mut Comment) -> Result<u64, (u64, String)> {
        let mut patience = patience();
        let mut excerpts = Excerpts::new();
        loop {
            let Some((wanted, digest, _)) = self.comment(&mut excerpts).await else {
                return Ok(self.wanted());
            };
            if !self.has_comment || (comment.id.is_some() && comment.digest == Some(digest)) {
                return Ok(wanted);
            }
            let turn = self.reporting.comment_turn(self.environment).await;
            self.place.room_for_comment().await;
            // It may have gone on while others were served.
            let Some((wanted, digest, body)) = self.comment(&mut excerpts).await else {
                return Ok(self.wanted());
            };
            let written = self.write_comment(comment, &body).await;
            drop(turn);
            self.reporting.wrote(self.environment, self.interval);
            match written {
                Ok(()) => {
                    comment.digest = Some(digest);
                    return Ok(wanted);
                }
                Err(error) => {
                    comment.digest = None;
                    let what = "the comment on a pull request";
                    self.be_patient(error, &mut patience, what, "Pull requests: write")
                        .await
                        .map_err(|problem| (wanted, problem))?;
                }
            }
        }
    }

    async fn write_comment(&self, comment: &mut Comment, body: &str) -> Result<(), GithubError> {
        if let Some(id) = comment.id {
            match self.place.edit_comment(id, body).await {
                // Somebody deleted it.
                Err(GithubError::NotFound(_)) => comment.id = None,
                answer => return answer,
            }
        }
        // It may be there: an answer may be lost, and core may end before it has noted the id.
        let marker = comment::marker(self.environment);
        if let Some(id) = self.place.find_comment(&marker).await? {
            self.place.edit_comment(id, body).await?;
            comment.id = Some(id);
        } else {
            let id = self.place.create_comment(body).await?;
            comment.id = Some(id);
            info!(environment = %self.environment, comment = id, "commented");
        }
        Ok(())
    }

    /// What the comment is to say: of which [`Report::wanted`], its digest, and the text.
    async fn comment(&self, excerpts: &mut Excerpts) -> Option<(u64, String, String)> {
        loop {
            let unread = {
                let records = self.records.read();
                let shown = self.shown(&records)?;
                let failed = shown.failed_jobs().take(comment::FAILURES_MAX);
                let unread =
                    failed.filter(|job| job.attempt > 0 && !excerpts.contains_key(&job.id));
                let unread: Vec<_> = unread.map(failed_step).collect();
                if unread.is_empty() {
                    let body = comment::render(&shown, excerpts);
                    return Some((shown.environment.report.wanted, digest_of(&body), body));
                }
                unread
            };
            for (attempt, step) in unread {
                excerpts.insert(attempt.job, self.last_words(attempt, &step).await);
            }
        }
    }

    async fn last_words(&self, attempt: Attempt, step: &str) -> Vec<String> {
        match self.logs.tail(attempt, excerpt::SEARCHED_LINES).await {
            Ok((_, tail)) => excerpt::of(&tail, step),
            Err(error) => {
                warn!(job = %attempt.job, %error, "the comment lacks what the step said: its log cannot be read");
                Vec::new()
            }
        }
    }

    /// Tells the statuses, also those that change while the comment is still being told: one may wait for
    /// what is allowed of comments, or for an answer, much longer than the other.
    async fn tell_statuses_beside<T>(
        &self,
        told: &mut Statuses,
        commenting: impl Future<Output = T>,
    ) -> (T, Result<u64, (u64, String)>) {
        let mut commenting = pin!(commenting);
        let mut commented = None;
        let mut changes = self.records.changes();
        loop {
            changes.mark_unchanged();
            let stated = {
                let mut stating = pin!(self.tell_statuses(told));
                loop {
                    tokio::select! {
                        stated = &mut stating => break stated,
                        done = &mut commenting, if commented.is_none() => commented = Some(done),
                    }
                }
            };
            if let Some(commented) = commented {
                return (commented, stated);
            }
            tokio::select! {
                commented = &mut commenting => return (commented, stated),
                more = changes.changed(), if stated.is_ok() => if more.is_err() {
                    return (commenting.await, stated);
                },
            }
        }
    }

    async fn tell_statuses(&self, told: &mut Statuses) -> Result<u64, (u64, String)> {
        let mut patience = patience();
        loop {
            if let (wanted, None) = self.next_status(told) {
                return Ok(wanted);
            }
            let turn = self.reporting.status_turn(self.environment).await;
            self.place.room_for_status().await;
            let (wanted, next) = self.next_status(told);
            let Some((commit, context, status)) = next else { return Ok(wanted) };
            let written = self.place.set_status(&commit, &context, &status).await;
            drop(turn);
            self.reporting.wrote(self.environment, self.interval);
            match written {
                Ok(()) => {
                    if told.commit.as_ref() != Some(&commit) {
                        *told = Statuses { commit: Some(commit), ..Statuses::default() };
                    }
                    told.by_context.insert(context, status);
                    patience = self::patience();
                }
                Err(error) => self
                    .be_patient(error, &mut patience, "a commit's status", "Commit statuses: write")
                    .await
                    .map_err(|problem| (wanted, problem))?,
            }
        }
    }

    /// The first status that GitHub does not have as it is now.
    fn next_status(&self, told: &Statuses) -> (u64, Option<(CommitSha, String, CommitStatus)>) {
        let records = self.records.read();
        let Some(shown) = self.shown(&records) else {
            return (0, None);
        };
        let wanted = shown.environment.report.wanted;
        let Some((commit, statuses)) = statuses::of(&shown) else { return (wanted, None) };
        let has = |context: &String| {
            told.by_context.get(context).filter(|_| told.commit.as_ref() == Some(&commit))
        };
        let next = statuses.into_iter().find(|(context, status)| has(context) != Some(status));
        (wanted, next.map(|(context, status)| (commit, context, status)))
    }

    /// Waits before the next try; gives up where it would be refused again.
    async fn be_patient(
        &self,
        error: GithubError,
        patience: &mut ExponentialBackoff,
        what: &str,
        permission: &str,
    ) -> Result<(), String> {
        let environment = self.environment;
        if !error.is_transient() {
            let problem = advice(&error, what, permission);
            warn!(%environment, problem, "GitHub was not told");
            return Err(problem);
        }
        let wait = match error {
            GithubError::RateLimited { until } => {
                // Not all at the same moment.
                let spread = rand::rng().random_range(0.0..=1.0);
                until.since(now()) + Duration::from_millis(100) + Duration::from_secs_f64(spread)
            }
            _ => patience.next().unwrap_or(WAIT_MAX),
        };
        let wait = wait.max(self.interval);
        warn!(%environment, %error, "{what} was not written; trying again in {wait:?}");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What whoever runs core can do about a refusal.
fn advice(error: &GithubError, what: &str, permission: &str) -> String {
    match error {
        GithubError::Refused { status: 401 | 403, .. } | GithubError::NotFound(_) => format!(
            "{what} was not written: {error}; give the app or token this repository and the \
             permission `{permission}`"
        ),
        _ => format!("{what} was not written: {error}"),
    }
}

/// The attempt whose log the job has, and the step that failed.
fn failed_step(job: &Job) -> (Attempt, String) {
    let step = match &job.state {
        JobState::Failed { reason: FailureReason::User { step, .. }, .. } => step.clone(),
        _ => String::new(),
    };
    (Attempt { job: job.id, number: job.attempt }, step)
}

/// What the record says that GitHub was told.
pub(crate) fn told(report: Report) -> Told {
    Told {
        comment: report.comment,
        comment_digest: report.comment_digest,
        commit: report.commit,
        statuses: report.statuses,
    }
}

fn digest_of(body: &str) -> String {
    Sha256::digest(body).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

fn patience() -> ExponentialBackoff {
    let waits = ExponentialBuilder::new().with_min_delay(WAIT_MIN).with_max_delay(WAIT_MAX);
    waits.without_max_times().with_jitter().build()
}

#[cfg(test)]
mod tests;
