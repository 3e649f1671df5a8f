//! Previews that are one container.

use serde_json::json;
use stagely_protocol::{DeployProblem, FailureReason, StatusState};

use crate::setup::{Setup, container, docker, get, is_private};

#[tokio::test]
async fn one_image_serves_with_its_variables_and_secrets_stay_secret() {
    let setup = Setup::new("single");
    let image = setup.web("one");
    let secret = "s3cr3t-$value'\"0815";
    let message = setup.deploy(
        1,
        &image,
        json!({
            "env": { "APP_URL": "http://pr-1.example", "PRICE": "5$ ${HOME}" },
            "secrets": { "STRIPE_KEY": secret },
            "migrate": { "command": ["sh", "-c", "echo key $STRIPE_KEY for $APP_URL"] },
            "seed": { "command": ["sh", "-c", "echo seeded >&2"] },
        }),
    );
    let address = setup.serves(message).await;
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert_eq!(get(&address, "/").await, "page one\n");
    let variables = get(&address, "/cgi-bin/env").await;
    for line in
        [&*format!("STRIPE_KEY={secret}"), "APP_URL=http://pr-1.example", "PRICE=5$ ${HOME}"]
    {
        assert!(variables.lines().any(|variable| variable == line), "{line}\n{variables}");
    }
    let log = setup.log();
    assert!(log.contains("key *** for http://pr-1.example") && log.contains("seeded"), "{log}");
    assert!(!log.contains("s3cr3t") && !log.contains(&setup.registry.password()), "{log}");
    assert!(log.contains(&format!("serving web at {address}")), "{log}");
    assert!(is_private(&setup.folder().join("job_1")));
    assert!(is_private(&setup.folder().join("job_1/compose.json")));
    let arguments =
        docker(&["inspect", "--format", "{{.Path}} {{.Args}}", &container(&setup.preview, "app")]);
    assert!(!arguments.contains("s3cr3t"), "{arguments}");
}

#[tokio::test]
async fn a_first_deployment_that_fails_leaves_nothing_and_says_why() {
    let setup = Setup::new("broken");
    let crashing =
        setup.image("crash", "FROM busybox\nCMD [\"sh\", \"-c\", \"echo no database; exit 7\"]\n");
    let status = setup.run(setup.deploy(1, &crashing, json!({}))).await;
    assert_eq!(status.error, Some(FailureReason::Deploy { problem: DeployProblem::Service }));
    let message = status.error_message.unwrap();
    assert!(message.contains("`app`") && message.contains("exit code 7"), "{message}");
    assert!(message.contains("no database") && setup.log().contains("no database"), "{message}");

    let other_port =
        json!({ "endpoints": [{ "name": "web", "port": 9, "health": { "timeout_seconds": 1 } }] });
    let status = setup.run(setup.deploy(2, &setup.web("one"), other_port)).await;
    assert_eq!(status.error, Some(FailureReason::Deploy { problem: DeployProblem::Health }));
    let message = status.error_message.unwrap();
    assert!(message.contains("`web`") && message.contains("port 9"), "{message}");

    let not_found = json!({ "endpoints": [{
        "name": "web", "port": 8080, "health": { "path": "/nothing", "timeout_seconds": 1 },
    }] });
    let status = setup.run(setup.deploy(3, &setup.web("one"), not_found)).await;
    let message = status.error_message.unwrap();
    assert!(message.contains("GET /nothing answered 404"), "{message}");

    let migrate = json!({ "migrate": { "command": ["sh", "-c", "echo locked >&2; exit 3"] } });
    let status = setup.run(setup.deploy(4, &setup.web("one"), migrate)).await;
    assert_eq!(status.error, Some(FailureReason::Deploy { problem: DeployProblem::Migrate }));
    let message = status.error_message.unwrap();
    assert!(message.contains("exit code 3: locked"), "{message}");

    let slow = json!({ "seed": { "command": ["sleep", "60"], "timeout_seconds": 1 } });
    let status = setup.run(setup.deploy(5, &setup.web("one"), slow)).await;
    assert_eq!(status.error, Some(FailureReason::Deploy { problem: DeployProblem::Seed }));
    assert_eq!(setup.left(), [""; 0]);
    assert!(!setup.folder().exists());
}

#[tokio::test]
async fn an_image_that_is_gone_is_no_fault_of_the_user() {
    let setup = Setup::new("gone");
    let image = setup.web("one");
    let (name, _) = image.split_once('@').unwrap();
    let gone = format!("{name}@sha256:{}", "0".repeat(64));
    let status = setup.run(setup.deploy(1, &gone, json!({}))).await;
    assert!(matches!(status.error, Some(FailureReason::Registry { .. })), "{status:?}");
    assert!(status.error_message.unwrap().contains(&gone));
}

#[tokio::test]
async fn a_cancelled_deployment_leaves_nothing() {
    let setup = Setup::new("cancel");
    let migrate = json!({ "migrate": { "command": ["sh", "-c", "echo begun; sleep 100"] } });
    let message = setup.deploy(1, &setup.web("one"), migrate);
    let cancel = async {
        stagely_test_support::wait::eventually("the migration runs", async || {
            setup.log().contains("begun").then_some(())
        })
        .await;
        setup.cancel.cancel();
    };
    let (status, ()) = tokio::join!(setup.run(message), cancel);
    assert_eq!(status.state, StatusState::Cancelled, "{status:?}");
    assert_eq!(setup.left(), [""; 0]);
}
