//! The statuses of a commit: one for the run as a whole, and one for each of its jobs.
//!
//! Of a job there are two writes, when it is planned and when it has ended: GitHub takes 80 a minute, which
//! a status that follows each move of each job would use up. The comment has them all.

use std::collections::BTreeMap;

use stagely_agent::protocol::CommitSha;

use super::Shown;
use super::markdown::{cut, one_line};
use super::shown::{is_users, platforms, seconds};
use crate::core::state::{
    CancelReason, CommitStatus, Job, JobKind, JobState, RunState, StatusState,
};

/// GitHub's own limit, in characters.
const DESCRIPTION_CHARS_MAX: usize = 140;

/// The longest context, in characters. GitHub's own limit is 255.
const CONTEXT_CHARS_MAX: usize = 200;

/// Jobs that each have a status. Of a run of more only those have one that failed, up to this number, and
/// those whose status on this commit was told before.
const JOBS_MAX: usize = 40;

/// What the whole is called.
const WHOLE: &str = "stagely";

/// The statuses by their contexts; `None` where the commit is not known, or GitHub does not know it.
pub(crate) fn of(shown: &Shown<'_>) -> Option<(CommitSha, BTreeMap<String, CommitStatus>)> {
    shown.run.github.as_ref()?;
    let commit = shown.commit()?;
    let mut statuses = BTreeMap::from([(WHOLE.to_owned(), whole(shown, &commit))]);
    let report = &shown.environment.report;
    let was_told = |context: &String| {
        report.commit.as_ref() == Some(&commit) && report.statuses.contains_key(context)
    };
    let are_few = shown.jobs().count() <= JOBS_MAX;
    let mut failed = 0;
    for job in shown.jobs() {
        let (context, status) = (context(job), of_job(shown, job));
        let is_first_failures = matches!(job.state, JobState::Failed { .. }) && failed < JOBS_MAX;
        failed += usize::from(is_first_failures);
        if are_few || is_first_failures || was_told(&context) {
            statuses.insert(context, status);
        }
    }
    Some((commit, statuses))
}

fn context(job: &Job) -> String {
    let what = match &job.kind {
        JobKind::Build { .. } => platforms(job),
        JobKind::Merge { .. } => "merge".to_owned(),
    };
    cut(&format!("{WHOLE}/{} ({what})", job.variant), CONTEXT_CHARS_MAX)
}

fn whole(shown: &Shown<'_>, commit: &CommitSha) -> CommitStatus {
    let run = shown.run;
    let took = run.ended_at.map(|ended| seconds(ended.since(run.created_at))).unwrap_or_default();
    let (state, description) = match &run.state {
        _ if shown.awaits_approval() => {
            (StatusState::Pending, format!("waits for approval of {}", &commit.as_str()[..7]))
        }
        RunState::Pending | RunState::Building => (StatusState::Pending, "Building".to_owned()),
        RunState::Completed => (StatusState::Success, completed(shown, &took)),
        RunState::Failed { plan_error: Some(error) } => {
            let state = fault(is_users(&error.reason));
            let mut lines = error.message.lines().filter(|line| !line.trim().is_empty());
            (state, lines.next().unwrap_or("stagely.yaml cannot be read").to_owned())
        }
        RunState::Failed { plan_error: None } => {
            let failed = shown.jobs().filter(|job| matches!(job.state, JobState::Failed { .. }));
            let failed = failed.count();
            let all = shown.jobs().count();
            (
                fault(shown.is_users_failure()),
                format!("{failed} of {all} jobs failed, after {took}"),
            )
        }
        RunState::Cancelled { reason } => {
            let why = match reason {
                CancelReason::Requested => "Cancelled",
                CancelReason::EnvironmentClosed => "Cancelled: the pull request was closed",
                CancelReason::Superseded => "Cancelled: a newer run takes its place",
            };
            (StatusState::Error, why.to_owned())
        }
    };
    status(state, &description, shown.run_url())
}

fn completed(shown: &Shown<'_>, took: &str) -> String {
    match shown.jobs().count() {
        0 => "All builds are skipped".to_owned(),
        _ => format!("Completed in {took}"),
    }
}

fn of_job(shown: &Shown<'_>, job: &Job) -> CommitStatus {
    let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
    let (state, description) = match &job.state {
        JobState::Queued { .. } | JobState::Provisioning { .. } | JobState::Running { .. } => {
            (StatusState::Pending, "Building".to_owned())
        }
        JobState::Completed { .. } if job.kept_from.is_some() => {
            (StatusState::Success, "Kept from an earlier run".to_owned())
        }
        JobState::Completed { .. } => {
            let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
            (StatusState::Success, format!("Completed{took}"))
        }
        JobState::Failed { reason, .. } => (fault(is_users(reason)), reason.to_string()),
        JobState::Cancelled => (StatusState::Error, "Cancelled".to_owned()),
    };
    status(state, &description, shown.job_url(job.id))
}

const fn fault(is_users: bool) -> StatusState {
    if is_users { StatusState::Failure } else { StatusState::Error }
}

fn status(state: StatusState, description: &str, target_url: String) -> CommitStatus {
    let description = cut(&one_line(description), DESCRIPTION_CHARS_MAX);
    CommitStatus { state, description, target_url }
}
