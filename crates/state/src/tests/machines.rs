//! Machines.

use super::*;

#[test]
fn a_machine_whose_job_went_while_it_was_launched_ends_as_soon_as_the_provider_answers() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    assert_eq!(core.cancel(run), [], "terminating it now would race with the launch");

    let effects = core.step(Event::MachineLaunched { machine, placement: None });

    assert_eq!(effects, [Effect::Terminate { machine }]);
}

#[test]
fn a_launch_without_capacity_is_tried_again_later_with_another_machine() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let failure = LaunchFailure::NoCapacity("none in eu-central-1".to_owned());
    core.step(Event::LaunchFailed { machine, failure });

    assert_eq!(core.machine_state(machine), MachineState::Terminated);
    assert!(matches!(core.job_state(jobs[0]), JobState::Postponed { attempt: 1, .. }));
    let until = core.now.after(Duration::from_secs(30));
    assert_eq!(core.state.next_deadline(), Some(until));
    let reason = &core.state.queue()[0].reason;
    assert!(matches!(reason, QueueReason::Capacity { retry_at, .. } if *retry_at == until));

    core.wait(Duration::from_secs(30));
    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 1, .. }));
}

#[test]
fn a_machine_that_its_provider_ends_at_launch_has_the_providers_reason() {
    let reasons = [
        (LaunchFailure::Permanent("the key may not be used".to_owned()), FailureReason::Provider),
        (LaunchFailure::NoCapacity("none left".to_owned()), FailureReason::NoCapacity),
    ];
    for (failure, reason) in reasons {
        let mut core = amd64(1);
        core.state.limits.capacity_limit = Duration::ZERO;
        let (_, jobs) = core.run(1, 1);
        let machine = core.launched(jobs[0]);

        core.step(Event::EndedAtLaunch { machine, failure });

        assert_eq!(core.failure(jobs[0]), &reason);
        assert_eq!(core.machine_state(machine), MachineState::Terminated);
    }
}

#[test]
fn a_machine_whose_agent_was_there_did_not_end_at_launch() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    let failure = LaunchFailure::Permanent("the key may not be used".to_owned());
    core.step(Event::EndedAtLaunch { machine, failure });

    assert_eq!(core.state.jobs[&job].lost_attempts[0].reason, FailureReason::MachineLost);
}

#[test]
fn a_permanent_launch_failure_fails_the_job_at_once() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let failure = LaunchFailure::Permanent("the key may not start machines".to_owned());
    core.step(Event::LaunchFailed { machine, failure });

    assert_eq!(core.failure(jobs[0]), &FailureReason::Provider);
}

#[test]
fn a_machine_that_may_have_been_started_is_terminated() {
    let mut core = amd64(2);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let failure = LaunchFailure::Unclear("no answer".to_owned());

    let effects = core.step(Event::LaunchFailed { machine, failure });

    assert!(effects.contains(&Effect::Terminate { machine }));
}

#[test]
fn a_machine_that_is_found_after_it_was_marked_lost_is_terminated() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.report(machine, job, 1, PUSHED);
    core.step(Event::MachineGone { machine, taken_back: false });

    let effects = core.step(Event::MachineLaunched { machine, placement: None });

    assert_eq!(effects, [Effect::Terminate { machine }]);
}

#[test]
fn a_machine_that_does_not_boot_is_terminated_and_its_job_tried_again() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.launched(jobs[0]);

    assert_eq!(core.wait(Duration::from_mins(5)), [Effect::Terminate { machine }]);

    assert_eq!(core.state.jobs[&jobs[0]].lost_attempts[0].reason, FailureReason::BootTimeout);
}

#[test]
fn a_machine_that_is_still_terminating_takes_up_its_slot() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);
    core.report(machine, jobs[0], 1, PUSHED);
    assert_eq!(core.job_state(jobs[1]), &JobState::Queued { attempt: 1 });

    core.step(Event::MachineGone { machine, taken_back: false });

    assert!(matches!(core.job_state(jobs[1]), JobState::Provisioning { .. }));
}

#[test]
fn a_lease_never_ends_before_the_job_must() {
    let mut core = amd64(1);
    core.state.limits.lease = Duration::ZERO;
    let (_, job, machine) = core.running();

    let JobState::Running { deadline, .. } = *core.job_state(job) else { panic!("it runs") };
    assert!(core.state.machines[&machine].lease_until.unwrap() > deadline);
    assert_eq!(core.wait(Duration::from_mins(29)), []);
}

