//! The statuses of a commit: one for the run as a whole, and one for each of its jobs.
//!
//! A job's status is written twice, when the job is planned and when it has ended. GitHub allows 80 writes a
//! minute, which would not suffice for each change of each job. The comment shows all changes.

use std::collections::BTreeMap;

use stagely_protocol::{CaseOutcome, CommitSha};
use stagely_state::{
    CancelReason, CommitStatus, Job, JobFailure, JobKind, JobState, RunState, StatusState,
};

use super::markdown::{cut, one_line};
use super::view::{ReportView, platforms, seconds, warnings_of};
use crate::api::counts;

/// GitHub's own limit, also for the statuses of deployments.
pub(super) const DESCRIPTION_CHARS_MAX: usize = 140;

/// GitHub's own limit is 255.
const CONTEXT_CHARS_MAX: usize = 200;

/// A run of up to this many jobs has a status for each. In a larger one the failed jobs have a status, up to
/// this number, and the jobs whose status on this commit is published already.
const JOBS_MAX: usize = 40;

/// The context of the run's status.
const RUN_CONTEXT: &str = "stagely";

const PREVIEW_CONTEXT: &str = "stagely/preview";

/// The statuses by their contexts; `None` if the commit is not known, or is not at GitHub.
pub(crate) fn of(view: &ReportView<'_>) -> Option<(CommitSha, BTreeMap<String, CommitStatus>)> {
    view.run.github.as_ref()?;
    let commit = view.commit()?;
    let mut statuses = BTreeMap::from([(RUN_CONTEXT.to_owned(), of_run(view, &commit))]);
    let report = &view.environment.report;
    let is_published = |context: &String| {
        report.commit.as_ref() == Some(&commit) && report.statuses.contains_key(context)
    };
    let are_few = view.jobs().count() <= JOBS_MAX;
    let mut failed = 0;
    for job in view.jobs() {
        let is_deploy = job.kind.is_deploy();
        let status = if is_deploy { of_deployment(view, job) } else { of_job(view, job) };
        let context = context(job);
        let is_first_failures = matches!(job.state, JobState::Failed(_)) && failed < JOBS_MAX;
        failed += usize::from(is_first_failures);
        if are_few || is_first_failures || is_deploy || is_published(&context) {
            statuses.insert(context, status);
        }
    }
    Some((commit, statuses))
}

fn context(job: &Job) -> String {
    let what = match &job.kind {
        JobKind::Build { .. } => platforms(job),
        JobKind::Merge { .. } => "merge".to_owned(),
        JobKind::Deploy { .. } => return PREVIEW_CONTEXT.to_owned(),
        JobKind::Test { .. } => {
            return cut(&format!("{RUN_CONTEXT}/test {}", job.name), CONTEXT_CHARS_MAX);
        }
    };
    cut(&format!("{RUN_CONTEXT}/{} ({what})", job.variant), CONTEXT_CHARS_MAX)
}

