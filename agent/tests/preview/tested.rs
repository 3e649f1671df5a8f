//! Tests on the machine of the preview that they are for.

use serde_json::{Value, json};
use stagely_protocol::{FailureReason, StatusState};
use stagely_test_support::wait::eventually;

use crate::core::{Agent, Core};
use crate::setup::{Setup, docker};

fn test(setup: &Setup, image: &str, script: &str) -> Value {
    json!({
        "type": "TEST",
        "job_id": "job_test",
        "image": image,
        "command": ["sh", "-c", script],
        "timeout_seconds": 60,
        "preview": { "url": "http://pr-7.localhost", "preview_id": setup.preview },
    })
}

#[tokio::test]
async fn a_test_on_the_preview_reaches_the_services_by_their_names() {
    let setup = Setup::new("tested");
    let image = setup.web("one");
    let compose = "services:\n  web: {build: ., networks: [front]}\n  \
        db: {image: busybox, command: httpd -f -p 5432, networks: [back]}\n\
        networks: {front: , back: {internal: true}}\n";
    let files = [("compose.yaml", compose)];
    setup.serves(setup.deploy_commit(1, &image, &files, json!({}))).await;
    let before = setup.left().len();

    // Both networks, and no other container has the image's name.
    let script =
        "wget -q -O - http://web:8080/ && wget -O - http://db:5432/ 2>&1 | grep '404 Not Found'";
    let status = setup.run(test(&setup, &image, script)).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    assert!(setup.log().contains("page one"), "{}", setup.log());
    assert_eq!(setup.left().len(), before, "the test leaves nothing");

    let status = setup.run(test(&setup, &image, "wget -q -O - http://nobody:8080/")).await;
    assert_eq!(status.error, Some(FailureReason::Test { failed: 0, exit_code: 1 }), "{status:?}");
}

#[tokio::test]
async fn a_test_does_not_keep_its_preview_from_ending() {
    let (setup, mut core) = (Setup::new("tested-end"), Core::start().await);
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    let image = setup.web("one");
    session.send(setup.deploy(1, &image, json!({}))).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    session.send(test(&setup, &image, "sleep 1000")).await;
    let filter = format!("label=stagely.preview={}", setup.preview);
    let containers = || docker(&["ps", "--quiet", "--filter", &filter]).lines().count();
    eventually("the test runs", async || (containers() == 2).then_some(())).await;

    let end = json!({ "type": "SLEEP", "preview_id": setup.preview, "archive_bytes_max": 0 });
    session.send(end).await;

    // The next attempt is that of core.
    let status = session.end().await;
    assert!(status.error.as_ref().is_some_and(FailureReason::is_transient), "{status:?}");
    eventually("nothing is left", async || setup.left().is_empty().then_some(())).await;
    agent.stop.cancel();
    agent.exit().await;
}
