//! Whose fault a failure is, and what its message says.

use serde_json::json;
use stagely_protocol::{DeployProblem, FailureReason, PreviewState, StatusState};
use stagely_test_support::wait::eventually;

use crate::core::{Agent, Core};
use crate::setup::{Setup, container, docker, get};

const COMPOSE: &str = "services:\n  web: {build: ., volumes: ['data:/data']}\nvolumes: {data: }\n";

const fn deploy_problem(problem: DeployProblem) -> FailureReason {
    FailureReason::Deploy { problem }
}

#[tokio::test]
async fn a_command_that_ended_has_failed_by_itself_whatever_it_writes() {
    let setup = Setup::new("words");
    let image = setup.web("one");
    for (script, expected) in [
        (
            "echo write /x: no space left on device >&2; exit 3",
            "exit code 3: write /x: no space left",
        ),
        ("echo Cannot connect to the Docker daemon >&2; exit 4", "exit code 4: Cannot connect"),
        ("echo unknown command: docker compose >&2; exit 5", "exit code 5: unknown command"),
        ("echo last; exit 137", "exit code 137: last"),
    ] {
        let command = json!({ "command": ["sh", "-c", script] });
        for (field, problem) in [("migrate", DeployProblem::Migrate), ("seed", DeployProblem::Seed)]
        {
            let status = setup.run(setup.deploy(1, &image, json!({ field: command }))).await;
            assert_eq!(status.error, Some(deploy_problem(problem)), "{script}: {status:?}");
            let message = status.error_message.unwrap();
            let begin = format!("`{field}` in the service `app` ended with {expected}");
            assert!(message.starts_with(&begin), "{begin}: {message}");
        }
    }
    let missing = json!({ "migrate": { "command": ["/no/such/program"] } });
    let status = setup.run(setup.deploy(1, &image, missing)).await;
    assert_eq!(status.error, Some(deploy_problem(DeployProblem::Migrate)), "{status:?}");
    let message = status.error_message.unwrap();
    assert!(
        message.contains("cannot be started: ") && message.contains("/no/such/program"),
        "{message}"
    );
    assert_eq!(setup.left(), [""; 0]);
}

#[tokio::test]
async fn a_long_last_line_hides_neither_the_container_nor_its_exit_code() {
    let setup = Setup::new("long");
    let script = "i=0; while [ $i -lt 4000 ]; do printf %063d $i; i=$((i+1)); done; printf ' the end'; exit 7";
    let crashing = format!("FROM busybox\nCMD [\"sh\", \"-c\", \"echo first; {script}\"]\n");
    let crashing = setup.image("crash", &crashing);
    let files = [("compose.yaml", "services: {web: {build: .}}")];
    let status = setup.run(setup.deploy_commit(1, &crashing, &files, json!({}))).await;
    let message = status.error_message.unwrap();
    let begin = "the service `web` ended with exit code 7; its last line: …";
    assert!(message.starts_with(begin) && message.ends_with(" the end"), "{message}");
    assert!(message.len() < 2_000, "{}", message.len());
    let log = setup.log();
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest < 5_000 && log.contains("the end"), "{longest}");
}