fn of_run(view: &ReportView<'_>, commit: &CommitSha) -> CommitStatus {
    let run = view.run;
    let took = run.ended_at.map(|ended| seconds(ended.since(run.created_at))).unwrap_or_default();
    let (state, description) = match &run.state {
        RunState::AwaitingApproval => {
            (StatusState::Pending, format!("waits for approval of {}", &commit.as_str()[..7]))
        }
        RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. }
        | RunState::Building => (StatusState::Pending, "Building".to_owned()),
        RunState::Deploying => (StatusState::Pending, "Deploying".to_owned()),
        RunState::Testing => (StatusState::Pending, "Testing".to_owned()),
        RunState::Completed => (StatusState::Success, completed(view, &took)),
        RunState::Failed { plan_error: Some(error) } => {
            let state = fault(error.reason.is_users());
            let mut lines = error.message.lines().filter(|line| !line.trim().is_empty());
            (state, lines.next().unwrap_or("stagely.yaml cannot be read").to_owned())
        }
        RunState::Failed { plan_error: None } => {
            let failed = view.jobs().filter(|job| matches!(job.state, JobState::Failed(_)));
            let failed = failed.count();
            let all = view.jobs().count();
            (fault(view.is_users_failure()), format!("{failed} of {all} jobs failed, after {took}"))
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
    status(state, &description, view.run_url())
}

fn completed(view: &ReportView<'_>, took: &str) -> String {
    match view.jobs().count() {
        0 => "All builds are skipped".to_owned(),
        _ => with_warnings(format!("Completed in {took}"), view.jobs().flat_map(warnings_of)),
    }
}

/// Adds the number of different warnings and the first of them.
fn with_warnings(outcome: String, warnings: impl Iterator<Item = String>) -> String {
    let mut different = Vec::new();
    for warning in warnings {
        if !different.contains(&warning) {
            different.push(warning);
        }
    }
    match &different[..] {
        [] => outcome,
        [one] => format!("{outcome}, 1 warning: {one}"),
        [first, ..] => format!("{outcome}, {} warnings: {first}", different.len()),
    }
}

fn of_job(view: &ReportView<'_>, job: &Job) -> CommitStatus {
    let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
    let (state, description) = match &job.state {
        JobState::Queued { .. } | JobState::Postponed { .. } | JobState::Provisioning { .. }
            if let Some(wait) = view.capacity_wait(job) =>
        {
            (StatusState::Pending, format!("Waits for capacity: {}", wait.reason))
        }
        JobState::Queued { .. }
        | JobState::Postponed { .. }
        | JobState::Provisioning { .. }
        | JobState::Running { .. } => {
            let what = if job.kind.is_test() { "Testing" } else { "Building" };
            (StatusState::Pending, what.to_owned())
        }
        JobState::Completed { .. } if job.reused_from.is_some() => {
            let reused = "Reused from an earlier run".to_owned();
            (StatusState::Success, with_warnings(reused, warnings_of(job)))
        }
        JobState::Completed { .. } => {
            let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
            let what = job.results.as_ref().map_or_else(|| "Completed".to_owned(), counts);
            (StatusState::Success, with_warnings(format!("{what}{took}"), warnings_of(job)))
        }
        JobState::Failed(JobFailure { reason, .. }) => {
            (fault(view.is_users_job(job)), format!("{reason}{}", first_case(job)))
        }
        JobState::Cancelled => (StatusState::Error, "Cancelled".to_owned()),
    };
    status(state, &description, view.job_url(job.id))
}

/// The first case of a test that failed.
fn first_case(job: &Job) -> String {
    let cases = job.results.iter().flat_map(|results| &results.cases);
    let mut failed = cases.filter(|case| case.outcome == CaseOutcome::Failed);
    failed.next().map_or_else(String::new, |case| {
        let suite =
            if case.suite.is_empty() { String::new() } else { format!("{} › ", case.suite) };
        format!(": {suite}{}", case.name)
    })
}

/// The status of the job that deploys the preview. Its target is the preview once that is there.
fn of_deployment(view: &ReportView<'_>, job: &Job) -> CommitStatus {
    let page = view.job_url(job.id);
    match &job.state {
        JobState::Queued { .. } | JobState::Postponed { .. } | JobState::Provisioning { .. }
            if view.capacity_wait(job).is_some() =>
        {
            of_job(view, job)
        }
        JobState::Queued { .. } | JobState::Postponed { .. }
            if view.run.state == RunState::Building =>
        {
            status(StatusState::Pending, "Waits for its images", page)
        }
        JobState::Queued { .. } | JobState::Postponed { .. } => {
            status(StatusState::Pending, "Waits for a machine", page)
        }
        JobState::Provisioning { .. } | JobState::Running { .. } => {
            status(StatusState::Pending, "Deploying", page)
        }
        JobState::Completed { .. } => {
            let took = job.started_at.zip(job.ended_at).map(|(from, to)| seconds(to.since(from)));
            let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
            let url = view.preview_url().map_or(page, String::from);
            let description = with_warnings(format!("Deployed{took}"), warnings_of(job));
            status(StatusState::Success, &description, url)
        }
        JobState::Failed(JobFailure { reason, message, .. }) => {
            let state = fault(view.is_users_job(job));
            let reason = reason.to_string();
            let first = message.lines().find(|line| !line.trim().is_empty() && **line != *reason);
            let detail = first.map(|line| format!(": {line}")).unwrap_or_default();
            status(state, &format!("{reason}{detail}"), page)
        }
        JobState::Cancelled => status(StatusState::Error, "Cancelled", page),
    }
}

const fn fault(is_users: bool) -> StatusState {
    if is_users { StatusState::Failure } else { StatusState::Error }
}

fn status(state: StatusState, description: &str, target_url: String) -> CommitStatus {
    let description = cut(&one_line(description), DESCRIPTION_CHARS_MAX);
    CommitStatus { state, description, target_url }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{DeployProblem, FailureReason};
    use stagely_state::{Approval, PlanFailure};

    use super::*;
    use crate::core::github::report::fixtures::{self, DEPLOY, ReportFixture, user_failure};

    fn described(fixture: &ReportFixture) -> BTreeMap<String, (StatusState, String)> {
        let (commit, statuses) = of(&fixture.view()).unwrap();
        assert_eq!(commit, fixtures::commit());
        let parts = |(context, status): (String, CommitStatus)| {
            assert!(status.description.chars().count() <= DESCRIPTION_CHARS_MAX);
            assert!(context.chars().count() <= CONTEXT_CHARS_MAX);
            assert!(
                status.target_url.starts_with("https://core.example/"),
                "{}",
                status.target_url
            );
            (context, (status.state, status.description))
        };
        statuses.into_iter().map(parts).collect()
    }

    fn run_status(fixture: &ReportFixture) -> (StatusState, String) {
        described(fixture)[RUN_CONTEXT].clone()
    }

    fn expected(state: StatusState, description: &str) -> (StatusState, String) {
        (state, description.to_owned())
    }

    #[test]
    fn each_state_of_a_run_has_its_status() {
        let mut fixture = ReportFixture::new();
        let plan_error = |reason, message: &str| RunState::Failed {
            plan_error: Some(PlanFailure { reason, message: message.to_owned() }),
        };
        let cancelled = |reason| RunState::Cancelled { reason };
        let states = [
            (RunState::Pending, StatusState::Pending, "Building"),
            (RunState::Building, StatusState::Pending, "Building"),
            (RunState::Completed, StatusState::Success, "All builds are skipped"),
            (
                plan_error(
                    FailureReason::Manifest,
                    "\nstagely.yaml:3:5: unknown field `biulds`\nmore",
                ),
                StatusState::Failure,
                "stagely.yaml:3:5: unknown field `biulds`",
            ),
            (
                plan_error(FailureReason::Internal, ""),
                StatusState::Error,
                "stagely.yaml cannot be read",
            ),
            (cancelled(CancelReason::Requested), StatusState::Error, "Cancelled"),
            (
                cancelled(CancelReason::EnvironmentClosed),
                StatusState::Error,
                "Cancelled: the pull request was closed",
            ),
            (
                cancelled(CancelReason::Superseded),
                StatusState::Error,
                "Cancelled: a newer run takes its place",
            ),
        ];
        for (state, status_state, description) in states {
            fixture.end_run(state);
            assert_eq!(run_status(&fixture), expected(status_state, description));
        }
        fixture.run().state = RunState::AwaitingApproval;
        fixture.run().approval = Approval::Awaited;
        let waits = "waits for approval of aaaaaaa";
        assert_eq!(run_status(&fixture), expected(StatusState::Pending, waits));
    }

    #[test]
    fn each_state_of_a_job_has_its_status() {
        let mut fixture = ReportFixture::multi_platform();
        fixture.completed(1, 63);
        fixture.failed(2, user_failure("[2/3] RUN make", 2), "");
        fixture.failed(3, FailureReason::DependencyFailed { job: "app_arm64".to_owned() }, "");
        fixture.end_run(RunState::Failed { plan_error: None });
        let statuses = described(&fixture);
        let of = |context: &str| statuses[context].clone();
        assert_eq!(
            of(RUN_CONTEXT),
            expected(StatusState::Failure, "2 of 3 jobs failed, after 1m 30s")
        );
        assert_eq!(
            of("stagely/app (linux/amd64)"),
            expected(StatusState::Success, "Completed in 1m 3s")
        );
        assert_eq!(
            of("stagely/app (linux/arm64)"),
            expected(StatusState::Failure, "step `[2/3] RUN make` failed with exit code 2")
        );
        assert_eq!(
            of("stagely/app (merge)"),
            expected(StatusState::Failure, "not started: app_arm64 did not complete")
        );
        assert_eq!(statuses.len(), 4);

        fixture.job(1).reused_from = Some(fixtures::job_id(9));
        fixture.job(2).state = JobState::Cancelled;
        let statuses = described(&fixture);
        let of = |context: &str| statuses[context].clone();
        let reused = expected(StatusState::Success, "Reused from an earlier run");
        assert_eq!(of("stagely/app (linux/amd64)"), reused);
        assert_eq!(of("stagely/app (linux/arm64)"), expected(StatusState::Error, "Cancelled"));
        assert_eq!(of("stagely/app (merge)").0, StatusState::Error);
        fixture.failed(2, FailureReason::MachineLost, "");
        let statuses = described(&fixture);
        assert_eq!(statuses["stagely/app (linux/arm64)"].0, StatusState::Error);
        assert_eq!(statuses["stagely/app (merge)"].0, StatusState::Error);
        assert_eq!(statuses[RUN_CONTEXT].0, StatusState::Error);
    }

    #[test]
    fn warnings_stand_in_the_statuses_of_their_job_and_of_the_run() {
        let mut fixture = ReportFixture::many(3);
        for job in 1..=3 {
            fixture.completed(job, 63);
        }
        let platform = "the base image busybox exists for linux/amd64 alone";
        fixture.job(1).warnings = vec![platform.to_owned()];
        fixture.job(2).warnings = vec![platform.to_owned(), "x\ny".repeat(100)];
        fixture.end_run(RunState::Completed);
        let statuses = described(&fixture);
        let of = |context: &str| statuses[context].1.clone();
        assert_eq!(
            of("stagely/job1 (linux/amd64)"),
            format!("Completed in 1m 3s, 1 warning: {platform}")
        );
        assert_eq!(
            of("stagely/job2 (linux/amd64)"),
            format!("Completed in 1m 3s, 2 warnings: {platform}")
        );
        assert_eq!(of("stagely/job3 (linux/amd64)"), "Completed in 1m 3s");
        assert_eq!(of(RUN_CONTEXT), format!("Completed in 1m 30s, 2 warnings: {platform}"));
        assert_eq!(statuses[RUN_CONTEXT].0, StatusState::Success);

        fixture.job(1).warnings = vec!["y".repeat(200)];
        let statuses = described(&fixture);
        let words = &statuses["stagely/job1 (linux/amd64)"].1;
        assert!(
            words.starts_with("Completed in 1m 3s, 1 warning: yyy") && words.ends_with('…'),
            "{words}"
        );

        fixture.job(3).reused_from = Some(fixtures::job_id(9));
        fixture.job(3).emulated = true;
        let words = &described(&fixture)["stagely/job3 (linux/amd64)"].1;
        assert!(words.contains(", 1 warning: built under QEMU emulation"), "{words}");
    }

    #[test]
    fn each_state_of_a_deployment_has_its_status() {
        let mut fixture = ReportFixture::many(41);
        fixture.add_deployment();
        let of = |fixture: &ReportFixture| described_preview(fixture);
        let (pending, page) = (StatusState::Pending, "https://core.example/jobs/");
        let waits = (pending, "Waits for its images".to_owned());
        assert_eq!(of(&fixture).0, waits, "also among many jobs");
        fixture.run().state = RunState::Deploying;
        assert_eq!(of(&fixture).0, (pending, "Waits for a machine".to_owned()));
        fixture.running(DEPLOY);
        assert_eq!(of(&fixture).0, (pending, "Deploying".to_owned()));
        assert!(of(&fixture).1.starts_with(page));
        fixture.completed(DEPLOY, 63);
        let deployed = (StatusState::Success, "Deployed in 1m 3s".to_owned());
        assert_eq!(of(&fixture), (deployed, "https://pr-7-app.preview.example/".to_owned()));
        let health = FailureReason::Deploy { problem: DeployProblem::Service };
        fixture.failed(
            DEPLOY,
            health,
            "the service `web` ended with exit code 3; its last line: x",
        );
        let failed =
            "a service did not start: the service `web` ended with exit code 3; its last line: x";
        assert_eq!(of(&fixture).0, (StatusState::Failure, failed.to_owned()));
        assert!(of(&fixture).1.starts_with(page));
        fixture.failed(DEPLOY, FailureReason::MachineLost, "the machine was lost");
        assert_eq!(of(&fixture).0, (StatusState::Error, "the machine was lost".to_owned()));
        fixture.job(DEPLOY).state = JobState::Cancelled;
        assert_eq!(of(&fixture).0, (StatusState::Error, "Cancelled".to_owned()));
    }

    fn described_preview(fixture: &ReportFixture) -> ((StatusState, String), String) {
        let (_, mut statuses) = of(&fixture.view()).unwrap();
        let status = statuses.remove(PREVIEW_CONTEXT).unwrap();
        ((status.state, status.description), status.target_url)
    }

    #[test]
    fn long_texts_are_cut_and_are_one_line() {
        let mut fixture = ReportFixture::multi_platform();
        fixture.job(1).variant = "x".repeat(300).into();
        fixture.failed(1, user_failure(&"RUN a\n\u{202e}b ".repeat(100), 1), "");
        let statuses = described(&fixture);
        let (_, words) = &statuses.values().find(|(_, words)| words.contains("RUN")).unwrap();
        assert!(words.starts_with("step `RUN a b RUN a b") && words.ends_with('…'), "{words}");
    }

    #[test]
    fn of_many_jobs_the_failed_and_the_published_ones_have_a_status() {
        let mut fixture = ReportFixture::many(100);
        assert_eq!(described(&fixture).len(), 1);
        fixture.failed(50, user_failure("", 1), "");
        let statuses = described(&fixture);
        let contexts: Vec<&str> = statuses.keys().map(String::as_str).collect();
        assert_eq!(contexts, ["stagely", "stagely/job50 (linux/amd64)"]);
        let (commit, statuses) = of(&fixture.view()).unwrap();
        fixture.environment().report.commit = Some(commit);
        fixture.environment().report.statuses = statuses;
        fixture.completed(50, 1);
        assert_eq!(described(&fixture)["stagely/job50 (linux/amd64)"].0, StatusState::Success);
        for job in 1..=100 {
            fixture.failed(job, user_failure("", 1), "");
        }
        // The first 40, the one that is published already, and the run.
        assert_eq!(described(&fixture).len(), 42);
    }

    #[test]
    fn a_run_of_a_commit_that_is_not_at_github_has_no_statuses() {
        let mut fixture = ReportFixture::multi_platform();
        fixture.run().github = None;
        assert!(of(&fixture.view()).is_none());
    }
}
