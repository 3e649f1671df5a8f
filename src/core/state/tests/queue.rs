//! Who is served next.

use super::*;

/// Serves one job after the other on one registered machine and returns them in that order.
fn serve_all(core: &mut Core) -> Vec<JobId> {
    let machine = core.static_machine(Arch::Amd64);
    let mut effects = core.connect(machine, &[]);
    let mut served = Vec::new();
    while let [Effect::Assign { job, attempt, .. }] = effects[..] {
        served.push(job);
        effects = core.report(machine, job, attempt, PUSHED);
    }
    served
}

#[test]
fn projects_are_served_in_turns_and_jobs_of_one_project_in_order() {
    let mut core = without_provider();
    let (_, a) = core.run(1, 3);
    let (_, b) = core.run(2, 2);
    let (_, c) = core.run(3, 1);

    let promised: Vec<JobId> = core.state.queue().iter().map(|queued| queued.job).collect();
    let served = serve_all(&mut core);

    assert_eq!(served, [a[0], b[0], c[0], a[1], b[1], a[2]]);
    assert_eq!(promised, served);
}

#[test]
fn a_project_that_was_just_served_lets_the_others_go_first() {
    let mut core = amd64(1);
    let (_, a) = core.run(1, 2);
    let (_, b) = core.run(2, 1);
    let machine = core.launched(a[0]);
    core.connect(machine, &[]);
    core.report(machine, a[0], 1, PUSHED);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(b[0]), JobState::Provisioning { .. }));
    assert!(matches!(core.job_state(a[1]), JobState::Queued { .. }));
}

#[test]
fn a_project_is_not_passed_by_because_machines_differ() {
    let mut core = amd64(1);
    let arm64 = core.static_machine(Arch::Arm64);
    core.connect(arm64, &[]);
    let (_, first) = core.run(1, 2);
    let run = core.request(3);
    let build = core.build(Arch::Arm64);
    let (_, second) = core.run(2, 1);
    core.plan(run, std::slice::from_ref(&build));
    assert_eq!(core.machine_of(build.id), arm64, "project 3 was served last, after project 1");
    let machine = core.launched(first[0]);
    core.connect(machine, &[]);
    core.report(machine, first[0], 1, PUSHED);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(second[0]), JobState::Provisioning { .. }));
    assert_eq!(core.job_state(first[1]), &JobState::Queued { attempt: 1 });
}

#[test]
fn a_job_that_is_tried_again_keeps_its_place() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);

    core.step(Event::MachineGone { machine });

    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { attempt: 2, .. }));
    let [lost] = &core.state.jobs[&jobs[0]].lost_attempts[..] else { panic!("one was lost") };
    assert_eq!((lost.attempt, &lost.reason), (1, &FailureReason::MachineLost));
    assert_eq!(lost.message, "the provider ended the machine");
    assert_eq!(core.job_state(jobs[1]), &JobState::Queued { attempt: 1 });
}

#[test]
fn the_queue_says_what_each_job_waits_for() {
    let mut core = amd64(1);
    core.run(1, 1);
    let run = core.request(1);
    let arm64 = core.static_machine(Arch::Arm64);
    core.connect(arm64, &[]);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    let (amd64, merge) = (core.build(Arch::Amd64), core.merge(&[&first, &second]));
    let jobs = [merge.id, amd64.id, second.id];
    core.plan(run, &[merge, first.clone(), second.clone(), amd64]);

    let queue = core.state.queue();

    let reason = |id: JobId| &queue.iter().find(|queued| queued.job == id).unwrap().reason;
    assert_eq!(reason(jobs[0]), &QueueReason::Jobs(vec![first.id, second.id]));
    assert_eq!(reason(jobs[1]), &QueueReason::Builder { max_concurrent: 1 });
    assert_eq!(reason(jobs[2]), &QueueReason::StaticMachine { arch: Some(Arch::Arm64) });
    assert_eq!(queue.last().unwrap().job, jobs[0], "who waits for others is served last");
}

#[test]
fn a_registered_machine_is_used_before_another_is_launched() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Amd64);
    core.connect(machine, &[]);

    let (_, jobs) = core.run(1, 2);

    assert_eq!(core.machine_of(jobs[0]), machine);
    assert_eq!(core.state.machines[&core.machine_of(jobs[1])].kind, MachineKind::Launched);
}

