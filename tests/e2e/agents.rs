//! Agents of other makes: one that knows only the documented messages, and hostile ones.

use std::path::Path;
use std::process::Command;

use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stagely::api::{AddedMachine, CreateRun, JobStatus, RunStatus};
use stagely_protocol::{Arch, CONNECT_PATH, FailureReason, MESSAGE_BYTES_MAX};
use stagely_state::Fleet;
use stagely_state::ids::RunId;
use stagely_test_core::{Core, is_over, job};
use stagely_test_support::core_process::Socket;
use stagely_test_support::processes::ChildProcess;
use stagely_test_support::wait::{LIMIT, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::STAGELY;

const NO_PROVIDER: &str = "[builders]\nprovider = \"none\"\n";

fn start_simple_agent(core: &Core, arguments: &[&Path]) -> ChildProcess {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simple_agent.py");
    let arguments: Vec<&Path> = [&*script].into_iter().chain(arguments.iter().copied()).collect();
    core.start_agent("simple", "python3", &arguments)
}

#[tokio::test]
async fn an_agent_that_knows_only_the_documented_messages_builds_and_joins_images() {
    let core = Core::start(STAGELY, "simple", NO_PROVIDER).await;
    let mut agents = Vec::new();
    for arch in Arch::ALL {
        let (_, config) = core.add_machine_of(arch, &format!("simple-{arch}")).await;
        agents.push(start_simple_agent(&core, &[&config]));
    }
    let dockerfile = format!("FROM busybox\nARG WORD\nRUN : {}; echo the $WORD\n", core.name);
    let manifest = "builds: { app: { context: ., platforms: [linux/amd64, linux/arm64], \
        build_args: { WORD: value } } }\n";

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    let run = core.ended(run).await;

    for job in &run.jobs {
        assert_eq!(job.status, JobStatus::Completed, "{job:#?}\n{}", core.log(job).await);
        assert_eq!(job.attempt, 1);
    }
    assert_eq!(run.status, RunStatus::Completed);
    assert!(core.log(job(&run, "app_arm64")).await.contains(" the value\n"));
    let merged = job(&run, "app_merge");
    let index = core.registry.manifest(&merged.image.as_ref().unwrap().to_string());
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index:#}");
    drop(agents);
    core.finish().await;
}

#[tokio::test]
async fn a_bare_completed_completes_a_job() {
    let core = Core::start(STAGELY, "pretend", NO_PROVIDER).await;
    let (_, config) = core.add_machine("simple").await;
    let agent = start_simple_agent(&core, &["--pretend".as_ref(), &config]);
    let manifest = "builds: { app: { context: . }, web: { context: . } }\n";
    let files = [("Dockerfile", "FROM busybox\n"), ("stagely.yaml", manifest)];
    let run = core.run_of(&files).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = job(&run, "app");
    assert_eq!(
        core.log(app).await,
        format!("pretending to make {}\n", app.image.as_ref().unwrap())
    );
    drop(agent);
    core.finish().await;
}

#[tokio::test]
async fn an_agent_that_reads_only_the_image_of_a_deployment_serves_it_as_one_container() {
    let core = Core::start(STAGELY, "simple-preview", NO_PROVIDER).await;
    let (_, builder) = core.add_machine("builder").await;
    let (_, preview) = core.add_machine_for(Fleet::Preview, "preview").await;
    let agents = [&builder, &preview].map(|config| start_simple_agent(&core, &[config]));

    core.preview_of("one").await;
    // An update.
    core.preview_of("two").await;

    core.end_preview().await;
    eventually("its container is removed", async || {
        let listed = Command::new("docker").args(["ps", "--all"]).output().unwrap();
        (!String::from_utf8(listed.stdout).unwrap().contains(&core.name)).then_some(())
    })
    .await;
    drop(agents);
    core.finish().await;
}

#[tokio::test]
async fn an_agent_writes_no_log_of_a_deployment_that_it_invents() {
    let core = Core::start(STAGELY, "invented", NO_PROVIDER).await;
    let (_, config) = core.add_machine("builder").await;
    let builder = start_simple_agent(&core, &[&config]);
    let (machine, _) = core.add_machine_for(Fleet::Preview, "fake").await;
    let mut socket = admitted(&core, &machine).await;
    let manifest = "builds: { app: { context: . } }\npreview: { image: app, port: 80 }\n";
    let dockerfile = format!("FROM busybox\nRUN : {}\n", core.name);
    core.repository.commit(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]);
    let run = core.run(CreateRun { preview: Some(true), ..core.request() }).await;
    let deploy = next(&mut socket).await;
    assert_eq!(deploy["type"], "DEPLOY");
    let preview = deploy["preview_id"].as_str().unwrap();
    assert_eq!(deploy["generation"], 1);
    let status = |state: &str| {
        text(&json!({ "type": "STATUS", "job_id": deploy["job_id"], "state": state }))
    };
    socket.send(status("running")).await.unwrap();
    assert_eq!(next(&mut socket).await["type"], "STATUS_ACK");
    let write = async |socket: &mut Socket, generation: u64| {
        let job_id = format!("{preview}-{generation}");
        let lines = json!([{ "data": "app | a line" }]);
        let log = json!({ "type": "LOG", "job_id": job_id, "first": 0, "lines": lines });
        socket.send(text(&log)).await.unwrap();
        assert_eq!(next(socket).await["type"], "LOG_ACK");
        let path = format!("/previews/{preview}/logs?generation={generation}");
        core.request_text(Method::GET, &path, None).await
    };
    assert_eq!(write(&mut socket, 1).await, "app | a line\n");
    for invented in [0, 2, 1_000] {
        assert_eq!(write(&mut socket, invented).await, "");
    }
    socket.send(status("completed")).await.unwrap();
    eventually("it is deployed", async || is_over(&core.view(run).await).then_some(())).await;

    // The run's page is open to everybody, and links to that of the preview.
    for path in [format!("/previews/{preview}"), format!("/previews/{preview}/log")] {
        let request = || reqwest::Client::new().get(format!("{}{path}", core.url));
        assert_eq!(request().send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
        let answer = request().basic_auth("me", Some(core.admin_token())).send().await.unwrap();
        assert!(answer.text().await.unwrap().contains("app | a line"), "{path}");
    }
    core.request_text(Method::DELETE, &format!("/previews/{preview}"), None).await;
    drop((socket, builder));
    core.finish().await;
}

/// The messages that the peer gets before the connection ends.
async fn answers(socket: &mut Socket) -> Vec<Value> {
    let mut answers = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, socket.next()).await.expect("core goes on") {
            Some(Ok(Message::Text(text))) => answers.push(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return answers,
            Some(Ok(_)) => {}
        }
    }
}

