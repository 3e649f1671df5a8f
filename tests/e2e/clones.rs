//! Repositories that are private, wrong, or have changed.

use stagely::api::RunStatus;
use stagely_protocol::{CloneProblem, FailureReason};
use stagely_test_core::{Core, job};
use stagely_test_support::git::TOKEN;

use crate::STAGELY;

const MANIFEST: &str = "builds: { app: { context: . } }\n";

fn dockerfile(core: &Core) -> String {
    format!("FROM busybox\nRUN : {}\n", core.name)
}

#[tokio::test]
async fn a_private_repository_is_built_with_its_token_which_is_not_shown() {
    let core = Core::start(STAGELY, "private", "").await;
    let files = [("Dockerfile", &*dockerfile(&core)), ("stagely.yaml", MANIFEST)];
    let run = core.run_of(&files).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let requests = core.git.requests();
    assert!(requests.lines().any(|line| line.ends_with(" -")), "asked without a token first");
    assert!(!requests.contains(TOKEN), "the token is in an address: {requests}");
    let log = core.log(&run.jobs[0]).await;
    assert!(!log.contains(TOKEN) && !log.contains(&core.registry.password()), "{log}");
    assert!(!serde_json::to_string(&run).unwrap().contains(TOKEN));
    core.finish().await;
}

#[tokio::test]
async fn a_repository_that_cannot_be_read_fails_the_run_and_says_why() {
    let core = Core::start(STAGELY, "unreadable", "").await;
    core.repository.commit(&[("Dockerfile", &dockerfile(&core)), ("stagely.yaml", MANIFEST)]);
    let mut wrong_token = core.request();
    wrong_token.clone_token = Some("wrong".into());
    let mut no_token = core.request();
    no_token.clone_token = None;
    let mut not_there = core.request();
    not_there.repository = core.git.url("private", "nothing/.git");
    let mut no_such_branch = core.request();
    no_such_branch.reference = Some("no-such-branch".to_owned());
    let mut gone = core.request();
    gone.reference = Some("0123456789".repeat(4));
    let mut no_such_base = core.request();
    no_such_base.base = Some("no-such-base".to_owned());
    let cases = [
        (wrong_token, CloneProblem::Authentication, "token"),
        (no_token, CloneProblem::Authentication, "token"),
        (not_there, CloneProblem::NotFound, "not found"),
        (no_such_branch, CloneProblem::CommitGone, "no-such-branch"),
        (gone, CloneProblem::CommitGone, "has no 0123456789"),
        (
            no_such_base,
            CloneProblem::CommitGone,
            "the base `no-such-base` is not in the repository",
        ),
    ];
    for (request, problem, text) in cases {
        let shown = format!("{request:?}");
        let run = core.run(request).await;
        let run = core.ended(run).await;
        assert_eq!((run.status, run.jobs.len()), (RunStatus::Failed, 0), "{shown}");
        assert_eq!(run.reason, Some(FailureReason::Clone { problem }), "{shown}");
        let error = run.error.unwrap();
        assert!(error.contains(text), "{shown}: {error}");
        assert!(!error.contains("wrong"), "{error}");
    }
    core.finish().await;
}

#[tokio::test]
async fn a_commit_that_is_gone_before_its_build_begins_fails_the_job_once() {
    let core = Core::start(STAGELY, "gone", "[builders]\nprovider = \"none\"").await;
    let (_, config) = core.add_machine("late").await;
    let files = [("Dockerfile", &*dockerfile(&core)), ("stagely.yaml", MANIFEST)];
    let run = core.run_of(&files).await;
    core.until(run, "it is planned", |run| run.status == RunStatus::Building).await;
    // A force push, after which the server deletes the old commit.
    core.repository.git(&["commit", "--amend", "--quiet", "--message", "another"]);
    core.repository.git(&["reflog", "expire", "--expire=now", "--all"]);
    core.repository.git(&["gc", "--quiet", "--prune=now"]);

    let agent =
        core.start_agent("late", STAGELY, &["agent".as_ref(), "--config".as_ref(), &config]);
    let run = core.ended(run).await;

    let app = job(&run, "app");
    let problem = CloneProblem::CommitGone;
    assert_eq!(app.reason, Some(FailureReason::Clone { problem }), "{app:#?}");
    assert_eq!(app.attempt, 1);
    assert!(agent.stop().await.success());
    core.finish().await;
}