#[test]
fn a_job_that_its_agent_does_not_end_is_ended_by_core() {
    let mut core = amd64(1);
    let (run, job, machine) = core.running();

    assert_eq!(core.wait(Duration::from_mins(31)), [Effect::Terminate { machine }]);

    assert_eq!(core.failure(job), &FailureReason::Timeout { limit_seconds: 30 * 60 });
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn no_timeout_fires_because_core_was_down() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();
    core.now = core.now.after(Duration::from_hours(5));
    core.restart();
    assert_eq!(core.wait(Duration::from_secs(170)), []);
    core.connect(machine, &[(job, 1)]);

    core.report(machine, job, 1, PUSHED);

    assert_eq!(core.job_state(job), &JobState::Completed { digest: None });
}

#[test]
fn work_that_begins_after_a_restart_has_the_usual_time_limit() {
    let mut core = amd64(1);
    core.restart();
    core.now = core.now.after(Duration::from_secs(1));
    let (_, job, machine) = core.running();
    core.disconnect(machine);

    assert_eq!(core.wait(Duration::from_mins(2)), [Effect::Terminate { machine }]);

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn a_restart_emits_no_effect_twice() {
    let mut core = amd64(1);
    core.run(1, 2);
    let outbox = core.state.outbox.clone();

    assert_eq!(core.restart(), []);

    assert_eq!(*core.state.outbox, outbox);
}

#[test]
fn an_agent_of_an_unknown_machine_is_disconnected() {
    let mut core = amd64(1);
    let machine = MachineId::from_bits(core.id());

    assert_eq!(core.connect(machine, &[]), [Effect::Disconnect { machine }]);
}

fn refuse(core: &mut Core, job: JobId) -> MachineId {
    let machine = core.machine_of(job);
    let failure = LaunchFailure::NoCapacity("none in eu-central-1".to_owned());
    core.step(Event::LaunchFailed { machine, failure });
    machine
}

/// The seconds between the launches for the job, all of which find no capacity, and whether each was on demand.
fn launches_without_capacity(core: &mut Core, job: JobId) -> Vec<(u64, bool)> {
    let (start, mut launches) = (core.now, Vec::new());
    loop {
        let machine = refuse(core, job);
        let on_demand = core.state.machines[&machine].on_demand;
        launches.push((core.now.since(start).as_secs(), on_demand));
        let Some(next) = core.state.next_deadline() else { return launches };
        core.now = next;
        core.step(Event::Tick);
    }
}

#[test]
fn launches_without_capacity_get_rarer_turn_to_on_demand_and_end_at_the_limit() {
    let mut core = amd64(1);
    core.state.limits.capacity_limit = Duration::from_mins(20);
    let (run, jobs) = core.run(1, 1);

    let launches = launches_without_capacity(&mut core, jobs[0]);

    let spot = [(0, false), (30, false)];
    let on_demand = [60, 120, 240, 480, 780, 1_080, 1_200].map(|seconds| (seconds, true));
    assert_eq!(launches, [&spot[..], &on_demand].concat());
    let JobState::Failed(failure) = core.job_state(jobs[0]) else { panic!("it goes on") };
    assert_eq!(failure.reason, FailureReason::NoCapacity);
    let message = "after 20 min of waiting for capacity: none in eu-central-1";
    assert_eq!(failure.message, message);
    assert_eq!(core.state.jobs[&jobs[0]].lost_attempts, []);
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn without_a_wait_the_first_launch_without_capacity_fails_the_job() {
    let mut core = amd64(1);
    core.state.limits.capacity_limit = Duration::ZERO;
    let (_, jobs) = core.run(1, 1);

    assert_eq!(launches_without_capacity(&mut core, jobs[0]).len(), 1);

    let JobState::Failed(failure) = core.job_state(jobs[0]) else { panic!("it goes on") };
    assert_eq!(failure.message, "none in eu-central-1");
}

#[test]
fn a_gap_in_capacity_costs_no_attempt_and_ends_with_the_machine() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    refuse(&mut core, jobs[0]);
    core.wait(Duration::from_secs(30));
    let job = &core.state.jobs[&jobs[0]];
    let gap = job.missing_capacity.clone().unwrap();
    assert_eq!((gap.launches, &*gap.message), (1, "none in eu-central-1"));

    let machine = core.launched(jobs[0]);
    // A machine that does not come up may have no capacity behind it.
    assert!(core.state.jobs[&jobs[0]].missing_capacity.is_some());
    core.connect(machine, &[]);

    assert_eq!(core.state.jobs[&jobs[0]].missing_capacity, None);
    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 1, .. }));
}

