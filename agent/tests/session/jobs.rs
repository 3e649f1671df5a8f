//! The lines and the STATUS of jobs, from their start to the last acknowledgement.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{FailureReason, StatusState, WireId};
use stagely_test_support::git::{GitServer, TOKEN};

use crate::harness::{Setup, WAIT_LIMIT, build, failing_build};

#[tokio::test]
async fn the_status_follows_the_last_acknowledged_line() {
    let setup = Setup::start().await;
    let mut peer = setup.session(&[]).await;
    peer.send(&failing_build("job_1")).await;
    assert_eq!(peer.status().await.state, StatusState::Running);
    let lines = peer.lines_until(0, "Failed:").await;
    assert!(lines[0].starts_with("Cloning http://127.0.0.1:1/*** at 0123456"), "{lines:?}");
    // A repeated BUILD changes nothing, and an early acknowledgement ends nothing.
    peer.send(&failing_build("job_1")).await;
    peer.send(r#"{"type":"STATUS_ACK","job_id":"job_1"}"#).await;
    peer.acknowledge("job_1", lines.len() - 1).await;
    peer.stays_silent().await;
    peer.acknowledge("job_1", lines.len()).await;

    let status = peer.status().await;
    assert_eq!(status.state, StatusState::Failed);
    assert!(matches!(status.error, Some(FailureReason::Clone { .. })));
    assert!(!format!("{status:?}").contains("secret"), "{status:?}");
    assert!(setup.is_spooled("job_1"));
    peer.send(r#"{"type":"STATUS_ACK","job_id":"job_1"}"#).await;
    drop(peer);
    assert!(setup.hello().await.1.jobs.is_empty());
    assert!(!setup.is_spooled("job_1"));
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_sent_fails_its_job_at_once() {
    let (setup, git) = (Setup::start().await, GitServer::start());
    let mut peer = setup.session(&[]).await;
    peer.send(&failing_build("job_1")).await;
    peer.status().await;
    let lines = peer.lines_until(0, "Failed:").await;
    peer.send(&build("job_2", &git.url("hang", "app"))).await;
    peer.status().await;
    drop(peer);

    // job_1 has ended, and never had the requested line. job_2 still runs, and its first line has a length that no
    // line can have, also after more lines are written.
    let damaged = setup.work_dir.path().join("spool/job_2/00000000000000000000.log");
    setup.disk_shows(|_| fs::metadata(&damaged).is_ok_and(|file| file.len() > 0)).await;
    fs::File::options().write(true).open(&damaged).unwrap().write_all_at(&[0xff; 4], 0).unwrap();
    let mut peer = setup.session(&[("job_1", lines.len() as u64 + 1), ("job_2", 0)]).await;
    for _ in 0..2 {
        let status = peer.status().await;
        let failed = (StatusState::Failed, Some(FailureReason::Internal));
        assert_eq!((status.state, status.error), failed);
        assert!(status.error_message.unwrap().starts_with("its log cannot be sent: "));
        peer.send(&format!(r#"{{"type":"STATUS_ACK","job_id":"{}"}}"#, status.job_id)).await;
    }
    setup.disk_shows(|_| !setup.is_spooled("job_1") && !setup.is_spooled("job_2")).await;
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_cancelled_job_stops_and_reports_that() {
    let (setup, git) = (Setup::start().await, GitServer::start());
    let mut peer = setup.session(&[]).await;
    peer.send(&build("job_1", &git.url("hang", "app"))).await;
    peer.status().await;
    peer.lines_until(0, "Cloning").await;
    let started = Instant::now();
    peer.send(r#"{"type":"CANCEL","job_id":"job_1","reason":"superseded"}"#).await;
    let lines = peer.lines_until(1, "cancelled").await;
    peer.acknowledge("job_1", lines.len() + 1).await;
    let status = peer.status().await;
    assert_eq!(status.state, StatusState::Cancelled);
    assert_eq!(status.error, Some(FailureReason::Cancelled));
    // The server hangs for an hour.
    assert!(started.elapsed() < WAIT_LIMIT);

    peer.send(r#"{"type":"CANCEL","job_id":"job_2"}"#).await;
    assert!(peer.message().await.contains("unknown_job"));
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_job_that_core_does_not_list_is_stopped_and_removed() {
    let (setup, git) = (Setup::start().await, GitServer::start());
    let mut peer = setup.session(&[]).await;
    peer.send(&build("job_1", &git.url("hang", "app"))).await;
    peer.status().await;
    peer.lines_until(0, "Cloning").await;
    drop(peer);

    let mut peer = setup.session(&[]).await;
    peer.stays_silent().await;
    setup.disk_shows(|work_dir| !work_dir.join("spool/job_1").exists()).await;
    drop(peer);
    assert!(setup.hello().await.1.jobs.is_empty());
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_token_in_place_of_the_user_name_is_not_logged() {
    let setup = Setup::start().await;
    let mut peer = setup.session(&[]).await;
    peer.send(&build("job_1", "http://ghp_0123456789@127.0.0.1:1/app")).await;
    peer.status().await;
    let lines = peer.lines_until(0, "Failed:").await;
    assert!(!lines.concat().contains("ghp_") && lines.concat().contains("user name"), "{lines:?}");
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_job_that_cannot_be_started_has_failed() {
    let setup = Setup::start().await;
    let mut peer = setup.session(&[]).await;
    // A file in place of the job's folder.
    fs::write(setup.work_dir.path().join("spool/job_1"), "").unwrap();
    peer.send(&failing_build("job_1")).await;
    let status = peer.status().await;
    assert_eq!((status.state, status.error), (StatusState::Failed, Some(FailureReason::Internal)));
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn a_pushed_image_is_reported_over_lost_connections_until_its_cache_is_exported() {
    // A machine id of its own: a new agent kills the processes of its machine's former agent, and all other agents
    // here have the same id.
    let agent_id: WireId = "vm_session_test".parse().unwrap();
    let own = |config| AgentConfig { docker_host: None, agent_id: agent_id.clone(), ..config };
    let setup = Setup::start_with(own).await;
    let setting = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let password = fs::read_to_string(setting("STAGELY_REGISTRY_PASSWORD_FILE")).unwrap();
    let git = GitServer::start();
    let repository = git.repository("app", true);
    let commit = repository.commit(&[("Dockerfile", "FROM busybox\nCOPY Dockerfile /\n")]);
    let image =
        format!("{}/agent-tests/session-{}", setting("STAGELY_REGISTRY"), std::process::id());
    let mut message: serde_json::Value =
        serde_json::from_str(&build("job_1", &git.url("private", "app/.git"))).unwrap();
    message["context"]["commit_hash"] = commit.as_str().into();
    message["context"]["clone_token"] = TOKEN.into();
    message["build_config"]["target_image"] = format!("{image}:app").into();
    message["build_config"]["cache_to"] = format!("{image}:cache").into();
    let username = setting("STAGELY_REGISTRY_USERNAME");
    message["registry_auth"] =
        serde_json::json!({ "username": username, "password": password.trim() });

    let mut peer = setup.session(&[]).await;
    peer.send(&message.to_string()).await;
    assert_eq!(peer.status().await.state, StatusState::Running);
    // Without acknowledgements the many small batches of a busy machine would fill the agent's window.
    let mut lines = peer.lines_until(0, "steps cached, pushed").await;
    if !lines.iter().any(|line| line.contains("Cache exported to")) {
        lines.extend(peer.lines_until(lines.len() as u64, "Cache exported to").await);
    }
    let pushed = lines.iter().position(|line| line.contains("steps cached, pushed")).unwrap() + 1;
    // Before the end is on disk, the push alone could be reported.
    setup.disk_shows(|work_dir| work_dir.join("spool/job_1/end.json").exists()).await;
    drop(peer);
    // The cache is exported by now, and its lines are not acknowledged: only the end is reported.
    let mut peer = setup.session(&[("job_1", pushed as u64)]).await;
    let rest = peer.lines_until(pushed as u64, "Cache exported to").await;
    peer.acknowledge("job_1", pushed + rest.len()).await;
    let status = peer.status().await;
    assert!(status.state == StatusState::Completed && !status.exporting_cache, "{status:?}");
    assert!(status.digest.is_some());
    peer.send(r#"{"type":"STATUS_ACK","job_id":"job_1"}"#).await;
    // Not earlier: a dropped connection loses the messages that were not read.
    setup.disk_shows(|work_dir| !work_dir.join("spool/job_1").exists()).await;
    drop(peer);
    assert!(setup.hello().await.1.jobs.is_empty());
    setup.stop.cancel();
    setup.exit().await;
}
