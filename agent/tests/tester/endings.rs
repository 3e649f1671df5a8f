//! Tests that do not end by themselves, or do not begin.

use std::time::{Duration, Instant};

use serde_json::json;
use stagely_protocol::{FailureReason, RegistryProblem, StatusState};
use stagely_test_support::wait::eventually;

use crate::setup::{Setup, running};

#[tokio::test]
async fn a_test_that_takes_too_long_is_stopped_and_what_it_left_is_reported() {
    let setup = Setup::new("late").await;
    let image = setup.image("");
    setup.passes(setup.test(&image, "true", json!({}))).await;
    let script = "mkdir out; echo \"<testsuite><testcase name='a'/></testsuite>\" >out/a.xml; echo waiting; sleep 1000";
    let fields =
        json!({ "timeout_seconds": 3, "junit": ["out"], "artifacts": ["out"], "retries": 2 });
    let started = Instant::now();
    let status = setup.fails(setup.test(&image, script, fields)).await;
    assert!(started.elapsed() < Duration::from_mins(1), "{:?}", started.elapsed());
    assert_eq!(status.error, Some(FailureReason::Timeout { limit_seconds: 3 }));
    assert_eq!(status.error_message.unwrap(), "timed out after 3s");
    assert_eq!(status.tests.unwrap().passed, 1);
    assert_eq!(setup.core.files(&status.artifacts.unwrap())[0].0, "out/a.xml");
    assert!(setup.log().contains("waiting") && !setup.log().contains("Trying again"));
}

#[tokio::test]
async fn a_test_that_is_cancelled_ends_at_once() {
    let setup = Setup::new("cancelled").await;
    let image = setup.image("");
    let message = setup.test(&image, "sleep 1000", json!({ "artifacts": ["."] }));
    let (status, ()) = tokio::join!(setup.run(message), async {
        eventually("the test runs", async || running(setup.machine.as_str())).await;
        setup.cancel.cancel();
    });
    assert_eq!(status.state, StatusState::Cancelled, "{status:?}");
    assert_eq!((status.tests, status.artifacts), (None, None));
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_the_users_mistake() {
    let setup = Setup::new("missing").await;
    let image = setup.image("");
    let message = setup.test(&image, "", json!({ "command": ["/no/such/program"] }));
    let status = setup.fails(message).await;
    assert_eq!(status.error, Some(FailureReason::Test { failed: 0, exit_code: 127 }));
    let message = status.error_message.unwrap();
    let begin = "the test cannot be started: ";
    assert!(message.starts_with(begin) && message.contains("/no/such/program"), "{message}");
}

#[tokio::test]
async fn an_image_that_is_not_in_the_registry_is_named() {
    let setup = Setup::new("image").await;
    let image = setup.image("");
    let missing = image.replace(&image[image.len() - 4..], "0000");
    let status = setup.fails(setup.test(&missing, "true", json!({}))).await;
    let problem = RegistryProblem::Missing;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{status:?}");
    assert!(status.error_message.unwrap().contains(&missing));
}

#[tokio::test]
async fn a_test_of_a_preview_that_is_not_here_is_tried_elsewhere() {
    let setup = Setup::new("elsewhere").await;
    let image = setup.image("");
    let preview = json!({ "url": "http://localhost", "preview_id": "prev_of_another_machine" });
    let status = setup.fails(setup.test(&image, "true", json!({ "preview": preview }))).await;
    let error = status.error.unwrap();
    assert!(error.is_transient() && !error.is_users(), "{error:?}");
    let message = "the preview prev_of_another_machine does not run on this machine";
    assert_eq!(status.error_message.unwrap(), message);
}

#[tokio::test]
async fn a_killed_test_names_the_memory() {
    let setup = Setup::new("memory").await;
    let image = setup.image("");
    let status = setup.fails(setup.test(&image, "exit 137", json!({}))).await;
    assert_eq!(status.error, Some(FailureReason::Test { failed: 0, exit_code: 137 }));
    assert!(status.error_message.unwrap().contains("a larger `machine` has more"));
}
