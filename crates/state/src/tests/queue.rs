//! The order of the queue.

use super::*;

/// Serves one job after the other on one registered machine and returns them in that order.
fn serve_all(core: &mut Core) -> Vec<JobId> {
    let machine = core.registered_machine(Arch::Amd64);
    let mut effects = core.connect(machine, &[]);
    let mut served = Vec::new();
    while let [Effect::Assign { attempt: Attempt { job, number }, .. }] = effects[..] {
        served.push(job);
        effects = core.report(machine, job, number, PUSHED);
    }
    served
}

#[test]
fn projects_take_turns_and_jobs_of_one_project_keep_their_order() {
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

    core.step(Event::MachineGone { machine, taken_back: false });

    assert!(matches!(core.job_state(b[0]), JobState::Provisioning { .. }));
    assert!(matches!(core.job_state(a[1]), JobState::Queued { .. }));
}

#[test]
fn a_project_does_not_starve_because_machines_differ() {
    let mut core = amd64(1);
    let arm64 = core.registered_machine(Arch::Arm64);
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

    core.step(Event::MachineGone { machine, taken_back: false });

    assert!(matches!(core.job_state(second[0]), JobState::Provisioning { .. }));
    assert_eq!(core.job_state(first[1]), &JobState::Queued { attempt: 1 });
}

#[test]
fn a_further_attempt_keeps_its_position() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);

    core.step(Event::MachineGone { machine, taken_back: false });

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
    let arm64 = core.registered_machine(Arch::Arm64);
    core.connect(arm64, &[]);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    let (amd64, merge) = (core.build(Arch::Amd64), core.merge(&[&first, &second]));
    let jobs = [merge.id, amd64.id, second.id];
    core.plan(run, &[merge, first.clone(), second.clone(), amd64]);

    let queue = core.state.queue();

    let reason = |id: JobId| &queue.iter().find(|queued| queued.job == id).unwrap().reason;
    assert_eq!(reason(jobs[0]), &QueueReason::Jobs(vec![first.id, second.id]));
    assert_eq!(
        reason(jobs[1]),
        &QueueReason::FleetLimit { fleet: Fleet::Builder, max_concurrent: 1 }
    );
    assert_eq!(reason(jobs[2]), &QueueReason::RegisteredMachine { arch: Some(Arch::Arm64) });
    assert_eq!(queue.last().unwrap().job, jobs[0], "who waits for others is served last");
}

#[test]
fn a_registered_machine_is_used_before_another_is_launched() {
    let mut core = amd64(5);
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);

    let (_, jobs) = core.run(1, 2);

    assert_eq!(core.machine_of(jobs[0]), machine);
    assert_eq!(core.state.machines[&core.machine_of(jobs[1])].kind, MachineKind::Launched);
}

#[test]
fn an_arch_without_a_machine_is_emulated() {
    let mut core = amd64(5);
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    assert_eq!(core.state.machines[&core.machine_of(build.id)].arch, Arch::Amd64);
}

#[test]
fn a_job_waits_for_a_connected_machine_of_its_arch() {
    let mut core = amd64(5);
    let machine = core.registered_machine(Arch::Arm64);
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
fn a_job_that_must_not_be_emulated_fails_at_once_without_a_machine_of_its_arch() {
    let mut core = amd64(5);
    let run = core.request(1);
    let (native, foreign) =
        (native_only(&mut core, Arch::Amd64), native_only(&mut core, Arch::Arm64));
    core.plan(run, &[native.clone(), foreign.clone()]);

    assert!(matches!(core.job_state(native.id), JobState::Provisioning { .. }));
    let JobState::Failed(JobFailure { reason, message, .. }) = core.job_state(foreign.id) else {
        panic!("it waits");
    };
    assert_eq!(reason, &FailureReason::Emulation);
    assert!(message.contains("arm64") && message.contains("stagely machines add"), "{message}");
}

#[test]
fn a_job_that_must_not_be_emulated_waits_for_a_registered_machine_that_is_away() {
    let mut core = amd64(5);
    let machine = core.registered_machine(Arch::Arm64);
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));
    let reason = QueueReason::RegisteredMachine { arch: Some(Arch::Arm64) };
    assert_eq!(core.state.queue(), [QueuedJob { job: build.id, reason }]);

    core.connect(machine, &[]);

    assert_eq!(core.machine_of(build.id), machine);
}

