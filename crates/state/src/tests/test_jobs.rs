//! Test jobs: on testers and on the preview's machine, lost, interrupted with their preview, dropped, and reused.

use stagely_protocol::{BuildArgs, Shard, TestResults};

use super::previews::{DEPLOYED, SLEEP_AFTER, TTL, failed as undeployable};
use super::*;
use crate::ids::PreviewId;

/// A run whose preview is live and that has tests of it.
struct Tested {
    run: RunId,
    preview: PreviewId,
    machine: MachineId,
    tests: Vec<JobId>,
}

fn results(passed: u64) -> TestResults {
    TestResults { passed, ..TestResults::default() }
}

fn tests_failed() -> JobOutcome {
    failed(FailureReason::Test { failed: 2, exit_code: 1 })
}

impl Core {
    /// A test of the image of `build`, and of the preview of `deploy`, if there is one.
    fn test(&mut self, build: &PlannedJob, deploy: Option<(&PlannedJob, RunId)>) -> PlannedJob {
        let test = Test {
            image: UsedImage::Job { job: build.id },
            command: vec!["npx".to_owned(), "playwright".to_owned(), "test".to_owned()],
            env: BuildArgs::default(),
            secrets: Vec::new(),
            shard: Shard::ALL,
            retries: 0,
            junit: Vec::new(),
            artifacts: Vec::new(),
            comment_images: Vec::new(),
            on: TestMachine::Tester,
            preview_of: deploy.map(|(_, run)| self.state.runs[&run].created_at),
        };
        let kind = JobKind::Test { arch: Some(Arch::Amd64), test: Box::new(test) };
        let needs = [build.id].into_iter().chain(deploy.map(|(deploy, _)| deploy.id));
        self.job(kind, needs.collect())
    }

    /// Plans a build, its deployment, and `count` tests of the preview, each changed. Completes the build.
    fn built_with_tests(
        &mut self,
        run: RunId,
        count: usize,
        change: impl Fn(&mut Test),
    ) -> (JobId, Vec<JobId>) {
        let mut build = self.build(Arch::Amd64);
        build.name = "app".to_owned();
        let mut deploy = self.deployment(&build);
        deploy.name = DEPLOY_JOB.to_owned();
        let mut jobs = vec![build.clone(), deploy.clone()];
        for number in 0..count {
            let mut test = self.test(&build, Some((&deploy, run)));
            test.name = format!("e2e_{number}");
            let JobKind::Test { test: changed, .. } = &mut test.kind else { panic!() };
            change(changed);
            jobs.push(test);
        }
        self.plan(run, &jobs);
        if !self.job_state(build.id).is_final() {
            let machine = self.launched(build.id);
            self.connect(machine, &[]);
            self.report(machine, build.id, 1, pushed("b"));
            self.step(Event::MachineGone { machine, taken_back: false });
        }
        (deploy.id, jobs[2..].iter().map(|job| job.id).collect())
    }

    fn tested_as(&mut self, count: usize, change: impl Fn(&mut Test)) -> Tested {
        let run = self.request(1);
        let (deploy, tests) = self.built_with_tests(run, count, change);
        let machine = self.deployed_on_new(deploy);
        let preview = self.preview(1).id;
        Tested { run, preview, machine, tests }
    }

    fn tested(&mut self, count: usize) -> Tested {
        self.tested_as(count, |_| {})
    }

    /// Has the test run on the tester that was launched for its newest attempt.
    fn on_tester(&mut self, test: JobId) -> MachineId {
        let machine = self.launched(test);
        self.connect(machine, &[]);
        self.start(machine, test, self.state.jobs[&test].attempt);
        machine
    }

    /// Reports the end of the newest attempt of the test, with results.
    fn end_test(&mut self, test: JobId, outcome: JobOutcome, passed: u64) -> Vec<Effect> {
        let (machine, number) = (self.machine_of(test), self.state.jobs[&test].attempt);
        let report = JobReport { results: Some(results(passed)), ..JobReport::new(outcome) };
        self.step(Event::JobReported { machine, attempt: attempt(test, number), report })
    }

    fn passed(&self, test: JobId) -> Option<u64> {
        self.state.jobs[&test].results.as_ref().map(|results| results.passed)
    }

    fn warnings(&self, job: JobId) -> String {
        self.state.jobs[&job].warnings.join("\n")
    }

