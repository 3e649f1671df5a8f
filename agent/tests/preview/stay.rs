//! Previews that stay while the agent or the connection does not, and what is reported of them.

use serde_json::json;
use stagely_agent::AgentExit;
use stagely_protocol::{PreviewState, StatusState};
use stagely_test_support::wait::eventually;

use crate::core::{Agent, Core};
use crate::setup::{Setup, container, docker, get};

const COMPOSE: &str = "services:\n  web: {build: ., volumes: ['data:/data']}\n  \
    worker: {image: busybox, command: sleep 1000}\nvolumes: {data: }\n";

#[tokio::test]
async fn a_killed_agent_leaves_its_preview_serving_and_the_next_one_names_it() {
    let (setup, mut core) = (Setup::new("stay"), Core::start().await);
    let config = || core.config(setup.machine.as_str(), setup.work_dir.path());
    let (config, second, third) = (config(), config(), config());
    let agent = Agent::start(config);
    let (mut session, hello) = core.session().await;
    assert!(hello.previews.as_ref().unwrap().is_empty());
    session
        .send(setup.deploy_commit(7, &setup.web("one"), &[("compose.yaml", COMPOSE)], json!({})))
        .await;
    let address = session.end().await.endpoints[0].address.clone();
    assert_eq!(session.preview().await.state, PreviewState::Serving);
    agent.kill().await;
    assert_eq!(get(&address, "/").await, "page one\n");

    let agent = Agent::start(second);
    let (mut session, hello) = core.session().await;
    assert_eq!(hello.previews.as_ref().unwrap().len(), 1);
    assert_eq!(hello.previews.as_ref().unwrap()[0].preview_id.as_str(), setup.preview);
    assert_eq!(hello.previews.as_ref().unwrap()[0].generation, 7);
    assert_eq!(session.preview().await.state, PreviewState::Serving);

    docker(&["kill", &container(&setup.preview, "worker")]);
    let degraded = session.preview().await;
    assert_eq!(degraded.state, PreviewState::Degraded);
    assert_eq!(degraded.messages, ["the service `worker` ended with exit code 137"]);
    let worker = degraded.services.iter().find(|service| service.name == "worker").unwrap();
    assert_eq!((&*worker.state, worker.exit_code), ("exited", Some(137)));
    // The state is repeated in each session.
    drop(session);
    let (mut session, hello) = core.session().await;
    assert_eq!(hello.previews.as_ref().unwrap().len(), 1);
    assert_eq!(session.preview().await.state, PreviewState::Degraded);

    // An agent that is killed during an update: the next one goes back.
    let slow = json!({ "migrate": { "service": "web", "command": ["sh", "-c", "touch /data/begun; sleep 100"] } });
    session
        .send(setup.deploy_commit(8, &setup.web("two"), &[("compose.yaml", COMPOSE)], slow))
        .await;
    let web = container(&setup.preview, "web");
    let web = web.lines().last().unwrap().to_owned();
    eventually("the migration runs", async || {
        let begun =
            std::process::Command::new("docker").args(["exec", &web, "ls", "/data/begun"]).output();
        begun.unwrap().status.success().then_some(())
    })
    .await;
    agent.kill().await;
    let agent = Agent::start(third);
    let (mut session, hello) = core.session().await;
    assert_eq!(hello.previews.as_ref().unwrap()[0].generation, 7);
    let serving = session.preview().await;
    assert_eq!((serving.state, serving.generation), (PreviewState::Serving, 7), "{serving:?}");
    let address = docker(&["port", &container(&setup.preview, "web"), "8080"]);
    assert_eq!(get(address.trim(), "/").await, "page one\n");

    // SIGTERM leaves the preview, TERMINATE removes it, also if its files are gone.
    agent.stop.cancel();
    assert_eq!(agent.exit().await, AgentExit::Stopped);
    assert_eq!(get(address.trim(), "/").await, "page one\n");
    std::fs::remove_dir_all(setup.work_dir.path().join("previews")).unwrap();
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    session.send(json!({ "type": "TERMINATE", "grace": 30 })).await;
    assert_eq!(agent.exit().await, AgentExit::Terminated);
    assert_eq!(setup.left(), [""; 0]);
}

#[tokio::test]
async fn a_first_deployment_that_was_killed_is_removed_by_the_next_agent() {
    let (setup, mut core) = (Setup::new("killed"), Core::start().await);
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    let slow = json!({ "migrate": { "service": "web", "command": ["sleep", "100"] } });
    session
        .send(setup.deploy_commit(1, &setup.web("one"), &[("compose.yaml", COMPOSE)], slow))
        .await;
    eventually("the migration runs", async || (setup.left().len() > 2).then_some(())).await;
    agent.kill().await;
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, hello) = core.session().await;
    assert!(hello.previews.as_ref().unwrap().is_empty(), "{hello:?}");
    eventually("nothing is left", async || setup.left().is_empty().then_some(())).await;
    session
        .send(setup.deploy_commit(2, &setup.web("one"), &[("compose.yaml", COMPOSE)], json!({})))
        .await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    session.send(json!({ "type": "TERMINATE", "grace": 30 })).await;
    agent.exit().await;
    assert_eq!(setup.left(), [""; 0]);
}