#[test]
fn a_job_that_must_not_be_emulated_fails_when_the_last_machine_of_its_arch_is_taken_back() {
    let mut core = amd64(5);
    let machine = core.registered_machine(Arch::Arm64);
    let run = core.request(1);
    let build = native_only(&mut core, Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));

    core.step(Event::MachineUnregistered { machine });

    assert_eq!(core.failure(build.id), &FailureReason::Emulation);
}

#[test]
fn registered_machines_emulate_what_none_of_them_has() {
    let mut core = without_provider();
    let machine = core.registered_machine(Arch::Amd64);
    core.connect(machine, &[]);
    let run = core.request(1);
    let (first, second) = (core.build(Arch::Arm64), core.build(Arch::Arm64));
    core.plan(run, &[first.clone(), second.clone()]);

    assert_eq!(core.machine_of(first.id), machine);
    assert!(core.state.jobs[&first.id].emulated);
    let reason = QueueReason::RegisteredMachine { arch: None };
    assert_eq!(core.state.queue(), [QueuedJob { job: second.id, reason }]);

    core.report(machine, first.id, 1, PUSHED);
    assert_eq!(core.machine_of(second.id), machine);
}

#[test]
fn registered_machines_emulate_nothing_that_one_of_them_has_though_it_is_away() {
    let mut core = without_provider();
    let (machine, away) =
        (core.registered_machine(Arch::Amd64), core.registered_machine(Arch::Arm64));
    core.connect(machine, &[]);
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));
    assert_eq!(core.job_state(build.id), &JobState::Queued { attempt: 1 });

    core.step(Event::MachineUnregistered { machine: away });

    assert_eq!(core.machine_of(build.id), machine, "it does not come back");
}

#[test]
fn a_job_that_must_not_be_emulated_fails_at_once_where_no_registered_machine_has_its_arch() {
    let mut core = without_provider();
    core.registered_machine(Arch::Amd64);
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

// Priorities and limits by project.

/// A planned run of `count` builds in an environment of its own, so that no other supersedes it.
fn run_by(core: &mut Core, project: u128, trigger: Trigger, count: usize) -> Vec<JobId> {
    let run = RunId::from_bits(core.id());
    let environment = EnvironmentId::from_bits(core.id());
    let environment = Environment::new(environment, ProjectId::from_bits(project), String::new());
    let mut requested = Run::new(run, &environment, String::new(), core.now);
    requested.trigger = trigger;
    let project = Project::new(ProjectId::from_bits(project), String::new(), String::new());
    core.step(Event::RunRequested { run: Box::new(requested), project, environment });
    let jobs: Vec<PlannedJob> = (0..count).map(|_| core.build(Arch::Amd64)).collect();
    core.plan(run, &jobs);
    jobs.iter().map(|job| job.id).collect()
}

fn limit(core: &mut Core, project: u128, max_concurrent: u32) {
    let mut project = Project::new(ProjectId::from_bits(project), String::new(), String::new());
    project.max_concurrent = std::num::NonZeroU32::new(max_concurrent);
    core.step(Event::ProjectSet { project });
}

fn at_limit(project: u128, max_concurrent: u32) -> QueueReason {
    QueueReason::ProjectLimit { project: ProjectId::from_bits(project), max_concurrent }
}

fn reason_of(core: &Core, job: JobId) -> QueueReason {
    let queue = core.state.queue();
    queue.into_iter().find(|queued| queued.job == job).unwrap().reason
}

fn is_queued(core: &Core, job: JobId) -> bool {
    matches!(core.job_state(job), JobState::Queued { .. })
}

#[test]
fn manual_runs_go_before_pull_requests_and_these_before_the_default_branch() {
    let mut core = without_provider();
    let warm = run_by(&mut core, 1, Trigger::WarmUp, 1);
    let push = run_by(&mut core, 1, Trigger::Push, 1);
    let opened = run_by(&mut core, 1, Trigger::PrOpened, 1);
    let pushed = run_by(&mut core, 1, Trigger::PrSynchronized, 1);
    let manual = run_by(&mut core, 1, Trigger::Manual, 1);
    let retry = run_by(&mut core, 1, Trigger::Rebuild, 1);

    let promised: Vec<JobId> = core.state.queue().iter().map(|queued| queued.job).collect();
    let served = serve_all(&mut core);

    assert_eq!(served, [manual, retry, opened, pushed, warm, push].concat());
    assert_eq!(promised, served);
}

#[test]
fn priorities_hold_over_all_projects_and_within_one_the_projects_take_turns() {
    let mut core = without_provider();
    let a_branch = run_by(&mut core, 1, Trigger::Push, 2);
    let a_pull = run_by(&mut core, 1, Trigger::PrOpened, 3);
    let b_pull = run_by(&mut core, 2, Trigger::PrOpened, 2);
    let b_branch = run_by(&mut core, 2, Trigger::Push, 1);

    let promised: Vec<JobId> = core.state.queue().iter().map(|queued| queued.job).collect();
    let served = serve_all(&mut core);

    let pulls = [a_pull[0], b_pull[0], a_pull[1], b_pull[1], a_pull[2]];
    let branches = [b_branch[0], a_branch[0], a_branch[1]];
    assert_eq!(served, [&pulls[..], &branches[..]].concat());
    assert_eq!(promised, served, "project 1 was served last, so project 2 goes on");
}

#[test]
fn changed_priorities_hold_for_queued_jobs() {
    let mut core = without_provider();
    let pull = run_by(&mut core, 1, Trigger::PrOpened, 1);
    let manual = run_by(&mut core, 1, Trigger::Manual, 1);
    let push = run_by(&mut core, 1, Trigger::Push, 1);

    core.state.limits.priorities = Priorities { default_branch: 9, pull_request: 5, manual: 5 };

    assert_eq!(serve_all(&mut core), [push, pull, manual].concat());
    assert!(core.state.queue().is_empty());
}

#[test]
fn a_job_of_high_priority_without_a_machine_does_not_block_others() {
    let mut core = without_provider();
    core.registered_machine(Arch::Arm64);
    let run = core.request(1);
    let arm64 = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&arm64));
    let push = run_by(&mut core, 1, Trigger::Push, 1);

    assert_eq!(serve_all(&mut core), push);
    assert!(is_queued(&core, arm64.id));
}

