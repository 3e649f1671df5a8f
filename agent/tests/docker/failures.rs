//! Builds that fail, and whose fault that is.

use std::time::{Duration, Instant};

use serde_json::json;
use stagely_protocol::{FailureReason, RegistryProblem, StatusState};
use stagely_test_support::registry::{FaultyRegistry, Registry};

use crate::setup::Setup;

#[tokio::test]
async fn the_users_failures_name_the_step() {
    let setup = Setup::new("fails");
    let dockerfile = "FROM debian:13-slim\nRUN echo the reason; exit 42\n";
    let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], json!({}))).await;
    assert_eq!(
        (status.state, status.exit_code),
        (StatusState::Failed, Some(42)),
        "{}",
        setup.log()
    );
    let Some(FailureReason::User { step, exit_code: 42 }) = status.error else {
        panic!("{:?}", status.error)
    };
    assert_eq!(step, "[2/2] RUN echo the reason; exit 42");
    assert!(status.error_message.unwrap().contains("the reason"));

    for dockerfile in ["FROM debian:13-slim\nRUNN x\n", "FROM debian:13-slim\nCOPY nothing /\n"] {
        let status = setup.run(setup.build(&[("Dockerfile", dockerfile)], json!({}))).await;
        let user = matches!(status.error, Some(FailureReason::User { exit_code: 1, .. }));
        assert!(user, "{status:?}\n{}", setup.log());
    }
    let missing = setup.build(&[], json!({ "dockerfile": "x.Dockerfile" }));
    let status = setup.run(missing).await;
    let message = status.error_message.unwrap();
    assert_eq!(message, "no Dockerfile: `x.Dockerfile` is not a file of the repository");
}

#[tokio::test]
async fn a_registry_that_refuses_and_one_that_does_not_answer_are_different_reasons() {
    let setup = Setup::new("registry");
    let files = [("Dockerfile", "FROM debian:13-slim\n")];
    let mut message = setup.build(&files, json!({}));
    message["registry_auth"]["password"] = "wrong-password".into();
    let status = setup.run(message).await;
    let problem = RegistryProblem::Authentication;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());

    let mut message = setup.build(&files, json!({}));
    message.as_object_mut().unwrap().remove("registry_auth");
    let status = setup.run(message).await;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());

    let unreachable = json!({ "target_image": "127.0.0.1:1/a:b" });
    let retry_limit = Duration::from_secs(2);
    let status = setup.run_with(setup.build(&files, unreachable.clone()), retry_limit).await;
    let problem = RegistryProblem::Unavailable;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
    let mut message = setup.build(&files, unreachable);
    message.as_object_mut().unwrap().remove("registry_auth");
    let status = setup.run_with(message, retry_limit).await;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
}

/// The registry's answer is the last word, said once, with what to do. It is the same with a cache, whose export follows
/// the push and succeeds or fails by itself.
#[tokio::test]
async fn a_registry_that_refuses_an_image_is_not_tried_again() {
    let files = [("Dockerfile", "FROM debian:13-slim\nRUN head -c 300000 /dev/urandom > /file\n")];
    for (fault, words, advice) in [
        ("no-repository", "404 Not Found", "does not create the repository"),
        ("too-large", "413", "client_max_body_size"),
        ("immutable", "400 Bad Request", ""),
        ("denied", "403 Forbidden", "look at its permissions"),
    ] {
        let registry = FaultyRegistry::start(fault);
        let setup = Setup { registry: registry.url.clone(), ..Setup::new(fault) };
        for config in [json!({}), json!({ "cache_to": setup.image("cache") })] {
            let message = setup.build(&files, config.clone());
            let begin = Instant::now();

            let status = setup.run_with(message, Duration::from_mins(1)).await;

            let problem = RegistryProblem::Refused;
            assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
            assert_eq!(status.digest, None, "{fault} {config}");
            let message = status.error_message.unwrap();
            assert!(message.contains(words) && message.contains(advice), "{fault}: {message}");
            assert!(!setup.log().contains("trying again"), "{}", setup.log());
            // The aim of 5 s is for a machine without other work.
            assert!(begin.elapsed() < Duration::from_secs(30), "{fault}: {:?}", begin.elapsed());
        }
    }
}

#[tokio::test]
async fn an_image_that_a_failing_registry_does_not_take_is_not_reported_before_its_cache() {
    let registry = FaultyRegistry::start("broken");
    let setup = Setup { registry: registry.url.clone(), ..Setup::new("broken") };
    let config = json!({ "cache_to": setup.image("cache") });
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\n")], config);

    let status = setup.run_with(message, Duration::from_secs(2)).await;

    let problem = RegistryProblem::Unavailable;
    assert_eq!(status.error, Some(FailureReason::Registry { problem }), "{}", setup.log());
    assert_eq!(status.digest, None, "{status:?}");
}

/// Builds of one engine that push the same layer at the same time may make the registry refuse a manifest.
#[tokio::test]
async fn a_manifest_that_is_refused_for_want_of_a_layer_is_pushed_once_more() {
    let registry = FaultyRegistry::start("lacks-layer");
    let setup = Setup { registry: registry.url.clone(), ..Setup::new("lacks-layer") };
    let config = json!({ "cache_to": setup.image("cache") });
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\n")], config);

    let status = setup.run(message).await;

    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    assert!(setup.log().contains("The image is pushed once more"), "{}", setup.log());
}

#[tokio::test]
async fn a_login_that_expires_during_a_build_is_renewed() {
    let registry = FaultyRegistry::start("expired-login");
    let setup = Setup { registry: registry.url.clone(), ..Setup::new("expired-login") };
    let config = json!({ "cache_to": setup.image("cache") });
    let message = setup.build(&[("Dockerfile", "FROM debian:13-slim\n")], config);

    let status = setup.run(message).await;

    assert_eq!(status.state, StatusState::Completed, "{status:?}\n{}", setup.log());
    assert_eq!(setup.log().matches("Logging in").count(), 2, "{}", setup.log());
    let digest = status.digest.unwrap();
    let real = Registry::real();
    let name = setup.image("app").replace(&registry.url, &real.url);
    assert_eq!(real.digest(&name).await.as_deref(), Some(digest.as_str()));
}
