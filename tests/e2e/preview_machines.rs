//! Machines of previews on core's own host, whose engine keeps nothing of a machine that is gone.

use nix::sys::signal::{Signal, kill};
use stagely_test_core::Core;
use stagely_test_support::previews::on_engine;
use stagely_test_support::processes::{Process, processes_with};
use stagely_test_support::wait::eventually;

use crate::STAGELY;

/// The agent of a machine.
fn agent(machine: &str) -> Process {
    let mut found = processes_with(machine);
    found.retain(|process| process.arguments.get(1).is_some_and(|word| word == "agent"));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Waits until nothing of the machine is left, neither on the engine nor on the disk.
async fn is_gone(core: &Core, machine: &str) {
    let folder = core.path("data/machines").join(machine);
    eventually(&format!("nothing of {machine} is left"), async || {
        let processes = processes_with(machine);
        (on_engine(machine).is_empty() && processes.is_empty() && !folder.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_an_ended_machine_has_left_on_the_engine_is_removed_and_its_preview_moves() {
    let mut core = Core::start(STAGELY, "preview-left", "").await;
    core.preview_of("one").await;
    let mut machine = core.preview_machine().await.id.to_string();
    // A container, a volume and a network.
    assert_eq!(on_engine(&machine).len(), 3);

    // The agent ends, by whatever signal. Containers would go on without it.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        kill(agent(&machine).pid, signal).unwrap();
        is_gone(&core, &machine).await;
        core.serves("one").await;
        let next = core.preview_machine().await.id.to_string();
        assert_ne!(next, machine);
        machine = next;
    }

    // Core and the agent are killed. The next core finds what they have left.
    core.crash();
    processes_with(&machine).iter().for_each(Process::kill);
    assert_eq!(on_engine(&machine).len(), 3);
    core.launch().await;
    is_gone(&core, &machine).await;
    core.serves("one").await;

    // The machine of a preview that ends is terminated.
    let machine = core.preview_machine().await.id.to_string();
    core.end_preview().await;
    is_gone(&core, &machine).await;
    core.finish().await;
}

#[tokio::test]
async fn a_preview_outlives_a_core_that_is_killed() {
    let mut core = Core::start(STAGELY, "preview-core", "").await;
    core.preview_of("one").await;
    let machine = core.preview_machine().await.id;

    core.crash();
    core.launch().await;
    core.serves("one").await;

    assert_eq!(core.preview_machine().await.id, machine);
    // An update takes place on the same machine.
    core.preview_of("two").await;
    assert_eq!(core.preview_machine().await.id, machine);
    core.end_preview().await;
    is_gone(&core, &machine.to_string()).await;
    core.finish().await;
}