fn hello(agent_id: &str, token: &str) -> Message {
    hello_with(agent_id, token, &[])
}

fn hello_with(agent_id: &str, token: &str, jobs: &[&str]) -> Message {
    let hello = json!({
        "type": "HELLO", "version": "evil", "agent_id": agent_id, "token": token, "jobs": jobs,
        "system_info": { "hostname": "h", "architecture": Arch::of_this_program() },
    });
    Message::text(hello.to_string())
}

fn text(message: &Value) -> Message {
    Message::text(message.to_string())
}

#[tokio::test]
async fn connections_without_a_valid_hello_are_closed_and_delay_nobody() {
    let core = Core::start(STAGELY, "intruders", "").await;
    let (machine, _) = core.add_machine("rack").await;
    let id = machine.id.to_string();
    let connect = async || core.socket(CONNECT_PATH, None).await.unwrap();
    // Connections that send nothing, and one that does not open a WebSocket.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(connect().await);
    }
    let address = core.url.strip_prefix("http://").unwrap();
    let mut raw = TcpStream::connect(address).await.unwrap();
    raw.write_all(b"\x00\xff not HTTP at all \r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();

    let good_token = machine.agent_json["token"].as_str().unwrap();
    let nobody = "vm_01jd7q3f5m8z9x2c4v6b8n0a1s";
    let first_messages = [
        (Message::text("{"), "HELLO was not good"),
        (Message::text("[1, 2"), "HELLO was not good"),
        (text(&json!({ "type": "HELLO" })), "HELLO was not good"),
        (text(&json!({ "type": "LOG", "job_id": "j", "data": "x" })), "must be the first"),
        (text(&json!({ "type": "STEAL" })), "HELLO was not good"),
        (Message::text(format!("{}1", "[".repeat(100_000))), "HELLO was not good"),
        (hello(&id, "wrong"), "the agent id or the token is wrong"),
        (hello(nobody, good_token), "the agent id or the token is wrong"),
        (hello("../../etc/passwd", good_token), ""),
        (hello_with(&id, good_token, &vec!["job"; 65]), "more than 64 jobs"),
        (Message::binary(vec![0_u8; 1_000]), "closed"),
        (Message::text("x".repeat(MESSAGE_BYTES_MAX + 1)), "the connection failed"),
    ];
    for (message, expected) in first_messages {
        let mut socket = connect().await;
        let shown: String = message.to_string().chars().take(80).collect();
        // Core may have closed the connection before the whole message was sent.
        let _ = socket.send(message).await;
        let answers = answers(&mut socket).await;
        for answer in &answers {
            assert_eq!(answer["type"], "ERROR", "{shown}: {answer}");
            assert!(answer["message"].as_str().unwrap().contains(expected), "{shown}: {answer}");
        }
    }
    assert!(!core.machines().await.iter().any(|machine| machine.connected));

    let dockerfile = format!("FROM busybox\nRUN : {}\n", core.name);
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    // The registered machine has no agent, so a machine is launched, while the connections are open.
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for mut socket in silent {
        let answers = answers(&mut socket).await;
        assert_eq!(answers.len(), 1);
        assert!(answers[0]["message"].as_str().unwrap().contains("no HELLO"), "{answers:?}");
    }
    core.finish().await;
}

