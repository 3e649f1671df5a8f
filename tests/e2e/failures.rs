//! Builds that fail, take too long, or are not wanted any more.

use std::fs;
use std::time::Duration;

use reqwest::Method;
use stagely::api::{JobStatus, RunStatus};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, job};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

#[tokio::test]
async fn a_failing_build_is_reported_with_its_last_lines_and_the_others_finish_first() {
    let core = Core::start(STAGELY, "failing", "").await;
    let breakpoint = Breakpoint::new();
    let bad = format!("FROM busybox\nRUN : {}; echo the reason; exit 42\n", core.name);
    let good = format!("FROM busybox\nRUN : {}; {}\n", core.name, breakpoint.command());
    let manifest = "builds: { bad: { context: bad }, good: { context: good },\n\
        both: { context: bad, platforms: [linux/amd64, linux/arm64] } }\n";
    let files =
        [("bad/Dockerfile", &*bad), ("good/Dockerfile", &*good), ("stagely.yaml", manifest)];

    let run = core.run_of(&files).await;
    breakpoint.reached().await;
    let others = ["bad", "both_amd64", "both_arm64", "both_merge"];
    let failed = |name: &str, run: &_| job(run, name).status == JobStatus::Failed;
    let what = "all but one have failed";
    let view = core.until(run, what, |run| others.iter().all(|name| failed(name, run))).await;
    assert_eq!(view.status, RunStatus::Building, "{view:#?}");
    breakpoint.resume();
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Failed);
    assert_eq!(job(&run, "good").status, JobStatus::Completed, "{run:#?}");
    let bad = job(&run, "bad");
    assert_eq!((bad.exit_code, bad.attempt), (Some(42), 1), "{bad:#?}");
    let Some(FailureReason::User { step, exit_code: 42 }) = &bad.reason else { panic!("{bad:#?}") };
    assert!(step.contains("exit 42"), "{step}");
    assert!(bad.error.as_ref().unwrap().contains("the reason"), "{bad:#?}");
    assert!(core.log(bad).await.contains(" the reason"));
    let merge = job(&run, "both_merge");
    let unstarted = matches!(merge.reason, Some(FailureReason::DependencyFailed { .. }));
    assert!(unstarted && merge.attempt == 0, "{merge:#?}");
    core.finish().await;
}

#[tokio::test]
async fn a_build_past_its_limit_is_killed_with_all_it_started() {
    let core = Core::start(STAGELY, "timeout", "").await;
    // On a busy machine the first limit may end before the step begins.
    for limit_seconds in [10, 60, 600] {
        let breakpoint = Breakpoint::new();
        let dockerfile =
            format!("FROM busybox\nRUN : {}; echo begun; {}\n", core.name, breakpoint.command());
        let manifest = format!("builds: {{ app: {{ context: ., timeout: {limit_seconds}s }} }}\n");

        let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", &*manifest)]).await;
        let run = core.ended(run).await;
        breakpoint.deserted().await;

        let app = job(&run, "app");
        assert_eq!((run.status, app.attempt), (RunStatus::Failed, 1), "{run:#?}");
        assert_eq!(app.reason, Some(FailureReason::Timeout { limit_seconds }));
        let log = core.log(app).await;
        assert!(log.contains("timed out after "), "{log}");
        if log.contains(" begun") {
            return drop(core.finish().await);
        }
    }
    panic!("no build has begun");
}

#[tokio::test]
async fn a_cancelled_run_stops_its_builds_and_starts_none_of_those_that_wait() {
    let core = Core::start(STAGELY, "cancel", "[builders]\nmax-concurrent = 1").await;
    let breakpoint = Breakpoint::new();
    let dockerfile = format!("FROM busybox\nRUN : {}; {}\n", core.name, breakpoint.command());
    let manifest = "builds: { one: { context: . }, other: { context: . } }\n";

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    breakpoint.reached().await;
    core.post::<serde_json::Value>(&format!("/runs/{run}/cancel"), serde_json::json!({})).await;
    let view = core.ended(run).await;
    breakpoint.deserted().await;

    assert_eq!(view.status, RunStatus::Cancelled);
    assert!(view.jobs.iter().all(|job| job.status == JobStatus::Cancelled), "{view:#?}");
    assert_eq!(job(&view, "other").attempt, 0);
    // A second cancellation changes nothing.
    core.post::<serde_json::Value>(&format!("/runs/{run}/cancel"), serde_json::json!({})).await;
    assert_eq!(core.view(run).await.status, RunStatus::Cancelled);
    core.finish().await;
}