#[tokio::test]
async fn a_former_version_that_does_not_become_ready_again_is_reported() {
    let (setup, mut core) = (Setup::new("gone-back"), Core::start().await);
    let agent = Agent::start(core.config(setup.machine.as_str(), setup.work_dir.path()));
    let (mut session, _) = core.session().await;
    // It serves only the data that it knows.
    let serve = "test ! -e /data/new || sleep 1000; exec httpd -f -p 8080 -h /www";
    let compose =
        COMPOSE.replace("build: .", &format!("build: ., init: true, command: [sh, -c, '{serve}']"));
    let limit = json!({ "endpoints": [{
        "name": "web", "service": "web", "port": 8080, "health": { "timeout_seconds": 5 },
    }] });
    let files = [("compose.yaml", &*compose)];
    session.send(setup.deploy_commit(1, &setup.web("one"), &files, limit.clone())).await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    assert_eq!(session.preview().await.state, PreviewState::Serving);

    let mut update = limit.clone();
    update["migrate"] = json!({ "service": "web", "command": ["touch", "/data/new"] });
    session.send(setup.deploy_commit(2, &setup.web("two"), &files, update)).await;

    let status = session.end().await;
    assert_eq!(status.error, Some(deploy_problem(DeployProblem::Health)), "{status:?}");
    let message = status.error_message.unwrap();
    let end = "; generation 1 was started again and is not ready: the endpoint `web` was not healthy within 5 s";
    assert!(message.contains(end), "{message}");
    let degraded = session.preview().await;
    assert_eq!((degraded.state, degraded.generation), (PreviewState::Degraded, 1));
    assert_eq!(degraded.messages.len(), 1, "{degraded:?}");
    assert!(
        degraded.messages[0].starts_with("the endpoint `web` is not healthy: GET / "),
        "{degraded:?}"
    );

    // It is ready later.
    let web = container(&setup.preview, "web");
    docker(&["exec", &web, "rm", "/data/new"]);
    docker(&["exec", &web, "killall", "sleep"]);
    assert_eq!(session.preview().await.state, PreviewState::Serving);
    let address = docker(&["port", &web, "8080"]);
    assert_eq!(get(address.trim(), "/").await, "page one\n");
    session.send(json!({ "type": "TERMINATE", "grace": 30 })).await;
    agent.exit().await;
    assert_eq!(setup.left(), [""; 0]);
}

#[tokio::test]
async fn a_folder_of_the_commit_that_a_service_may_write_to_is_warned_of() {
    let setup = Setup::new("lost");
    let compose = "services:\n  web: {build: ., volumes: ['./uploads:/data', './conf:/conf:ro']}\n";
    let files = [("compose.yaml", compose), ("uploads/keep", ""), ("conf/a", "")];
    let status = setup.run(setup.deploy_commit(1, &setup.web("one"), &files, json!({}))).await;
    assert_eq!(status.state, StatusState::Completed, "{status:?}");
    let warning =
        "the service `web` mounts `uploads` of the repository at `/data` and may write to it";
    assert_eq!(status.warnings.len(), 1, "{status:?}");
    assert!(status.warnings[0].starts_with(warning), "{status:?}");
    assert!(setup.log().contains(&format!("WARNING: {warning}")), "{}", setup.log());
}

#[tokio::test]
async fn what_an_agent_that_ends_during_an_archive_leaves_is_removed_by_the_next_one() {
    const HELPERS: [&str; 4] = ["ps", "--all", "--quiet", "--filter"];
    let (setup, mut core) = (Setup::new("helpers"), Core::start().await);
    let config = || core.config(setup.machine.as_str(), setup.work_dir.path());
    let (first, second) = (config(), config());
    let agent = Agent::start(first);
    let (mut session, _) = core.session().await;
    let volume = json!({ "migrate": {
        "service": "web", "command": ["dd", "if=/dev/urandom", "of=/data/large", "bs=1M", "count=30"],
    } });
    session
        .send(setup.deploy_commit(1, &setup.web("one"), &[("compose.yaml", COMPOSE)], volume))
        .await;
    assert_eq!(session.end().await.state, StatusState::Completed);
    let label = format!("label=stagely.machine={}", setup.machine);
    let helpers = || {
        docker(&[&HELPERS[..], &[&label, "--filter", "label=stagely.helper"]].concat())
            .lines()
            .count()
    };
    core.archives.lock().unwrap().is_silent = true;
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    eventually("a helper reads the volume", async || (helpers() == 1).then_some(())).await;
    agent.stop.cancel();
    agent.exit().await;
    assert_eq!(helpers(), 1);

    core.archives.lock().unwrap().is_silent = false;
    let agent = Agent::start(second);
    let (mut session, _) = core.session().await;
    eventually("the helper is removed", async || (helpers() == 0).then_some(())).await;
    session.send(json!({ "type": "SLEEP", "preview_id": setup.preview })).await;
    loop {
        // Its services do not run.
        let report = session.preview().await;
        if report.state == PreviewState::Archived {
            assert!(report.archive.is_some(), "{report:?}");
            break;
        }
    }
    assert_eq!(setup.left(), [""; 0]);
    agent.kill().await;
}
