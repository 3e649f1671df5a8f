//! The statuses of a commit: one for the run as a whole, and one for each of its jobs.
//!
//! Of a job there are two writes, when it is planned and when it has ended: GitHub takes 80 a minute, which
//! a status that follows each move of each job would use up. The comment has them all.

use std::collections::BTreeMap;

use stagely_protocol::CommitSha;
use stagely_state::{CancelReason, CommitStatus, Job, JobKind, JobState, RunState, StatusState};

use super::markdown::{cut, one_line};
use super::view::{Shown, platforms, seconds};

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
        RunState::AwaitingApproval => {
            (StatusState::Pending, format!("waits for approval of {}", &commit.as_str()[..7]))
        }
        RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. }
        | RunState::Building => (StatusState::Pending, "Building".to_owned()),
        RunState::Completed => (StatusState::Success, completed(shown, &took)),
        RunState::Failed { plan_error: Some(error) } => {
            let state = fault(error.reason.is_users());
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
        JobState::Queued { .. }
        | JobState::Postponed { .. }
        | JobState::Provisioning { .. }
        | JobState::Running { .. } => (StatusState::Pending, "Building".to_owned()),
        JobState::Completed { .. } if job.kept_from.is_some() => {
            (StatusState::Success, "Kept from an earlier run".to_owned())
        }
        JobState::Completed { .. } => {
            let took = took.map(|took| format!(" in {took}")).unwrap_or_default();
            (StatusState::Success, format!("Completed{took}"))
        }
        JobState::Failed { reason, .. } => (fault(shown.is_users_job(job)), reason.to_string()),
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

#[cfg(test)]
mod tests {
    use stagely_protocol::FailureReason;
    use stagely_state::{Approval, PlanFailure};

    use super::*;
    use crate::core::github::report::fixtures::{self, World, user_failure};

    fn told(world: &World) -> BTreeMap<String, (StatusState, String)> {
        let (commit, statuses) = of(&world.shown()).unwrap();
        assert_eq!(commit, fixtures::commit());
        let parts = |(context, it): (String, CommitStatus)| {
            assert!(it.description.chars().count() <= DESCRIPTION_CHARS_MAX);
            assert!(context.chars().count() <= CONTEXT_CHARS_MAX);
            assert!(it.target_url.starts_with("https://core.example/"), "{}", it.target_url);
            (context, (it.state, it.description))
        };
        statuses.into_iter().map(parts).collect()
    }

    fn whole_of(world: &World) -> (StatusState, String) {
        told(world)[WHOLE].clone()
    }

    fn expected(state: StatusState, description: &str) -> (StatusState, String) {
        (state, description.to_owned())
    }

    #[test]
    fn each_state_of_a_run_has_its_light() {
        let mut world = World::new();
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
        for (state, light, words) in states {
            world.end_run(state);
            assert_eq!(whole_of(&world), expected(light, words));
        }
        world.run().state = RunState::AwaitingApproval;
        world.run().approval = Approval::Awaited;
        let waits = "waits for approval of aaaaaaa";
        assert_eq!(whole_of(&world), expected(StatusState::Pending, waits));
    }

    #[test]
    fn each_state_of_a_job_has_its_light() {
        let mut world = World::multi_platform();
        world.completed(1, 63);
        world.failed(2, user_failure("[2/3] RUN make", 2), "");
        world.failed(3, FailureReason::DependencyFailed { job: "app_arm64".to_owned() }, "");
        world.end_run(RunState::Failed { plan_error: None });
        let statuses = told(&world);
        let of = |context: &str| statuses[context].clone();
        assert_eq!(of(WHOLE), expected(StatusState::Failure, "2 of 3 jobs failed, after 1m 30s"));
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

        world.job(1).kept_from = Some(fixtures::job_id(9));
        world.job(2).state = JobState::Cancelled;
        let statuses = told(&world);
        let of = |context: &str| statuses[context].clone();
        let kept = expected(StatusState::Success, "Kept from an earlier run");
        assert_eq!(of("stagely/app (linux/amd64)"), kept);
        assert_eq!(of("stagely/app (linux/arm64)"), expected(StatusState::Error, "Cancelled"));
        assert_eq!(of("stagely/app (merge)").0, StatusState::Error);
        world.failed(2, FailureReason::MachineLost, "");
        let statuses = told(&world);
        assert_eq!(statuses["stagely/app (linux/arm64)"].0, StatusState::Error);
        assert_eq!(statuses["stagely/app (merge)"].0, StatusState::Error);
        assert_eq!(statuses[WHOLE].0, StatusState::Error);
    }

    #[test]
    fn long_words_and_names_fit_and_are_one_line() {
        let mut world = World::multi_platform();
        world.job(1).variant = "x".repeat(300).into();
        world.failed(1, user_failure(&"RUN a\n\u{202e}b ".repeat(100), 1), "");
        let statuses = told(&world);
        let (_, words) = &statuses.values().find(|(_, words)| words.contains("RUN")).unwrap();
        assert!(words.starts_with("step `RUN a b RUN a b") && words.ends_with('…'), "{words}");
    }

    #[test]
    fn of_many_jobs_those_that_failed_and_those_told_before_have_a_status() {
        let mut world = World::many(100);
        assert_eq!(told(&world).len(), 1);
        world.failed(50, user_failure("", 1), "");
        let statuses = told(&world);
        let contexts: Vec<&str> = statuses.keys().map(String::as_str).collect();
        assert_eq!(contexts, ["stagely", "stagely/job50 (linux/amd64)"]);
        let (commit, statuses) = of(&world.shown()).unwrap();
        world.environment().report.commit = Some(commit);
        world.environment().report.statuses = statuses;
        world.completed(50, 1);
        assert_eq!(told(&world)["stagely/job50 (linux/amd64)"].0, StatusState::Success);
        for job in 1..=100 {
            world.failed(job, user_failure("", 1), "");
        }
        // The 40 first, the one that was told before, and the whole.
        assert_eq!(told(&world).len(), 42);
    }

    #[test]
    fn a_run_that_github_does_not_know_has_no_statuses() {
        let mut world = World::multi_platform();
        world.run().github = None;
        assert!(of(&world.shown()).is_none());
    }
}
