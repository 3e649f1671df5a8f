//! Registered machines, which core does not launch.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use stagely::api::{JobStatus, LogRange, MachineStatus, RunStatus};
use stagely::client::{Client, LogEvent};
use stagely_protocol::FailureReason;
use stagely_state::MachineKind;
use stagely_state::ids::MachineId;
use stagely_test_core::{Core, job};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::processes::processes_with;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

const NO_PROVIDER: &str = "[builders]\nprovider = \"none\"\n";

async fn is(core: &Core, status: MachineStatus, connected: bool) {
    let what = format!("the machine is {} and connected: {connected}", status.as_str());
    eventually(&what, async || {
        let machine = core.machines().await.pop()?;
        (machine.status == status && machine.connected == connected).then_some(())
    })
    .await;
}

/// Waits until no agent of the machine, nor a child of one, is left.
async fn no_process_of(machine: MachineId) {
    eventually("the machine's processes are gone", async || {
        processes_with(&machine.to_string()).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_registered_machine_gets_jobs_one_at_a_time_and_is_never_ended() {
    let core = Core::start(STAGELY, "rack", NO_PROVIDER).await;
    let (machine, config) = core.add_machine("rack").await;
    let arguments = ["agent".as_ref(), "--config".as_ref(), config.as_path()];
    let mut agent = core.start_agent("rack", STAGELY, &arguments);
    is(&core, MachineStatus::Ready, true).await;
    let breakpoint = Breakpoint::new();
    let dockerfile = format!("FROM busybox\nRUN : {}; {}\n", core.name, breakpoint.command());
    let manifest = "builds: { one: { context: ., build_args: { N: \"1\" } }, \
        two: { context: ., build_args: { N: \"2\" } } }\n";
    let dockerfile = dockerfile.replace("RUN", "ARG N\nRUN echo $N;");

    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    breakpoint.reached().await;
    let view = core.view(run).await;
    assert_eq!(job(&view, "one").machine_id, Some(machine.id));
    assert_eq!(job(&view, "two").status, JobStatus::Queued);
    breakpoint.resume();
    core.until(run, "it is the other's turn", |run| job(run, "two").status == JobStatus::Running)
        .await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert!(job(&run, "one").ended_at <= job(&run, "two").started_at, "{run:#?}");
    is(&core, MachineStatus::Ready, true).await;
    assert!(agent.is_running() && core.machines().await[0].kind == MachineKind::Registered);
    assert!(agent.stop().await.success());
    is(&core, MachineStatus::Ready, false).await;

    // A removed machine is gone, and its token is invalid.
    let path = format!("/api/v1/machines/{}", machine.id);
    let token = core.admin_token();
    let (status, text) = core.call(Some(&token), Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{text}");
    let (status, _) = core.call(Some(&token), Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let agent = core.start_agent("rack", STAGELY, &arguments);
    eventually("the agent is refused", async || {
        let log = std::fs::read_to_string(core.path("rack.log")).unwrap();
        log.contains("the agent id or the token is wrong").then_some(())
    })
    .await;
    assert!(core.machines().await.is_empty());
    assert!(agent.stop().await.success());
    core.finish().await;
}

#[tokio::test]
async fn a_registered_machine_whose_agent_dies_loses_its_job_and_gets_it_again_on_its_return() {
    // A core that has just started waits for both graces before it marks a machine as lost.
    let graces = "job-grace = \"3s\"\n[agents]\nreconnect-grace = \"3s\"\n";
    let settings = format!("{NO_PROVIDER}{graces}");
    let core = Core::start(STAGELY, "rack-dies", &settings).await;
    let (machine, config) = core.add_machine("rack").await;
    let arguments = ["agent".as_ref(), "--config".as_ref(), config.as_path()];
    let agent = core.start_agent("rack", STAGELY, &arguments);
    let (run, breakpoint) = core.run_to_breakpoint().await;

    let children = processes_with(&machine.id.to_string());
    assert!(children.iter().any(|process| process.arguments.contains(&"buildx".to_owned())));
    // The agent is killed, so it reports nothing.
    drop(agent);
    // They would push an older image over that of the next attempt, and another machine may have that one.
    no_process_of(machine.id).await;
    core.until(run, "the job waits again", |run| job(run, "app").status == JobStatus::Queued).await;
    let agent = core.start_agent("rack", STAGELY, &arguments);
    core.until(run, "it is tried again", |run| job(run, "app").attempt == 2).await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!((run.status, app.attempt), (RunStatus::Completed, 2), "{run:#?}");
    assert_eq!(app.lost_attempts[0].reason, FailureReason::MachineLost);
    // A viewer that was disconnected during the first attempt gets all its lines.
    let client = Client::new(core.url.parse().unwrap(), core.admin_token().into()).unwrap();
    let range = LogRange { attempt: Some(1), from: None };
    let (mut log, mut attempts) = (client.follow_log(app.id, range), BTreeSet::new());
    while let Some(event) = log.next().await.unwrap() {
        match event {
            LogEvent::Lines { attempt, .. } => {
                attempts.insert(attempt);
            }
            LogEvent::End(status) => assert_eq!(status, JobStatus::Completed),
        }
    }
    assert_eq!(attempts, BTreeSet::from([1, 2]));
    assert!(agent.stop().await.success());
    core.finish().await;
}

#[tokio::test]
async fn restarts_of_a_registered_agent_cost_its_job_no_attempt() {
    let settings = format!("{NO_PROVIDER}max-attempts = 1\n");
    let core = Core::start(STAGELY, "rack-restarts", &settings).await;
    let (machine, config) = core.add_machine("rack").await;
    let arguments = ["agent".as_ref(), "--config".as_ref(), config.as_path()];
    let mut agent = core.start_agent("rack", STAGELY, &arguments);
    let (run, breakpoint) = core.run_to_breakpoint().await;

    // As a service manager restarts it, and as the kernel ends it where memory is short.
    assert!(agent.stop().await.success());
    agent = core.start_agent("rack", STAGELY, &arguments);
    core.until(run, "it is tried again", |run| job(run, "app").attempt == 2).await;
    breakpoint.reached().await;
    agent.kill();
    no_process_of(machine.id).await;
    let agent = core.start_agent("rack", STAGELY, &arguments);
    core.until(run, "it is tried again", |run| job(run, "app").attempt == 3).await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!((run.status, app.attempt), (RunStatus::Completed, 3), "{run:#?}");
    assert!(agent.stop().await.success());
    core.finish().await;
}

#[tokio::test]
async fn a_job_on_a_registered_machine_is_cancelled_and_the_machine_goes_on() {
    let core = Core::start(STAGELY, "rack-cancel", NO_PROVIDER).await;
    let (_, config) = core.add_machine("rack").await;
    let arguments = ["agent".as_ref(), "--config".as_ref(), config.as_path()];
    let mut agent = core.start_agent("rack", STAGELY, &arguments);
    let (run, breakpoint) = core.run_to_breakpoint().await;

    core.post::<serde_json::Value>(&format!("/runs/{run}/cancel"), serde_json::json!({})).await;
    let run = core.ended(run).await;
    breakpoint.deserted().await;
    assert_eq!(run.status, RunStatus::Cancelled);
    is(&core, MachineStatus::Ready, true).await;

    let files = [("Dockerfile", "FROM busybox\n")];
    let next = core.run_of(&files).await;
    assert_eq!(core.ended(next).await.status, RunStatus::Completed);
    assert!(agent.is_running());
    assert!(agent.stop().await.success());
    core.finish().await;
}