    fn is_queued_at(&self, job: JobId, attempt: u32) -> bool {
        *self.job_state(job) == JobState::Queued { attempt }
    }
}

#[test]
fn a_preview_is_tested_from_a_tester_before_its_run_completes() {
    let mut core = amd64(1);
    let run = core.request(1);
    let (deploy, tests) = core.built_with_tests(run, 1, |_| {});
    assert_eq!(*core.run_state(run), RunState::Deploying);
    core.deployed_on_new(deploy);
    assert_eq!(*core.run_state(run), RunState::Testing);

    let tester = core.on_tester(tests[0]);
    assert_eq!(core.state.machines[&tester].fleet, Fleet::Tester);
    assert_eq!(core.end_test(tests[0], PUSHED, 34), [Effect::Terminate { machine: tester }]);

    assert_eq!(*core.run_state(run), RunState::Completed);
    assert_eq!(core.passed(tests[0]), Some(34));
}

#[test]
fn a_run_whose_tests_fail_has_failed_and_its_preview_stays() {
    let mut core = amd64(1);
    let Tested { run, machine, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.end_test(tests[0], tests_failed(), 3);
    assert_eq!(*core.run_state(run), RunState::Failed { plan_error: None });
    assert!(core.failure(tests[0]).is_users());
    assert_eq!(core.passed(tests[0]), Some(3), "what passed is known, too");
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
}

#[test]
fn a_test_without_a_preview_begins_when_its_image_is_there() {
    let mut core = amd64(2);
    let run = core.request(1);
    let (build, other) = (core.build(Arch::Amd64), core.build(Arch::Amd64));
    let test = core.test(&build, None);
    core.plan(run, &[build.clone(), other.clone(), test.clone()]);
    let machine = core.launched(build.id);
    core.connect(machine, &[]);
    core.report(machine, build.id, 1, PUSHED);

    assert_eq!(*core.run_state(run), RunState::Building, "the other image is not there");
    core.on_tester(test.id);
    core.end_test(test.id, PUSHED, 1);
    let machine = core.launched(other.id);
    core.connect(machine, &[]);
    core.report(machine, other.id, 1, PUSHED);
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn a_lost_shard_alone_runs_again_and_no_result_counts_twice() {
    let mut core = amd64(3);
    let Tested { run, tests, .. } = core.tested(3);
    let testers: Vec<MachineId> = tests.iter().map(|test| core.on_tester(*test)).collect();
    core.end_test(tests[0], PUSHED, 10);
    // The tester has reported, and core has not taken it before the cloud took the machine back.
    core.step(Event::MachineGone { machine: testers[1], taken_back: true });
    core.end_test(tests[2], PUSHED, 12);
    assert_eq!(core.state.jobs[&tests[1]].lost_attempts[0].reason, FailureReason::SpotInterruption);
    let again = core.on_tester(tests[1]);
    let late = JobReport { results: Some(results(99)), ..JobReport::new(PUSHED) };
    let (machine, lost) = (testers[1], attempt(tests[1], 1));
    core.step(Event::JobReported { machine, attempt: lost, report: late });
    assert!(matches!(core.job_state(tests[1]), JobState::Running { attempt: 2, .. }));
    assert_ne!(again, testers[1]);
    core.end_test(tests[1], PUSHED, 11);

    assert_eq!(*core.run_state(run), RunState::Completed);
    let passed: Vec<_> = tests.iter().map(|test| core.passed(*test).unwrap()).collect();
    assert_eq!(passed, [10, 11, 12]);
    let attempts: Vec<_> = tests.iter().map(|test| core.state.jobs[test].attempt).collect();
    assert_eq!(attempts, [1, 2, 1]);
}

#[test]
fn an_attempt_that_is_tried_again_leaves_no_results() {
    let mut core = amd64(1);
    let Tested { tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.end_test(tests[0], failed(FailureReason::DiskFull), 5);
    assert_eq!(core.passed(tests[0]), None);
}

#[test]
fn testers_have_a_limit_of_their_own() {
    let mut core = amd64(1);
    let Tested { tests, .. } = core.tested(2);
    let limit = QueueReason::FleetLimit { fleet: Fleet::Tester, max_concurrent: 1 };
    assert_eq!(core.state.queue(), [QueuedJob { job: tests[1], reason: limit }]);
    let (_, builds) = core.run(2, 1);
    assert!(matches!(core.job_state(builds[0]), JobState::Provisioning { .. }));
}

#[test]
fn projects_get_testers_in_turns_whatever_builders_they_have() {
    let mut core = amd64(1);
    let shards = core.tested(3).tests;
    let other = core.request(2);
    let build = core.build(Arch::Amd64);
    let unit = core.test(&build, None);
    core.plan(other, &[build.clone(), unit.clone()]);
    let machine = core.launched(build.id);
    core.connect(machine, &[]);
    core.report(machine, build.id, 1, PUSHED);

    let tester = core.on_tester(shards[0]);
    core.end_test(shards[0], PUSHED, 1);
    core.step(Event::MachineGone { machine: tester, taken_back: false });

    assert!(matches!(core.job_state(unit.id), JobState::Provisioning { .. }));
}

#[test]
fn a_test_for_which_no_machine_could_be_had_fails_and_the_preview_serves_on() {
    let mut core = amd64(1);
    core.state.limits.launchable_testers.clear();
    let Tested { run, machine, tests, .. } = core.tested(2);
    assert_eq!(*core.failure(tests[0]), FailureReason::Provider);
    let JobState::Failed(failure) = core.job_state(tests[1]) else { panic!() };
    assert!(failure.message.contains("`stagely machines add --fleet tester`"), "{failure:?}");
    assert_eq!(*core.run_state(run), RunState::Failed { plan_error: None });
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
}

#[test]
fn a_preview_sleeps_when_its_last_test_fails_for_want_of_a_machine() {
    let mut core = amd64(1);
    let Tested { machine, tests, .. } = core.tested(1);
    let tester = core.launched(tests[0]);
    core.connect(tester, &[]);
    core.state.limits.launchable_testers.clear();
    // The agent does not begin, and meanwhile nobody looks at the preview.
    let grace = core.state.limits.job_grace;
    core.wait(SLEEP_AFTER + TIMEOUT + TEST_RESULTS + grace);
    assert_eq!(*core.failure(tests[0]), FailureReason::Provider);
    let PreviewState::Archiving { machine: archiving, .. } = core.preview(1).state else {
        panic!()
    };
    assert_eq!(archiving, machine);
    assert!(core.state.next_deadline() > Some(core.now));
}

#[test]
fn a_registered_tester_takes_tests_and_no_builds() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let tester = MachineId::from_bits(core.id());
    let (name, arch, fleet) = ("rack 3".to_owned(), Arch::Amd64, Fleet::Tester);
    core.step(Event::MachineRegistered { machine: tester, name, arch, fleet });
    core.connect(tester, &[]);
    let run = core.request(1);
    let (build, other) = (core.build(Arch::Amd64), core.build(Arch::Amd64));
    let unit = core.test(&build, None);
    core.plan(run, &[build.clone(), other.clone(), unit.clone()]);
    assert!(core.is_queued_at(other.id, 1));
    core.report(builder, build.id, 1, PUSHED);
    assert_eq!(core.machine_of(unit.id), tester);
    core.end_test(unit.id, PUSHED, 1);
    assert_eq!(core.machine_state(tester), MachineState::Ready);
}

#[test]
fn the_agent_has_time_for_the_results_after_the_time_limit() {
    let mut core = amd64(1);
    let Tested { tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.wait(TIMEOUT + TEST_RESULTS);
    assert!(matches!(core.job_state(tests[0]), JobState::Running { .. }));
    core.wait(core.state.limits.job_grace);
    assert!(matches!(core.failure(tests[0]), FailureReason::Timeout { .. }));
}

#[test]
fn a_preview_does_not_sleep_or_end_while_it_is_tested() {
    let mut core = amd64(1);
    core.state.limits.previews.lease = TTL * 3;
    core.state.limits.lease = TTL * 3;
    let run = core.request(1);
    let (deploy, tests) = core.built_with_tests(run, 1, |_| {});
    let machine = core.deployed_on_new(deploy);
    let preview = core.preview(1).id;
    let tester = core.launched(tests[0]);
    core.connect(tester, &[]);
    core.state.change_job(tests[0], |job| job.timeout = TTL * 2);
    core.start(tester, tests[0], 1);
    core.step(Event::PreviewSleepRequested { preview });
    core.wait(SLEEP_AFTER);
    core.wait(TTL);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });

    core.end_test(tests[0], PUSHED, 1);
    core.wait(Duration::ZERO);
    assert_eq!(core.preview(1).state, PreviewState::Ending, "its time was over");
}

#[test]
fn a_preview_sleeps_after_its_tests() {
    let mut core = amd64(1);
    let Tested { tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.wait(SLEEP_AFTER);
    core.end_test(tests[0], PUSHED, 1);
    core.wait(Duration::ZERO);
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { wakes: false, .. }));
}