#[test]
fn an_agent_that_reports_missing_capacity_loses_its_attempt() {
    let mut core = amd64(1);
    let (_, job, machine) = core.running();

    let failure = JobFailure::new(FailureReason::NoCapacity, "");
    core.report(machine, job, 1, JobOutcome::Failed(failure));

    assert_eq!(core.job_state(job), &JobState::Queued { attempt: 2 });
}

#[test]
fn a_job_that_waits_for_capacity_waits_on_after_a_restart() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    refuse(&mut core, jobs[0]);
    let until = core.now.after(Duration::from_secs(30));

    assert_eq!(core.restart(), []);

    let since = core.now;
    let give_up_at = since.after(Duration::from_hours(1));
    let reason = QueueReason::Capacity { since, retry_at: until, give_up_at };
    assert_eq!(core.state.queue(), [QueuedJob { job: jobs[0], reason }]);
    assert_eq!(core.state.next_deadline(), Some(until));
    assert!(matches!(core.wait(Duration::from_secs(30))[..], [Effect::Launch { .. }]));
}

#[test]
fn a_job_that_waits_for_capacity_is_cancelled_with_its_run() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    refuse(&mut core, jobs[0]);

    core.cancel(run);

    assert_eq!(core.job_state(jobs[0]), &JobState::Cancelled);
    assert_eq!(core.state.queue(), []);
    assert_eq!(core.state.next_deadline(), None);
    assert_eq!(core.wait(Duration::from_mins(1)), []);
}

#[test]
fn a_job_that_waits_for_capacity_does_not_block_others() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    refuse(&mut core, jobs[0]);

    assert!(matches!(core.job_state(jobs[1]), JobState::Provisioning { attempt: 1, .. }));
    let machine = core.launched(jobs[1]);
    core.wait(Duration::from_secs(30));
    let builder = QueueReason::FleetLimit { fleet: Fleet::Builder, max_concurrent: 1 };
    assert_eq!(core.state.queue(), [QueuedJob { job: jobs[0], reason: builder }]);

    core.step(Event::MachineGone { machine, taken_back: false });
    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 1, .. }));
}

#[test]
fn a_merge_that_waits_for_capacity_takes_a_builder_over_that_becomes_free() {
    let mut core = both(2);
    let two = TwoPlatforms::begun(&mut core);
    core.report_early(two.machines[0], two.builds[0], 1);
    for (machine, build) in two.machines.into_iter().zip(two.builds) {
        core.connect(machine, &[(build, 1)]);
        core.disconnect(machine);
    }
    core.report(two.machines[1], two.builds[1], 1, PUSHED);
    core.step(Event::MachineGone { machine: two.machines[1], taken_back: false });
    refuse(&mut core, two.merge);
    assert!(matches!(core.job_state(two.merge), JobState::Postponed { .. }));

    core.connect(two.machines[0], &[(two.builds[0], 1)]);

    assert_eq!(core.machine_of(two.merge), two.machines[0]);
    assert!(!core.job_state(two.merge).is_waiting());
    assert_eq!(core.state.queue(), []);
}

#[test]
fn a_machines_record_has_its_placement() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let machine = core.machine_of(jobs[0]);
    let placement = Placement {
        provider_id: "i-0abc".to_owned(),
        instance_type: "c6g.xlarge".to_owned(),
        zone: Some("eu-central-1a".to_owned()),
        market: Market::Spot,
        price: Some(Usd(360_000)),
        spot_price: Some(Usd(120_000)),
    };
    core.step(Event::MachineLaunched { machine, placement: Some(placement.clone()) });
    core.step(Event::MachineLaunched { machine, placement: None });
    assert_eq!(core.state.machines[&machine].placement, Some(placement), "a list knows less");
}

#[test]
fn a_machines_record_has_its_provider() {
    let mut core = both(2);
    core.state.limits.launchable = BTreeMap::from([
        (Arch::Amd64, ProviderName::DigitalOcean),
        (Arch::Arm64, ProviderName::Aws),
    ]);
    let two = TwoPlatforms::begun(&mut core);
    let provider = |machine: MachineId| core.state.machines[&machine].provider;

    let providers = two.machines.map(provider);
    assert_eq!(providers, [ProviderName::DigitalOcean, ProviderName::Aws]);
}