#[test]
fn a_further_attempt_keeps_its_position_within_its_priority() {
    let mut core = amd64(1);
    let pull = run_by(&mut core, 1, Trigger::PrOpened, 2);
    let machine = core.launched(pull[0]);
    let manual = run_by(&mut core, 1, Trigger::Manual, 1);

    core.step(Event::MachineGone { machine, taken_back: false });

    assert!(!is_queued(&core, manual[0]), "it is more urgent");
    let queue: Vec<JobId> = core.state.queue().iter().map(|queued| queued.job).collect();
    assert_eq!(queue, pull);
}

#[test]
fn a_project_has_no_more_machines_than_its_limit_and_others_get_the_rest() {
    let mut core = amd64(4);
    limit(&mut core, 1, 2);
    let limited = run_by(&mut core, 1, Trigger::Manual, 3);
    let free = run_by(&mut core, 2, Trigger::Push, 3);

    let waiting = |core: &Core, jobs: &[JobId]| -> Vec<bool> {
        jobs.iter().map(|job| is_queued(core, *job)).collect()
    };
    assert_eq!(waiting(&core, &limited), [false, false, true]);
    assert_eq!(waiting(&core, &free), [false, false, true]);
    assert_eq!(reason_of(&core, limited[2]), at_limit(1, 2));
    assert_eq!(
        reason_of(&core, free[2]),
        QueueReason::FleetLimit { fleet: Fleet::Builder, max_concurrent: 4 }
    );
}

#[test]
fn a_machine_counts_for_its_project_until_it_is_gone() {
    let mut core = amd64(4);
    limit(&mut core, 1, 1);
    let jobs = run_by(&mut core, 1, Trigger::Manual, 2);
    let machine = core.launched(jobs[0]);
    core.connect(machine, &[]);
    core.report(machine, jobs[0], 1, PUSHED);
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
    assert_eq!(reason_of(&core, jobs[1]), at_limit(1, 1));

    core.step(Event::MachineGone { machine, taken_back: false });

    assert!(!is_queued(&core, jobs[1]));
}

#[test]
fn a_registered_machine_counts_for_the_project_whose_job_it_has() {
    let mut core = without_provider();
    limit(&mut core, 1, 1);
    let machines = [core.registered_machine(Arch::Amd64), core.registered_machine(Arch::Amd64)];
    for machine in machines {
        core.connect(machine, &[]);
    }
    let limited = run_by(&mut core, 1, Trigger::Manual, 2);
    assert_eq!(reason_of(&core, limited[1]), at_limit(1, 1));
    let free = run_by(&mut core, 2, Trigger::Push, 1);
    assert_eq!(core.machine_of(free[0]), machines[1]);

    core.report(machines[0], limited[0], 1, PUSHED);

    assert_eq!(core.machine_of(limited[1]), machines[0]);
}

