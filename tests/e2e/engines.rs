//! A Docker engine that stops while it builds.

use stagely::api::RunStatus;
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, job};
use stagely_test_support::engine::PrivateEngine;

use crate::STAGELY;

#[tokio::test]
async fn a_build_whose_engine_dies_is_tried_again_when_the_engine_is_back() {
    let mut engine = PrivateEngine::start().await;
    let core =
        Core::start(STAGELY, "engine", &format!("[local]\ndocker-host = \"{}\"", engine.host()))
            .await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    engine.crash();
    breakpoint.clear().await;
    core.until(run, "the attempt is lost", |run| job(run, "app").attempt == 2).await;
    let app = core.view(run).await.jobs.remove(0);
    core.log_has(&app, "Waiting for the Docker engine").await;
    engine.launch().await;
    breakpoint.reached().await;
    // The engine is stopped in order.
    engine.stop().await;
    breakpoint.clear().await;
    core.until(run, "another attempt is lost", |run| job(run, "app").attempt == 3).await;
    engine.launch().await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let reasons: Vec<_> = app.lost_attempts.iter().map(|lost| &lost.reason).collect();
    assert_eq!(reasons, [&FailureReason::Engine, &FailureReason::Engine]);
    core.finish().await;
}
