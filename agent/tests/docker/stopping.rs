//! Builds that are stopped: nothing of them keeps running.

use std::time::{Duration, Instant};

use serde_json::json;
use stagely_protocol::{FailureReason, StatusState};

use crate::setup::{Setup, runs_on_host};

/// A step that sleeps for a time that no other one sleeps, and how it looks on the host.
fn sleeper(number: u32) -> (String, String) {
    let sleep = format!("sleep {}{number}", std::process::id());
    (format!("FROM debian:13-slim\nRUN echo begun | tr a-z A-Z; {sleep}\n"), sleep)
}

#[tokio::test]
async fn a_timeout_leaves_nothing_running() {
    let setup = Setup::new("timeout");
    let (dockerfile, sleep) = sleeper(1);
    // The limit holds for the clone as well; a loaded machine takes its time until the step begins.
    for limit in [8, 16, 32, 64] {
        let config = json!({ "timeout_seconds": limit });
        let started = Instant::now();
        let status = setup.run(setup.build(&[("Dockerfile", &dockerfile)], config)).await;
        let took = started.elapsed();
        assert!(!runs_on_host(&sleep));
        let error = status.error.unwrap();
        assert_eq!(error, FailureReason::Timeout { limit_seconds: limit }, "{}", setup.log());
        assert!(took >= Duration::from_secs(limit), "{took:?}");
        if setup.log().contains(" BEGUN") {
            return;
        }
    }
    panic!("the step never began: {}", setup.log());
}

#[tokio::test]
async fn a_cancel_leaves_nothing_running_whenever_it_comes() {
    // Docker loses a cancellation that comes while a container is being started: some 20 to 50 ms
    // after the step's name is shown, on a quiet machine.
    let moments = [("] RUN", 0), ("] RUN", 20), ("] RUN", 30), ("] RUN", 45), (" BEGUN", 0)];
    for (number, (mark, millis)) in (2..).zip(moments) {
        let setup = Setup::new("cancel");
        let (dockerfile, sleep) = sleeper(number);
        let message = setup.build(&[("Dockerfile", &dockerfile)], json!({}));
        let (status, ()) = tokio::join!(setup.run(message), async {
            setup.log_has(mark).await;
            tokio::time::sleep(Duration::from_millis(millis)).await;
            setup.cancel.cancel();
        });
        assert!(!runs_on_host(&sleep), "{mark} {millis}\n{}", setup.log());
        assert_eq!(status.state, StatusState::Cancelled, "{mark} {millis}\n{}", setup.log());
    }
}