#[test]
fn a_limit_that_is_raised_or_taken_away_holds_at_once() {
    let mut core = amd64(9);
    limit(&mut core, 1, 1);
    let jobs = run_by(&mut core, 1, Trigger::Manual, 4);
    limit(&mut core, 1, 2);
    assert!(!is_queued(&core, jobs[1]) && is_queued(&core, jobs[2]));

    limit(&mut core, 1, 0);

    assert!(core.state.queue().is_empty());
}

#[test]
fn a_limit_does_not_keep_a_merge_from_a_builder_that_is_still_there() {
    let mut core = both(4);
    let TwoPlatforms { builds, machines, merge, .. } = TwoPlatforms::begun(&mut core);
    limit(&mut core, 1, 1);
    core.report(machines[0], builds[0], 1, PUSHED);

    core.report(machines[1], builds[1], 1, PUSHED);

    assert_eq!(core.machine_of(merge), machines[1]);
}

#[test]
fn a_job_whose_needs_have_completed_is_ready_and_after_a_restart_it_still_is() {
    let mut core = without_provider();
    let amd64 = core.registered_machine(Arch::Amd64);
    let run = core.request(1);
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Amd64));
    let merge = core.merge(&[&one, &other]);
    core.plan(run, &[merge.clone(), one.clone(), other.clone()]);
    let before = core.state.queue();
    assert_eq!(reason_of(&core, merge.id), QueueReason::Jobs(vec![one.id, other.id]));

    core.restart();

    assert_eq!(core.state.queue(), before);
    core.connect(amd64, &[]);
    core.report(amd64, one.id, 1, PUSHED);
    core.report(amd64, other.id, 1, PUSHED);
    assert_eq!(core.machine_of(merge.id), amd64);
}

fn describe(core: &mut Core, provider: ProviderName, arches: &[Arch]) -> Vec<Effect> {
    let arches = arches.iter().copied().collect();
    core.step(Event::ProviderDescribed { provider, arches })
}

/// A new build for ARM64, and whether it is emulated.
fn arm64_build(core: &mut Core) -> (JobId, bool) {
    let run = core.request(1);
    let build = core.build(Arch::Arm64);
    core.plan(run, std::slice::from_ref(&build));
    (build.id, core.state.jobs[&build.id].emulated)
}

#[test]
fn an_arch_that_its_provider_lacks_is_emulated_until_it_has_it() {
    let mut core = both(9);
    assert!(!arm64_build(&mut core).1, "it was not asked yet");

    describe(&mut core, ProviderName::Local, &[Arch::Amd64]);
    let (job, is_emulated) = arm64_build(&mut core);
    assert!(is_emulated);
    assert_eq!(core.state.machines[&core.machine_of(job)].arch, Arch::Amd64);
    let launchable: Vec<_> = core.state.launchable(Fleet::Builder).collect();
    assert_eq!(launchable, [(Arch::Amd64, ProviderName::Local)]);

    describe(&mut core, ProviderName::Local, &Arch::ALL);
    assert!(!arm64_build(&mut core).1);
}

#[test]
fn an_arch_that_one_provider_lacks_may_be_launched_by_another() {
    let mut core = both(9);
    core.state.limits.launchable.insert(Arch::Arm64, ProviderName::Aws);

    describe(&mut core, ProviderName::Local, &[Arch::Amd64]);

    assert!(!arm64_build(&mut core).1);
}

#[test]
fn a_job_that_must_not_be_emulated_fails_when_its_provider_turns_out_to_lack_the_arch() {
    let mut core = both(0);
    let native = native_only(&mut core, Arch::Arm64);
    let run = core.request(1);
    core.plan(run, std::slice::from_ref(&native));
    assert!(is_queued(&core, native.id));

    describe(&mut core, ProviderName::Local, &[Arch::Amd64]);

    assert_eq!(core.failure(native.id), &FailureReason::Emulation);
}

#[test]
fn a_provider_without_any_arch_is_still_asked_to_launch() {
    let mut core = both(9);
    describe(&mut core, ProviderName::Local, &[Arch::Amd64]);

    describe(&mut core, ProviderName::Local, &[]);

    assert_eq!(core.state.launchable(Fleet::Builder).count(), 2);
    assert!(!arm64_build(&mut core).1);
}

#[test]
fn the_arches_of_a_provider_are_forgotten_at_a_restart() {
    let mut core = both(9);
    describe(&mut core, ProviderName::Local, &[Arch::Amd64]);

    core.restart();

    assert_eq!(core.state.launchable(Fleet::Builder).count(), 2);
}
