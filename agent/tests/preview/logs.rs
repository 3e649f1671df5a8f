//! What the services of a preview write reaches core.

use std::time::Duration;

use serde_json::json;
use stagely_protocol::StatusState;

use crate::core::{Agent, Core};
use crate::setup::{Setup, container, docker};

const COMPOSE: &str = r#"
services:
  web:
    build: .
    command: ["sh", "-c", "echo key $$KEY and more; exec httpd -f -p 8080 -h /www"]
  worker:
    image: busybox
    command: ["sh", "-c", "while true; do sleep 0.1; echo line; done"]
"#;

/// Each line once, in order.
fn check(lines: &[(u64, String)], first: u64) {
    let numbers: Vec<u64> = lines.iter().map(|(number, _)| *number).collect();
    let expected: Vec<u64> = (first..first + lines.len() as u64).collect();
    assert_eq!(numbers, expected);
}

#[tokio::test]
async fn lines_of_services_are_masked_and_go_on_with_the_next_agent() {
    let (setup, mut core) = (Setup::new("logs"), Core::start().await);
    let config = || core.config(setup.machine.as_str(), setup.work_dir.path());
    let (first, second) = (config(), config());
    let agent = Agent::start(first);
    let (mut session, _) = core.session().await;
    let image = setup.web("one");
    let secrets = json!({ "secrets": { "KEY": "correct-horse-battery" } });
    session.send(setup.deploy_commit(1, &image, &[("compose.yaml", COMPOSE)], secrets)).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let id = format!("{}-1", setup.preview);
    session.line(&id, "web    | key *** and more").await;
    session.line(&id, "worker | line").await;
    // What core has acknowledged is on disk after a second.
    session.receive_for(Duration::from_secs(2)).await;
    let mut lines = session.lines.remove(&id).unwrap();
    check(&lines, 0);
    agent.kill().await;
    drop(session);

    let agent = Agent::start(second);
    let stored = lines.len() as u64;
    let (mut session, hello) = core.session_with(&[(&id, stored)]).await;
    assert_eq!(hello.previews.unwrap()[0].generation, 1);
    session.line(&id, "worker | line").await;
    let more = session.lines.remove(&id).unwrap();
    check(&more, stored);
    lines.extend(more);
    let starts = lines.iter().filter(|(_, line)| line.contains("key ***")).count();
    assert_eq!(starts, 1, "{lines:?}");

    // The next deployment has a log of its own. The worker goes on.
    let secrets = json!({ "secrets": { "KEY": "another-horse-battery" } });
    session.send(setup.deploy_commit(2, &image, &[("compose.yaml", COMPOSE)], secrets)).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let id = format!("{}-2", setup.preview);
    session.line(&id, "web    | key *** and more").await;
    session.line(&id, "worker | line").await;
    check(&session.lines[&id], 0);
    let policy = docker(&[
        "inspect",
        "-f",
        "{{json .HostConfig.LogConfig}}",
        &container(&setup.preview, "worker"),
    ]);
    assert!(policy.contains("\"max-size\":\"16m\""), "{policy}");
    session.send(json!({ "type": "TERMINATE", "grace": 30 })).await;
    agent.exit().await;
    assert_eq!(setup.left(), [""; 0]);
}
