//! The end of an agent: what it stops, removes, and leaves for the next agent.

use std::fs;
use std::time::Duration;

use stagely_agent::{AgentExit, run};
use stagely_protocol::StatusState;
use stagely_protocol::agent_config::AgentConfig;
use stagely_test_support::git::GitServer;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, WAIT_LIMIT, build, config, failing_build, spawn};

#[tokio::test]
async fn a_killed_agents_leftovers_are_reported_or_removed() {
    let setup = Setup::start().await;
    let mut peer = setup.session(&[]).await;
    peer.send(&failing_build("job_1")).await;
    peer.status().await;
    let lines = peer.lines_until(0, "Failed:").await;
    // Killed without clean-up, after the end is on disk.
    setup.disk_shows(|work_dir| work_dir.join("spool/job_1/end.json").exists()).await;
    let Setup { agent, work_dir, listener, stop } = setup;
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
    drop(peer);
    for leftover in ["jobs/job_0/docker", "jobs.old.1/job_9", "spool/job_0"] {
        fs::create_dir_all(work_dir.path().join(leftover)).unwrap();
    }
    let half = work_dir.path().join("spool/job_0/00000000000000000000.log");
    fs::write(half, "half a line").unwrap();

    let port = listener.local_addr().unwrap().port();
    let agent = spawn(config(port, work_dir.path()), &stop);
    let setup = Setup { listener, work_dir, stop, agent };
    let mut peer = setup.session(&[("job_1", 0)]).await;
    assert_eq!(peer.lines_until(0, "Failed:").await, lines);
    peer.acknowledge("job_1", lines.len()).await;
    assert_eq!(peer.status().await.state, StatusState::Failed);
    peer.send(r#"{"type":"TERMINATE"}"#).await;
    let (exit, work_dir) = setup.exit().await;
    assert_eq!(exit, AgentExit::Terminated);
    assert_eq!(fs::read_dir(work_dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_second_agent_leaves_the_work_folder_alone() {
    let setup = Setup::start().await;
    let mut peer = setup.session(&[]).await;
    peer.send(&failing_build("job_1")).await;
    peer.status().await;
    let port = setup.listener.local_addr().unwrap().port();
    let second = run(config(port, setup.work_dir.path()), setup.stop.clone()).await;
    let error = second.unwrap_err().to_string();
    assert!(error.starts_with("another agent works in /"), "{error}");
    peer.lines_until(0, "Failed:").await;
    assert!(setup.is_spooled("job_1"));
    setup.stop.cancel();
    let (_, work_dir) = setup.exit().await;

    // A later agent may use the folder.
    let stop = CancellationToken::new();
    stop.cancel();
    assert_eq!(run(config(port, work_dir.path()), stop).await.unwrap(), AgentExit::Stopped);
}

#[tokio::test]
async fn stopping_ends_work_within_the_grace_and_leaves_no_folder() {
    let (setup, git) = (Setup::start().await, GitServer::start());
    let mut peer = setup.session(&[]).await;
    peer.send(&build("job_1", &git.url("hang", "app"))).await;
    peer.status().await;
    peer.lines_until(0, "Cloning").await;
    setup.stop.cancel();
    let (exit, work_dir) = setup.exit().await;
    assert_eq!(exit, AgentExit::Stopped);
    for folder in ["spool", "jobs"] {
        assert_eq!(fs::read_dir(work_dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[tokio::test]
async fn an_agent_that_gives_up_leaves_nothing_running() {
    let git = GitServer::start();
    let give_up_after = Duration::from_secs(3);
    let setup = Setup::start_with(|config| AgentConfig { give_up_after, ..config }).await;
    let mut peer = setup.session(&[]).await;
    peer.send(&build("job_1", &git.url("hang", "app"))).await;
    peer.status().await;
    peer.lines_until(0, "Cloning").await;
    drop(peer);
    // The agent tries to connect again, and nothing accepts.
    let (exit, work_dir) = setup.exit().await;
    assert_eq!((exit, exit.code()), (AgentExit::GaveUp, 3));
    for folder in ["spool", "jobs"] {
        assert_eq!(fs::read_dir(work_dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

#[tokio::test]
async fn without_core_the_agent_gives_up() {
    let (work_dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let give_up_after = Duration::from_millis(1_500);
    let config = AgentConfig { give_up_after, ..config(1, work_dir.path()) };
    let exit = timeout(WAIT_LIMIT, spawn(config, &stop)).await.unwrap().unwrap();
    assert_eq!((exit, exit.code()), (AgentExit::GaveUp, 3));
}