#[test]
fn a_preview_under_test_gives_its_machine_to_no_other() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 1;
    let Tested { machine, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    let (_, other) = core.built(2);
    core.wait(Duration::from_mins(6));
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    core.end_test(tests[0], PUSHED, 1);
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
    assert!(core.is_queued_at(other, 1));
}

#[test]
fn another_build_is_deployed_when_the_tests_have_ended() {
    let mut core = amd64(1);
    let Tested { machine, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    let (_, newer) = core.built(1);
    assert!(core.is_queued_at(newer, 1));
    let queued = core.state.queue();
    assert_eq!(queued, [QueuedJob { job: newer, reason: QueueReason::Preview }]);
    core.end_test(tests[0], PUSHED, 1);
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine, job: newer });
}

#[test]
fn a_test_whose_preview_is_lost_begins_again_when_the_preview_serves_again() {
    let mut core = amd64(1);
    let Tested { machine, tests, .. } = core.tested(1);
    let tester = core.on_tester(tests[0]);

    let effects = core.step(Event::MachineGone { machine, taken_back: true });

    assert!(effects.contains(&Effect::Terminate { machine: tester }), "{effects:?}");
    assert!(core.is_queued_at(tests[0], 2));
    let wake = core.deploy_job(1);
    assert_eq!(core.state.runs[&core.state.jobs[&wake].run].trigger, Trigger::Wake);
    core.step(Event::MachineGone { machine: tester, taken_back: false });
    core.deployed_on_new(wake);
    core.on_tester(tests[0]);
    core.end_test(tests[0], PUSHED, 2);
    assert_eq!(core.passed(tests[0]), Some(2));
}

