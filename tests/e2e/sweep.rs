//! The commands `machines` and `sweep`, for unknown machines and for machines that are gone.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use stagely::api::{JobStatus, MachineStatus, MachineView, RunStatus, SweepAction, SweepView};
use stagely::core::clock::new_id;
use stagely::core::store::Store;
use stagely_protocol::MACHINE_VARIABLE;
use stagely_state::ids::{CoreId, MachineId};
use stagely_test_core::Core;
use stagely_test_support::processes::processes_with;
use stagely_test_support::program;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

/// Runs a command on core's host as its owner.
fn does(core: &Core, arguments: &[&str]) -> Output {
    program::command(STAGELY)
        .args(arguments)
        .arg("--data-dir")
        .arg(core.path("data"))
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A machine without a record, as a core that has lost its last records would leave it: a process with the
/// environment and the configuration of an agent. It ignores SIGTERM, so that the test can examine it.
fn stray_agent(core_id: &CoreId, machine: MachineId, config: &Path) -> Child {
    Command::new("/bin/sh")
        .args(["-c", "trap '' TERM; while :; do sleep 1; done", "agent"])
        .arg(config)
        .env("STAGELY_CORE", core_id.as_str())
        .env(MACHINE_VARIABLE, machine.to_string())
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn an_unknown_machine_is_reported_by_a_dry_run_and_ended_by_a_sweep() {
    let mut core = Core::start(STAGELY, "sweep", "").await;
    assert!(core.shut_down().await.success());
    let core_id = Store::open(&core.path("data/core.redb")).unwrap().1.core_id;
    core.launch().await;
    let quiet = does(&core, &["sweep"]);
    assert!(quiet.status.success(), "{quiet:?}");
    assert!(text(&quiet).contains("local     0       0         0"), "{}", text(&quiet));

    let machine = new_id::<MachineId>();
    let config = core.path("data/machines").join(machine.to_string()).join("agent.json");
    let mut stray = stray_agent(&core_id, machine, &config);
    let planned = does(&core, &["sweep", "--dry-run", "--json"]);
    let swept = does(&core, &["sweep"]);

    assert!(planned.status.success(), "{planned:?}");
    let planned: SweepView = serde_json::from_slice(&planned.stdout).unwrap();
    let local = &planned.providers[0];
    assert_eq!((local.listed, local.recorded, local.machines.len()), (1, 0, 1), "{planned:?}");
    let found = &local.machines[0];
    assert_eq!((found.machine_id, found.action, found.done), (machine, SweepAction::End, false));
    assert!(swept.status.success(), "{swept:?}");
    let row = format!("{machine}  local     ended   it is there and has no record");
    assert!(text(&swept).contains(&row), "{}", text(&swept));
    assert!(processes_with(&machine.to_string()).is_empty());
    stray.wait().unwrap();
    core.finish().await;
}

#[tokio::test]
async fn a_machine_that_is_killed_is_found_gone_and_stays_in_the_list_of_all() {
    let core = Core::start(STAGELY, "gone", "").await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    let first = core.machines().await.remove(0).id;
    let shown = text(&does(&core, &["machines"]));
    let row = shown.lines().find(|line| line.starts_with(&first.to_string())).unwrap();
    for word in ["local", "host", "on-demand", "busy", "connected"] {
        assert!(row.contains(word), "{word}: {shown}");
    }

    let mut agents = processes_with(&first.to_string());
    agents.retain(|process| process.arguments.get(1).is_some_and(|word| word == "agent"));
    agents[0].kill();

    let all = || -> Vec<MachineView> {
        serde_json::from_slice(&does(&core, &["machines", "--all", "--json"]).stdout).unwrap()
    };
    let gone = eventually("the machine is found gone", async || {
        all()
            .into_iter()
            .find(|machine| machine.id == first && machine.status == MachineStatus::Terminated)
    })
    .await;
    assert_eq!((gone.lease_left_seconds, gone.cost_usd), (None, None));
    core.until(run, "another machine has the job", |run| {
        run.jobs.iter().any(|job| job.attempt == 2 && job.status == JobStatus::Running)
    })
    .await;
    assert!(!text(&does(&core, &["machines"])).contains(&first.to_string()));
    let listed = text(&does(&core, &["machines", "--all"]));
    let row = listed.lines().find(|line| line.starts_with(&first.to_string())).unwrap();
    assert!(row.contains("terminated"), "{listed}");
    breakpoint.reached().await;
    breakpoint.resume();
    assert_eq!(core.ended(run).await.status, RunStatus::Completed);
    core.finish().await;
}
