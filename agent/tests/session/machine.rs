//! The machine around the agent: notices of interruptions, and the dead-man timer.

use std::fs;
use std::time::Duration;

use futures_util::StreamExt as _;
use stagely_agent::spot::SpotWatch;
use stagely_protocol::Notice;
use stagely_protocol::agent_config::AgentConfig;
use stagely_test_support::imds::Imds;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, config, spawn_watching};

#[test]
fn a_golden_image_starts_a_killed_agent_again_and_kills_no_container_with_it() {
    let unit = include_str!("../../../packer/files/stagely-agent.service");
    // An end by a signal is a failure. Containers are in the control groups of Docker, not in that of the agent.
    let lines = ["Restart=on-failure", "StartLimitIntervalSec=0", "KillMode=mixed"];
    assert!(lines.iter().all(|wanted| unit.lines().any(|line| line == *wanted)), "{unit}");
}

#[tokio::test]
async fn an_interruption_is_reported_at_once_and_in_every_session() {
    let imds = Imds::start().await;
    let (listener, stop) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let (work_dir, port) = (tempfile::tempdir().unwrap(), listener.local_addr().unwrap().port());
    let spot = SpotWatch::start(imds.url.clone(), Duration::from_millis(20));
    let agent = spawn_watching(config(port, work_dir.path()), spot, &stop);
    let setup = Setup { listener, work_dir, stop, agent };
    let mut peer = setup.session(&[]).await;
    peer.stays_silent().await;
    imds.script().rebalance = Some(r#"{"noticeTime":"2026-01-01T00:00:00Z"}"#.to_owned());
    let likely = peer.interrupted().await;
    assert_eq!((likely.at, likely.notice), (1_767_225_600_000, Notice::Likely));
    drop(peer);

    // The notice still holds, and is known before the next session.
    let mut peer = setup.session(&[]).await;
    assert_eq!(peer.interrupted().await.notice, Notice::Likely);
    peer.stays_silent().await;
    let action = r#"{"action":"terminate","time":"2026-01-01T00:02:00Z"}"#;
    imds.script().action = Some(action.to_owned());
    let certain = peer.interrupted().await;
    assert_eq!((certain.at, certain.notice), (1_767_225_720_000, Notice::Certain));
    drop(peer);
    let mut peer = setup.session(&[]).await;
    assert_eq!(peer.interrupted().await.notice, Notice::Certain);
    peer.stays_silent().await;
    setup.stop.cancel();
    setup.exit().await;
}

#[tokio::test]
async fn contacts_and_leases_are_written_for_the_dead_man_switch() {
    let run_dir = tempfile::tempdir().unwrap();
    let read = |name: &str| -> Option<f64> {
        let text = fs::read_to_string(run_dir.path().join(name)).ok()?;
        Some(text.strip_suffix('\n').unwrap().parse().unwrap())
    };
    let uptime = || -> f64 {
        let text = fs::read_to_string("/proc/uptime").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let run = Some(run_dir.path().to_owned());
    let setup = Setup::start_with(|config| AgentConfig { run_dir: run.clone(), ..config }).await;
    let (mut peer, _) = setup.hello().await;
    // Connecting does not count as a contact.
    assert_eq!(read("contact"), None);
    let before = uptime();
    peer.send(r#"{"type":"HELLO_ACK","heartbeat_interval":1,"lease_seconds":600}"#).await;
    setup.disk_shows(|_| read("lease").is_some()).await;
    let (contact, lease, after) = (read("contact").unwrap(), read("lease").unwrap(), uptime());
    assert!(before - 0.1 <= contact && contact <= after, "{before} {contact} {after}");
    assert!(before + 599.9 <= lease && lease <= after + 600.0, "{before} {lease} {after}");
    peer.send(r#"{"type":"STATUS_ACK","job_id":"job_0","lease_seconds":60}"#).await;
    setup.disk_shows(|_| read("lease").unwrap() < lease - 500.0).await;
    // Pongs count as contacts, too.
    let stop = setup.stop.clone();
    let answer = async {
        while !stop.is_cancelled() {
            let _ = timeout(Duration::from_millis(100), peer.0.next()).await;
        }
    };
    let see = async {
        setup.disk_shows(|_| read("contact").unwrap() >= contact + 5.0).await;
        stop.cancel();
    };
    tokio::join!(answer, see);
    setup.exit().await;
}