#[test]
fn a_lost_preview_uses_up_an_attempt() {
    let mut core = amd64(1);
    core.state.limits.max_attempts = 1;
    let Tested { run, machine, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(*core.failure(tests[0]), FailureReason::MachineLost);
    assert_eq!(*core.run_state(run), RunState::Failed { plan_error: None });
}

#[test]
fn a_test_wakes_the_preview_that_fell_asleep_before_it_began() {
    let mut core = amd64(1);
    let Tested { machine, preview, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    // The cloud takes the machine back, and nobody uses the preview.
    core.now = core.now.after(SLEEP_AFTER);
    let at = core.now.after(Duration::from_mins(2));
    core.step(Event::MachineInterrupted { machine, interruption: Interruption::Certain { at } });
    assert!(core.is_queued_at(tests[0], 2));
    core.archived(machine, preview);
    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }));
}

#[test]
fn tests_fail_when_their_preview_cannot_be_woken() {
    let mut core = amd64(1);
    let Tested { run, machine, tests, .. } = core.tested(2);
    core.on_tester(tests[0]);
    core.step(Event::MachineGone { machine, taken_back: false });
    let wake = core.deploy_job(1);
    let again = core.launched(wake);
    core.connect_serving(again, &[]);
    core.start(again, wake, 1);

    core.report(again, wake, 1, undeployable());

    for test in tests {
        let reason = FailureReason::DependencyFailed { job: DEPLOY_JOB.to_owned() };
        assert_eq!(*core.failure(test), reason);
    }
    assert_eq!(*core.run_state(run), RunState::Failed { plan_error: None });
}

#[test]
fn a_test_on_the_previews_machine_needs_no_other_and_leaves_it_serving() {
    let mut core = amd64(1);
    let Tested { run, machine, tests, .. } =
        core.tested_as(2, |test| test.on = TestMachine::Preview);
    assert_eq!(core.machine_of(tests[0]), machine);
    assert!(core.is_queued_at(tests[1], 1), "one at a time");
    core.start(machine, tests[0], 1);
    core.end_test(tests[0], PUSHED, 1);
    core.start(machine, tests[1], 1);
    core.end_test(tests[1], PUSHED, 1);
    assert_eq!(*core.run_state(run), RunState::Completed);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
    assert_eq!(core.state.live_machines().filter(|found| found.fleet == Fleet::Tester).count(), 0);
}