#[test]
fn an_arch_that_nobody_has_is_emulated() {
    let mut core = amd64(5);
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    assert_eq!(core.state.machines[&core.machine_of(build.id)].arch, Arch::Amd64);
}

#[test]
fn an_arch_that_a_connected_machine_has_is_waited_for() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Arm64);
    core.connect(machine, &[]);
    let run = core.request(1);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    core.plan(run, &[first.clone(), second.clone()]);
    assert_eq!(core.job_state(second.id), &JobState::Queued { attempt: 1 });

    core.report(machine, first.id, 1, PUSHED);

    assert_eq!(core.machine_of(second.id), machine);
}

// Emulation.

fn native_only(core: &mut Core, arch: Arch) -> PlannedJob {
    let mut build = core.build(arch);
    let JobKind::Build { emulation, .. } = &mut build.kind else { unreachable!() };
    *emulation = Emulation::Forbid;
    build
}

#[test]
fn a_job_knows_whether_it_is_emulated() {
    let mut core = amd64(5);
    let run = core.request(1);
    let (native, emulated) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
    core.plan(run, &[native.clone(), emulated.clone()]);

    assert!(!core.state.jobs[&native.id].emulated);
    assert!(core.state.jobs[&emulated.id].emulated);
}

#[test]
fn a_job_that_must_not_be_emulated_fails_at_once_where_nobody_has_its_arch() {
    let mut core = amd64(5);
    let run = core.request(1);
    let (native, foreign) =
        (native_only(&mut core, Arch::Amd64), native_only(&mut core, Arch::Arm64));
    core.plan(run, &[native.clone(), foreign.clone()]);

    assert!(matches!(core.job_state(native.id), JobState::Provisioning { .. }));
    let JobState::Failed { reason, message, .. } = core.job_state(foreign.id) else {
        panic!("it waits");
    };
    assert_eq!(reason, &FailureReason::Emulation);
    assert!(message.contains("arm64") && message.contains("stagely machines add"), "{message}");
}

#[test]
fn a_job_that_must_not_be_emulated_waits_for_a_registered_machine_that_is_away() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Arm64);
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));
    let reason = QueueReason::StaticMachine { arch: Some(Arch::Arm64) };
    assert_eq!(core.state.queue(), [QueuedJob { job: build.id, reason }]);

    core.connect(machine, &[]);

    assert_eq!(core.machine_of(build.id), machine);
}

#[test]
fn a_job_that_must_not_be_emulated_fails_when_the_last_machine_of_its_arch_is_taken_back() {
    let mut core = amd64(5);
    let machine = core.static_machine(Arch::Arm64);
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    core.step(Event::StaticMachineRemoved { machine });

    assert_eq!(core.failure(build.id), &FailureReason::Emulation);
}

#[test]
fn registered_machines_emulate_what_none_of_them_has() {
    let mut core = without_provider();
    let machine = core.static_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let run = core.request(1);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    core.plan(run, &[first.clone(), second.clone()]);

    assert_eq!(core.machine_of(first.id), machine);
    assert!(core.state.jobs[&first.id].emulated);
    let reason = QueueReason::StaticMachine { arch: None };
    assert_eq!(core.state.queue(), [QueuedJob { job: second.id, reason }]);

    core.report(machine, first.id, 1, PUSHED);
    assert_eq!(core.machine_of(second.id), machine);
}

#[test]
fn registered_machines_emulate_nothing_that_one_of_them_has_though_it_is_away() {
    let mut core = without_provider();
    let (machine, away) = (core.static_machine(Arch::Amd64), core.static_machine(Arch::Arm64));
    core.connect(machine, &[]);
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));
    assert_eq!(core.job_state(build.id), &JobState::Queued { attempt: 1 });

    core.step(Event::StaticMachineRemoved { machine: away });

    assert_eq!(core.machine_of(build.id), machine, "it does not come back");
}

#[test]
fn a_job_that_must_not_be_emulated_fails_at_once_where_no_registered_machine_has_its_arch() {
    let mut core = without_provider();
    core.static_machine(Arch::Amd64);
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    assert_eq!(core.failure(build.id), &FailureReason::Emulation);
}

#[test]
fn without_a_provider_a_job_waits_for_a_machine_to_be_registered() {
    let mut core = without_provider();
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    assert_eq!(core.job_state(build.id), &JobState::Queued { attempt: 1 });
}
