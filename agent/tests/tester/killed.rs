//! An agent that is killed, and the next one on the machine.

use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use stagely_agent::{AgentExit, run};
use stagely_protocol::agent_config::AgentConfig;
use stagely_test_support::previews::on_engine;
use stagely_test_support::wait::eventually;
use tokio_util::sync::CancellationToken;

use crate::setup::{Setup, running};

/// Names the configuration of the agent that this program is to be.
const CONFIG: &str = "TESTER_AGENT_CONFIG";

/// Ends the process that it owns.
struct AgentProcess(Child);

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config(setup: &Setup) -> AgentConfig {
    let config = json!({
        "core_url": setup.core.url(),
        "agent_id": setup.machine,
        "token": crate::core::TOKEN,
        "work_dir": setup.work_dir.path(),
        "give_up_after": "60s",
        "kill_grace": "5s",
    });
    serde_json::from_value(config).unwrap()
}

#[tokio::test]
async fn the_container_of_a_killed_agent_is_removed_by_the_next_one() {
    // In a process of its own, this is the agent that is killed.
    if let Ok(text) = std::env::var(CONFIG) {
        run(serde_json::from_str(&text).unwrap(), CancellationToken::new()).await.unwrap();
        return;
    }
    let mut setup = Setup::new("crash").await;
    let text = serde_json::to_string(&config(&setup)).unwrap();
    let name = "killed::the_container_of_a_killed_agent_is_removed_by_the_next_one";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(CONFIG, text)
        .spawn();
    let child = AgentProcess(child.unwrap());
    let (mut session, _) = setup.core.session().await;
    let image = setup.image("");
    session.send(setup.test(&image, "sleep 1000", json!({}))).await;
    let machine = setup.machine.to_string();
    eventually("the test runs", async || running(&machine)).await;

    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    drop((child, session));
    assert!(running(&machine).is_some());

    let stop = CancellationToken::new();
    let agent = tokio::spawn(run(config(&setup), stop.clone()));
    let (_session, hello) = setup.core.session().await;
    assert!(hello.jobs.is_empty(), "{:?}", hello.jobs);
    eventually("nothing is left", async || on_engine(&machine).is_empty().then_some(())).await;
    stop.cancel();
    assert_eq!(agent.await.unwrap().unwrap(), AgentExit::Stopped);
}