#[test]
fn a_cancelled_test_on_the_previews_machine_is_stopped_and_the_preview_serves_on() {
    let mut core = amd64(1);
    let Tested { run, machine, tests, .. } =
        core.tested_as(1, |test| test.on = TestMachine::Preview);
    core.start(machine, tests[0], 1);
    let stopped = attempt(tests[0], 1);
    let effects = core.cancel(run);
    let reason = StopReason::RunCancelled;
    assert!(effects.contains(&Effect::Cancel { machine, attempt: stopped, reason }));
    // The agent ends it although it has passed: nothing is deployed again for that.
    let effects = core.report(machine, tests[0], 1, PUSHED);
    assert_eq!(effects, []);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_agent_that_was_long_connected_has_time_to_stop_a_test_and_to_archive() {
    let mut core = amd64(1);
    let Tested { machine, preview, tests, .. } =
        core.tested_as(1, |test| test.on = TestMachine::Preview);
    core.start(machine, tests[0], 1);
    core.wait(Duration::from_mins(20));
    let at = core.now.after(Duration::from_mins(2));
    let effects = core
        .step(Event::MachineInterrupted { machine, interruption: Interruption::Certain { at } });
    assert!(effects.contains(&Effect::Sleep { machine, preview }), "{effects:?}");
    core.wait(Duration::from_secs(30));
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
    core.report(machine, tests[0], 1, JobOutcome::Cancelled);
    core.archived(machine, preview);
    assert!(core.preview(1).data_loss.is_none());
}

#[test]
fn tests_of_a_preview_that_ends_are_cancelled_and_their_run_completes() {
    let mut core = amd64(1);
    let Tested { run, preview, tests, .. } = core.tested(2);
    let tester = core.on_tester(tests[0]);
    let effects = core.step(Event::PreviewEndRequested { preview });
    assert!(effects.contains(&Effect::Terminate { machine: tester }));
    for test in tests {
        assert_eq!(*core.job_state(test), JobState::Cancelled);
        assert!(core.warnings(test).contains("has ended"), "{}", core.warnings(test));
    }
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn tests_of_a_deployment_that_nobody_wants_are_cancelled() {
    let mut core = amd64(1);
    let run = core.request(1);
    let (deploy, tests) = core.built_with_tests(run, 1, |_| {});
    let preview = core.preview(1).id;
    core.step(Event::PreviewEndRequested { preview });
    assert_eq!(*core.job_state(deploy), JobState::Cancelled);
    assert_eq!(*core.job_state(tests[0]), JobState::Cancelled);
    assert!(core.warnings(tests[0]).contains("was not deployed"));
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn a_run_without_a_wanted_preview_has_no_tests_of_it() {
    let mut core = amd64(1);
    let run = core.request_as(1, |run| run.with_preview = Some(false));
    let (deploy, tests) = core.built_with_tests(run, 1, |_| {});
    assert!(!core.state.jobs.contains_key(&deploy));
    assert!(!core.state.jobs.contains_key(&tests[0]));
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn tests_of_a_deployment_that_fails_do_not_begin() {
    let mut core = amd64(1);
    let run = core.request(1);
    let (deploy, tests) = core.built_with_tests(run, 2, |_| {});
    let machine = core.launched(deploy);
    core.connect_serving(machine, &[]);
    core.start(machine, deploy, 1);
    core.report(machine, deploy, 1, undeployable());
    let reason = FailureReason::DependencyFailed { job: DEPLOY_JOB.to_owned() };
    assert_eq!(*core.failure(tests[1]), reason);
    assert_eq!(*core.run_state(run), RunState::Failed { plan_error: None });
}

#[test]
fn a_superseded_run_tests_nothing() {
    let mut core = amd64(1);
    let Tested { run, tests, .. } = core.tested(2);
    let tester = core.on_tester(tests[0]);
    let reason = CancelReason::Superseded;
    let effects = core.step(Event::CancelRequested { run, reason });
    assert!(effects.contains(&Effect::Terminate { machine: tester }));
    assert_eq!(*core.job_state(tests[1]), JobState::Cancelled);
    let late = core.report(tester, tests[0], 1, PUSHED);
    assert_eq!(late, []);
    assert_eq!(*core.job_state(tests[0]), JobState::Cancelled);
}

/// A rebuild of the failed jobs of `earlier`.
fn rebuild(core: &mut Core, earlier: RunId, tests_again: bool) -> RunId {
    let original = core.state.runs[&earlier].original();
    core.request_as(1, |run| {
        run.trigger = Trigger::Rebuild;
        run.rebuilds = Some(original);
        run.reuses = Some(earlier);
        if tests_again {
            run.wanted_tests = WantedTests::All;
        }
    })
}

#[test]
fn a_rebuild_tests_again_what_failed_and_deploys_nothing() {
    let mut core = amd64(4);
    let Tested { run, machine, tests, .. } = core.tested(2);
    for (test, outcome) in [(tests[0], PUSHED), (tests[1], tests_failed())] {
        core.on_tester(test);
        core.end_test(test, outcome, 7);
    }
    let second = rebuild(&mut core, run, false);
    let (deploy, again) = core.built_with_tests(second, 2, |_| {});

    assert!(core.state.jobs[&deploy].reused_from.is_some());
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, second);
    assert_eq!(core.state.jobs[&again[0]].reused_from, Some(tests[0]));
    assert_eq!(core.passed(again[0]), Some(7));
    core.on_tester(again[1]);
    core.end_test(again[1], PUSHED, 8);
    assert_eq!(*core.run_state(second), RunState::Completed);
}

#[test]
fn tests_run_again_on_request_although_they_have_passed() {
    let mut core = amd64(2);
    let Tested { run, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.end_test(tests[0], PUSHED, 7);
    let second = rebuild(&mut core, run, true);
    let (deploy, again) = core.built_with_tests(second, 1, |_| {});
    assert!(core.state.jobs[&deploy].reused_from.is_some());
    assert!(matches!(core.job_state(again[0]), JobState::Provisioning { .. }));
}

#[test]
fn a_rebuild_deploys_again_what_the_preview_does_not_show_any_more() {
    let mut core = amd64(2);
    let Tested { run, tests, .. } = core.tested(1);
    core.on_tester(tests[0]);
    core.end_test(tests[0], tests_failed(), 7);
    let (_, newer) = core.built(1);
    let machine = core.machine_of(newer);
    core.start(machine, newer, 1);
    core.report(machine, newer, 1, DEPLOYED);
    let second = rebuild(&mut core, run, false);
    let (deploy, _) = core.built_with_tests(second, 1, |_| {});
    assert_eq!(core.state.jobs[&deploy].reused_from, None);
}

#[test]
fn a_rebuild_wakes_the_preview_for_its_tests() {
    let mut core = amd64(2);
    let Tested { run, machine, preview, tests } = core.tested(1);
    core.on_tester(tests[0]);
    core.end_test(tests[0], tests_failed(), 7);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).state, PreviewState::Asleep);

    let second = rebuild(&mut core, run, false);
    let (_, again) = core.built_with_tests(second, 1, |_| {});

    assert!(core.is_queued_at(again[0], 1));
    let wake = core.deploy_job(1);
    core.deployed_on_new(wake);
    core.on_tester(again[0]);
    core.end_test(again[0], PUSHED, 1);
    assert_eq!(*core.run_state(second), RunState::Completed);
}

#[test]
fn a_restart_of_core_goes_on_with_the_tests() {
    let mut core = amd64(2);
    let Tested { machine, preview, tests, .. } = core.tested(2);
    let tester = core.on_tester(tests[0]);
    core.restart();
    core.connect_serving(machine, &[preview]);
    core.connect(tester, &[(tests[0], 1)]);
    core.on_tester(tests[1]);
    core.end_test(tests[0], PUSHED, 1);
    core.end_test(tests[1], PUSHED, 2);
    assert_eq!((core.passed(tests[0]), core.passed(tests[1])), (Some(1), Some(2)));
}

#[test]
fn records_without_results_are_read() {
    let mut core = amd64(1);
    let (_, jobs) = core.run(1, 1);
    let stored = serde_json::to_value(&core.state.jobs[&jobs[0]]).unwrap();
    assert!(stored.get("results").is_none() && stored.get("artifacts").is_none());
    let read: Job = serde_json::from_value(stored).unwrap();
    assert_eq!(read, core.state.jobs[&jobs[0]]);
}
