//! A registry that refuses, and one that goes away.

use std::fs;
use std::time::Duration;

use stagely::api::RunStatus;
use stagely_protocol::{FailureReason, RegistryProblem};
use stagely_test_core::{Core, job};
use stagely_test_support::proxy::Proxy;
use stagely_test_support::registry::Registry;

use crate::STAGELY;

const MANIFEST: &str = "builds: { app: { context: . } }\n";

#[tokio::test]
async fn a_registry_that_refuses_the_password_fails_the_job_once() {
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("registry-password");
    fs::write(&password_file, "not-the-password\n").unwrap();
    let password_file = password_file.to_str().unwrap().to_owned();
    let registry = Registry { password_file, ..Registry::real() };
    let core = Core::start_with(STAGELY, "password", registry, "").await;
    let dockerfile = format!("FROM busybox\nRUN : {}\n", core.name);

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", MANIFEST)]).await;
    let run = core.ended(run).await;

    let app = job(&run, "app");
    let problem = RegistryProblem::Authentication;
    assert_eq!(app.reason, Some(FailureReason::Registry { problem }), "{app:#?}");
    assert_eq!((run.status, app.attempt), (RunStatus::Failed, 1));
    assert!(!core.log(app).await.contains("not-the-password"));
    core.finish().await;
}

#[tokio::test]
async fn a_registry_that_is_away_for_20_seconds_during_a_push_is_waited_for() {
    let proxy = Proxy::start(Registry::real().url, Duration::from_secs(20)).await;
    let registry = Registry { url: proxy.address.to_string(), ..Registry::real() };
    let core = Core::start_with(STAGELY, "away", registry, "").await;
    let dockerfile = format!("FROM busybox\nRUN echo {} > /file\n", core.name);

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", MANIFEST)]).await;
    proxy.is_pushed_to().await;
    proxy.go_away();
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}\n{}", core.log(&run.jobs[0]).await);
    let app = job(&run, "app");
    assert!(app.lost_attempts.is_empty(), "{app:#?}");
    assert!(app.ended_at.unwrap().0 - app.started_at.unwrap().0 > 20_000, "{app:#?}");
    core.finish().await;
}