#[tokio::test]
async fn a_repository_that_does_not_answer_is_waited_for_visibly() {
    let core = Core::start(STAGELY, "waits", "").await;
    let mut request = core.request();
    request.repository = core.git.url("status", "503/app/.git");
    let id = core.run(request).await;

    let run = core.until(id, "the run waits", |run| run.wait.is_some()).await;

    let wait = run.wait.unwrap();
    let noticed = wait.since.since(run.created_at);
    assert!(noticed < Duration::from_secs(2), "{noticed:?}");
    assert!(wait.reason.contains("503"), "{wait:?}");
    assert!(wait.retry_at.is_some_and(|at| at > wait.since) && wait.tries > 0, "{wait:?}");
    let page =
        core.call(Some(&core.admin_token()), Method::GET, &format!("/runs/{id}"), None).await;
    assert!(page.1.contains("Trying again since "), "{page:?}");
    core.post::<serde_json::Value>(&format!("/runs/{id}/cancel"), serde_json::json!({})).await;
    let run = core.ended(id).await;
    assert_eq!((run.status, run.wait), (RunStatus::Cancelled, None));
    core.finish().await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_its_repository_does_not_answer_sends_no_more_requests() {
    let core = Core::start(STAGELY, "cancel-planning", "").await;
    let mut request = core.request();
    request.repository = core.git.url("status", "503/app/.git");
    let run = core.run(request).await;
    let asked = || core.git.requests().matches("/status/503/").count();
    eventually("the repository is asked", async || (asked() > 0).then_some(())).await;

    core.post::<serde_json::Value>(&format!("/runs/{run}/cancel"), serde_json::json!({})).await;
    assert_eq!(core.view(run).await.status, RunStatus::Cancelled);
    // Without the cancellation it would fail for another reason.
    let reason = eventually("planning ends", async || {
        let log = fs::read_to_string(core.path("core.log")).unwrap();
        Some(log.lines().find(|line| line.contains("not planned"))?.to_owned())
    })
    .await;
    assert!(reason.contains("cancelled"), "{reason}");
    core.finish().await;
}

#[tokio::test]
async fn all_errors_of_the_manifest_are_reported_at_once() {
    let core = Core::start(STAGELY, "manifest", "").await;
    let manifest =
        "builds:\n  app: { context: ., platfrom: linux/amd64 }\n  web: { context: ../.. }\n";
    let run = core.run_of(&[("Dockerfile", "FROM busybox\n"), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;
    assert_eq!((run.status, run.jobs.len()), (RunStatus::Failed, 0));
    assert_eq!(run.reason, Some(FailureReason::Manifest));
    let error = run.error.unwrap();
    for text in ["stagely.yaml:2:", "did you mean `platform`", "stagely.yaml:3:", "builds.web"] {
        assert!(error.contains(text), "{text}: {error}");
    }
    core.finish().await;
}

#[tokio::test]
async fn machines_that_do_not_start_or_die_at_once_fail_the_job_with_the_reason() {
    let cases = [
        ("/nowhere/stagely", FailureReason::Provider, 1, "/nowhere/stagely"),
        ("/bin/true", FailureReason::MachineLost, 3, "the provider ended the machine"),
    ];
    for (program, reason, attempts, text) in cases {
        let core =
            Core::start(STAGELY, "no-agent", &format!("[local]\nagent-program = \"{program}\""))
                .await;
        let manifest = "builds: { app: { context: . } }\n";
        let run =
            core.run_of(&[("Dockerfile", "FROM busybox\n"), ("stagely.yaml", manifest)]).await;
        let run = core.ended(run).await;
        let app = job(&run, "app");
        assert_eq!((run.status, app.attempt), (RunStatus::Failed, attempts), "{app:#?}");
        assert_eq!(app.reason, Some(reason));
        assert!(app.error.as_ref().unwrap().contains(text), "{app:#?}");
        core.finish().await;
    }
}
