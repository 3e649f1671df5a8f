//! The order of jobs when there are too few machines.

use stagely::api::{QueueView, RunStatus};
use stagely_state::MachineState;
use stagely_test_core::Core;
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::wait::eventually;

use crate::STAGELY;

#[tokio::test]
async fn with_one_machine_at_a_time_two_projects_take_turns() {
    let core = Core::start(STAGELY, "turns", "[builders]\nmax-concurrent = 1").await;
    let breakpoint = Breakpoint::new();
    let held = format!("FROM busybox\nRUN : {}; {}\n", core.name, breakpoint.command());
    let manifest = "builds: { a1: { context: held }, a2: { context: . }, a3: { context: . } }\n";
    let files =
        [("held/Dockerfile", &*held), ("Dockerfile", "FROM busybox\n"), ("stagely.yaml", manifest)];
    let first = core.run_of(&files).await;
    breakpoint.reached().await;
    let manifest = "builds: { b1: { context: . }, b2: { context: . } }\n";
    core.repository.commit(&[("stagely.yaml", manifest)]);
    let mut request = core.request();
    request.project = Some(format!("{}-b", core.name));
    let second = core.run(request).await;
    let queue = eventually("four jobs wait", async || {
        let queue: QueueView = core.get("/queue").await;
        (queue.jobs.len() == 4).then_some(queue)
    })
    .await;
    let promised: Vec<String> = queue.jobs.iter().map(|job| job.name.clone()).collect();
    assert_eq!(promised, ["b1", "a2", "b2", "a3"]);
    assert_eq!((queue.max_concurrent, queue.live_machines), (1, 1));
    assert!(queue.jobs[0].reason.contains("1 of 1 builders"), "{queue:#?}");

    breakpoint.resume();
    let (first, second) = (core.ended(first).await, core.ended(second).await);

    assert_eq!((first.status, second.status), (RunStatus::Completed, RunStatus::Completed));
    let mut jobs: Vec<_> = first.jobs.iter().chain(&second.jobs).collect();
    jobs.sort_by_key(|job| job.started_at);
    let served: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(served, ["a1", "b1", "a2", "b2", "a3"]);
    let stored = core.finish().await;
    let mut machines: Vec<_> = stored.state.machines.values().collect();
    machines.sort_by_key(|machine| machine.requested_at);
    assert!(machines.iter().all(|machine| machine.state == MachineState::Terminated));
    for pair in machines.windows(2) {
        assert!(pair[0].terminated_at.unwrap() <= pair[1].requested_at, "two at a time");
    }
}
