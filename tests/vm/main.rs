//! Virtual machines of the golden image: how core's user data sets them up, and how they end.
//!
//! `scripts/test --vm` makes the image, with the program under test in it, and runs these tests. Needs root,
//! and what `scripts/setup` sets up; guests are emulated, so the tests run without KVM. No test asserts
//! durations; they are measured and printed.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod world;

use stagely::api::{JobStatus, RunStatus};
use stagely_test_support::registry::digest;

use crate::world::{Core, Guest, World};

#[tokio::test]
async fn a_guest_builds_and_pushes_and_powers_off_when_core_ends_it() {
    let world = World::new("builds");
    let mut core = Core::start(&world, "").await;
    let run = core.run().await;
    let mut guest = Guest::of(&core, run).await;
    guest.says_hello(&mut core).await;

    let view = core.ended(run).await;
    guest.took("image pushed and reported");
    assert_eq!(view.status, RunStatus::Completed, "{view:#?}");
    let job = &view.jobs[0];
    assert_eq!(job.status, JobStatus::Completed, "{view:#?}");
    let pushed = digest(&job.image.as_ref().unwrap().to_string(), None).await;
    assert_eq!(pushed, job.digest.as_ref().map(ToString::to_string), "{view:#?}");
    assert!(core.log_of(job.id).await.contains("built by a guest"), "{view:#?}");

    guest.powers_off().await;
    core.nothing_is_left().await;
    core.shut_down().await;
}

#[tokio::test]
async fn a_guest_whose_core_is_gone_gives_up_and_powers_off() {
    let mut world = World::new("gives-up");
    // Only the agent can end the machine.
    world.append("systemd.mask=stagely-deadman.timer");
    let mut core = Core::start(&world, "[agents]\ngive-up-after = \"1m\"").await;
    let run = core.run().await;
    let mut guest = Guest::of(&core, run).await;
    guest.says_hello(&mut core).await;

    core.crash();

    guest.powers_off().await;
}

#[tokio::test]
async fn a_guest_without_an_agent_is_powered_off_by_its_dead_man_switch() {
    let mut world = World::new("dead-man");
    world.append("systemd.mask=stagely-agent.service");
    let mut core = Core::start(&world, "[agents]\ngive-up-after = \"1m\"").await;
    let run = core.run().await;
    let mut guest = Guest::of(&core, run).await;

    core.crash();

    guest.powers_off().await;
    let console = guest.console();
    assert!(console.contains("stagely-deadman: no contact with core for "), "{console}");
}

#[tokio::test]
async fn three_guests_build_serve_and_test_and_the_one_that_serves_ends_when_its_core_is_gone() {
    let world = World::new("preview");
    world.commit_preview();
    // Shorter than usual, and longer than the boot of a guest takes here: the dead-man switch counts from there.
    let mut core = Core::start(&world, "[agents]\ngive-up-after = \"3m\"").await;
    let run = core.run_of_main_branch().await;
    let mut builder = Guest::of(&core, run).await;
    builder.says_hello(&mut core).await;
    let mut guest = Guest::after(&core, run, &[&builder]).await;
    guest.says_hello(&mut core).await;
    let mut tester = Guest::after(&core, run, &[&builder, &guest]).await;
    guest.took("the preview is deployed, and its tester starts");
    tester.says_hello(&mut core).await;

    let view = core.ended(run).await;
    tester.took("the preview is tested");
    assert_eq!(view.status, RunStatus::Completed, "{view:#?}");
    let disk_kib: u64 = core.page(&view, "/cgi-bin/disk").await.trim().parse().unwrap();
    guest.took("a page");
    // The golden image has 10 GiB, and stagely.yaml says 12.
    assert!(disk_kib > 11 << 20, "{disk_kib} KiB");
    let test = view.jobs.iter().find(|job| job.name == "test/page").unwrap();
    let log = core.log_of(test.id).await;
    assert!(log.contains(&format!("a tester found\n{disk_kib}\n")), "{log}");
    let artifacts = test.test.as_ref().unwrap().artifacts.as_ref().unwrap();
    assert_eq!(artifacts.files, 1, "{test:#?}");
    tester.powers_off().await;

    core.crash();

    guest.powers_off().await;
}