/// A connection of a registered machine with its valid token, after `HELLO_ACK`.
async fn admitted(core: &Core, machine: &AddedMachine) -> Socket {
    let mut socket = core.socket(CONNECT_PATH, None).await.unwrap();
    let token = machine.agent_json["token"].as_str().unwrap();
    socket.send(hello(&machine.id.to_string(), token)).await.unwrap();
    let ack: Value = next(&mut socket).await;
    assert_eq!(ack["type"], "HELLO_ACK");
    socket
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        let message = tokio::time::timeout(LIMIT, socket.next()).await.unwrap();
        if let Message::Text(text) = message.unwrap().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn a_hostile_agent_changes_only_its_own_jobs() {
    let core = Core::start(STAGELY, "gone-bad", NO_PROVIDER).await;
    let (honest, config) = core.add_machine("honest").await;
    let arguments = ["agent".as_ref(), "--config".as_ref(), config.as_path()];
    let agent = core.start_agent("honest", STAGELY, &arguments);
    eventually("the honest one is there", async || {
        core.machines().await.iter().any(|machine| machine.connected).then_some(())
    })
    .await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    let app = core.view(run).await.jobs.remove(0);
    assert_eq!(app.machine_id, Some(honest.id));
    let log = core.log(&app).await;

    let (bad, _) = core.add_machine("bad").await;
    let mut socket = admitted(&core, &bad).await;
    let own = app.id.to_string();
    for (message, answer) in [
        (json!({ "type": "LOG", "job_id": own, "data": "not yours\n" }), "LOG_ACK"),
        (
            json!({ "type": "LOG", "job_id": own, "first": 0, "lines": [{ "data": "x" }] }),
            "LOG_ACK",
        ),
        (json!({ "type": "STATUS", "job_id": own, "state": "completed" }), "STATUS_ACK"),
        (
            json!({ "type": "STATUS", "job_id": own, "state": "failed", "exit_code": 1 }),
            "STATUS_ACK",
        ),
        (json!({ "type": "STATUS", "job_id": "job_x", "state": "completed" }), "STATUS_ACK"),
        (json!({ "type": "STATUS", "job_id": own, "state": "ruined" }), "ERROR"),
        (json!({ "type": "LOG", "job_id": own }), "ERROR"),
        (json!({ "type": "DANCE" }), "ERROR"),
        (json!({ "type": "HELLO" }), "ERROR"),
        (json!(7), "ERROR"),
    ] {
        socket.send(text(&message)).await.unwrap();
        let found = next(&mut socket).await;
        assert_eq!(found["type"], answer, "{message}: {found}");
    }
    // Endless lines, whose answers it does not read.
    let flood = json!({ "type": "LOG", "job_id": own, "data": "x".repeat(60_000) });
    let flooding = tokio::spawn(async move { while socket.send(text(&flood)).await.is_ok() {} });

    let view = core.view(run).await;
    assert_eq!(view.jobs[0].status, JobStatus::Running, "{view:#?}");
    assert_eq!(core.log(&app).await, log);
    breakpoint.resume();
    let run = core.ended(run).await;
    flooding.abort();

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert!(!core.log(&app).await.contains("not yours"));
    assert!(agent.stop().await.success());
    core.finish().await;
}

/// Sends HELLO for a registered machine of this arch and takes the first job.
async fn connect_and_take_job(core: &Core, manifest: &str) -> (Socket, RunId, String) {
    let (machine, _) = core.add_machine("fake").await;
    let mut socket = admitted(core, &machine).await;
    let run = core.run_of(&[("Dockerfile", "FROM busybox\n"), ("stagely.yaml", manifest)]).await;
    let build = next(&mut socket).await;
    assert_eq!(build["type"], "BUILD");
    let job = build["job_id"].as_str().unwrap().to_owned();
    (socket, run, job)
}

#[tokio::test]
async fn a_job_that_its_agent_never_ends_is_ended_by_core() {
    let graces = "job-grace = \"5s\"\n[agents]\nreconnect-grace = \"2s\"\n";
    let core = Core::start(STAGELY, "never-ends", &format!("{NO_PROVIDER}{graces}")).await;
    let manifest = "builds: { app: { context: ., timeout: 5s } }\n";
    let (mut socket, run, job_id) = connect_and_take_job(&core, manifest).await;
    let running = json!({ "type": "STATUS", "job_id": job_id, "state": "running" });
    socket.send(text(&running)).await.unwrap();

    // Core sends CANCEL, and ends the session of an agent that does not stop.
    let (run, received) = tokio::join!(core.ended(run), answers(&mut socket));
    let app = job(&run, "app");
    assert_eq!(app.reason, Some(FailureReason::Timeout { limit_seconds: 5 }), "{app:#?}");
    assert!(received.iter().any(|message| message["type"] == "CANCEL"), "{received:?}");
    core.finish().await;
}

#[tokio::test]
async fn clients_that_do_not_read_and_incomplete_requests_do_not_delay_a_shutdown() {
    let core = Core::start(STAGELY, "slow-readers", NO_PROVIDER).await;
    let (mut socket, run, job_id) =
        connect_and_take_job(&core, "builds: { app: { context: . } }\n").await;
    let line = json!({ "data": "x".repeat(60_000) });
    for batch in 0..40_u32 {
        let lines = vec![&line; 20];
        let log = json!({ "type": "LOG", "job_id": job_id, "first": batch * 20, "lines": lines });
        socket.send(text(&log)).await.unwrap();
    }
    let completed = json!({ "type": "STATUS", "job_id": job_id, "state": "completed" });
    socket.send(text(&completed)).await.unwrap();
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed);

    let app = &run.jobs[0];
    let address = core.url.strip_prefix("http://").unwrap();
    let token = core.admin_token();
    let ask = async |text: String| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    };
    let path = format!("/api/v1/jobs/{}/logs", app.id);
    let head = format!("GET {path} HTTP/1.1\r\nHost: core\r\nAuthorization: Bearer {token}\r\n");
    let mut reader = ask(format!("{head}\r\n")).await;
    reader.read_u8().await.unwrap();
    let half = ask(head).await;
    let mut viewer = core.follow(app.id, "").await;
    viewer.next().await.unwrap();

    // `finish` checks that the shutdown succeeds, so its time limit did not cut it short.
    core.finish().await;
    drop((reader, half, viewer));
}
