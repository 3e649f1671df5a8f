//! The deletion of old records.

use reqwest::{Method, StatusCode};
use stagely::api::{RunStatus, RunView};
use stagely_test_core::Core;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

#[tokio::test]
async fn runs_that_ended_long_ago_are_forgotten_with_their_jobs_logs_and_machines() {
    let mut core = Core::start(STAGELY, "old", "").await;
    let dockerfile = format!("FROM busybox\nRUN : {}\n", core.name);
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let token = core.admin_token();

    // The remaining records survive a restart, also the tokens.
    assert!(core.shut_down().await.success());
    core.launch().await;
    assert_eq!(core.admin_token(), token);
    assert_eq!(core.view(run.id).await.jobs[0].digest, run.jobs[0].digest);
    assert!(!core.log(&run.jobs[0]).await.is_empty());

    assert!(core.shut_down().await.success());
    let path = core.path("stagely.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let retention = "\n[retention]\nruns = \"1ms\"\nmachines = \"1ms\"\n";
    std::fs::write(path, config + retention).unwrap();
    core.launch().await;
    eventually("the run is forgotten", async || {
        core.get::<Vec<RunView>>("/runs").await.is_empty().then_some(())
    })
    .await;
    for path in [format!("jobs/{}", run.jobs[0].id), format!("jobs/{}/logs", run.jobs[0].id)] {
        let path = format!("/api/v1/{path}");
        let (status, _) = core.call(Some(&token), Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let stored = core.finish().await;
    let state = &stored.state;
    assert!(state.jobs.is_empty() && state.runs.is_empty() && state.machines.is_empty());
    assert!(state.environments.is_empty(), "a branch is forgotten with its last run");
    assert_eq!(state.projects.len(), 1, "a project keeps its name");
}
