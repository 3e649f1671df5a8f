//! Deployments in place of one that serves.

use serde_json::{Value, json};
use stagely_protocol::{DeployProblem, FailureReason};
use stagely_test_support::wait::eventually;

use crate::setup::{Setup, container, docker, get, has_image};

const COMPOSE: &str = "services:\n  web: {build: ., volumes: ['data:/data']}\n  \
    db: {image: busybox, command: sleep 1000}\nvolumes: {data: }\n";

fn migrate(script: &str) -> Value {
    json!({
        "migrate": { "service": "web", "command": ["sh", "-c", script] },
        "seed": { "service": "web", "command": ["sh", "-c", "echo seeded >>/data/log"] },
    })
}

#[tokio::test]
async fn the_old_version_serves_until_the_new_one_does_and_data_stays() {
    let setup = Setup::new("update");
    let files = [("compose.yaml", COMPOSE)];
    let (one, two) = (setup.web("one"), setup.web("two"));
    let first = setup.deploy_commit(1, &one, &files, migrate("echo first >>/data/log"));
    let address = setup.serves(first).await;
    let db = container(&setup.preview, "db");

    let script = "echo second >>/data/log; while ! test -e /data/go; do sleep 0.1; done";
    let second = setup.deploy_commit(2, &two, &files, migrate(script));
    let during = async {
        eventually("the second migration runs", async || {
            get(&address, "/cgi-bin/data").await.contains("second").then_some(())
        })
        .await;
        assert_eq!(get(&address, "/").await, "page one\n");
        let web = container(&setup.preview, "web");
        let web = web.lines().last().unwrap();
        docker(&["exec", web, "touch", "/data/go"]);
    };
    let (address, ()) = tokio::join!(setup.serves(second), during);
    assert_eq!(get(&address, "/").await, "page two\n");
    assert_eq!(get(&address, "/cgi-bin/data").await, "first\nseeded\nsecond\n");
    assert_eq!(container(&setup.preview, "db"), db, "the database was restarted");
    assert!(!setup.folder().join("job_1/src").exists());

    // The image of the first generation goes before the third one is pulled.
    let three = setup.web("three");
    let address = setup.serves(setup.deploy_commit(3, &three, &files, migrate("true"))).await;
    assert_eq!(get(&address, "/").await, "page three\n");
    assert!(has_image(&three) && has_image(&two) && !has_image(&one));

    // Fresh data is seeded again.
    let fresh = json!({ "fresh": true });
    let mut message = setup.deploy_commit(4, &three, &files, migrate("echo fourth >>/data/log"));
    message.as_object_mut().unwrap().extend(fresh.as_object().unwrap().clone());
    let address = setup.serves(message).await;
    assert_eq!(get(&address, "/cgi-bin/data").await, "fourth\nseeded\n");
}

#[tokio::test]
async fn what_served_before_serves_again_after_a_failure() {
    let setup = Setup::new("back");
    let files = [("compose.yaml", COMPOSE)];
    let one = setup.web("one");
    setup.serves(setup.deploy_commit(1, &one, &files, json!({}))).await;
    let crash =
        setup.image("crash", "FROM busybox\nCMD [\"sh\", \"-c\", \"echo no key; exit 9\"]\n");
    let unhealthy = json!({ "endpoints": [{
        "name": "web", "service": "web", "port": 8080, "health": { "path": "/no", "timeout_seconds": 1 },
    }] });
    let broken_db = COMPOSE.replace("sleep 1000", "sh -c 'exit 6'");
    let broken_db = [("compose.yaml", &*broken_db)];
    let two = setup.web("two");
    for (message, problem, expected) in [
        (setup.deploy_commit(2, &crash, &files, json!({})), DeployProblem::Service, "no key"),
        (
            setup.deploy_commit(3, &two, &files, unhealthy),
            DeployProblem::Health,
            "GET /no answered 404",
        ),
        (
            setup.deploy_commit(4, &two, &files, migrate("exit 2")),
            DeployProblem::Migrate,
            "exit code 2",
        ),
        (
            setup.deploy_commit(5, &two, &broken_db, json!({})),
            DeployProblem::Service,
            "`db` ended with exit code 6",
        ),
        (
            setup.deploy_commit(
                6,
                &two,
                &[("compose.yaml", "services: {web: {build: ., pid: host}}")],
                json!({}),
            ),
            DeployProblem::Forbidden,
            "`pid: host`",
        ),
    ] {
        let generation = message["generation"].clone();
        let status = setup.run(message).await;
        let error = Some(FailureReason::Deploy { problem });
        assert_eq!(status.error, error, "{generation}: {status:?}\n{}", setup.log());
        let text = status.error_message.unwrap();
        assert!(text.contains(expected), "{expected}: {text}");
        // A file that is refused changes nothing.
        assert_eq!(
            text.ends_with("generation 1 serves again"),
            problem != DeployProblem::Forbidden,
            "{text}"
        );
        let web = container(&setup.preview, "web");
        let address = docker(&["port", &web, "8080"]);
        assert_eq!(get(address.trim(), "/").await, "page one\n");
        let db = container(&setup.preview, "db");
        assert_eq!(docker(&["inspect", "--format", "{{.State.Status}}", &db]), "running\n");
        assert!(setup.folder().join("job_1/src").exists());
        assert!(!setup.folder().join("updating").exists());
    }
}
