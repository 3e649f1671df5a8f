//! Runs.

use super::*;

#[test]
fn a_merge_waits_for_all_its_builds_and_completes_the_run() {
    let mut core = Core::new(5, &Arch::ALL);
    let run = core.request(1);
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
    let merge = core.merge(&[&one, &other]);
    core.plan(run, &[one.clone(), other.clone(), merge.clone()]);
    for id in [one.id, other.id] {
        assert_eq!(core.job_state(merge.id), &JobState::Queued { attempt: 1 });
        let machine = core.launched(id);
        core.connect(machine, &[]);
        core.report(machine, id, 1, PUSHED);
    }

    let machine = core.launched(merge.id);
    core.connect(machine, &[]);
    core.report(machine, merge.id, 1, PUSHED);

    assert_eq!(core.run_state(run), &RunState::Completed);
}

#[test]
fn a_failed_build_fails_what_needs_it_unstarted_and_leaves_the_others_alone() {
    let mut core = Core::new(5, &Arch::ALL);
    let run = core.request(1);
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Arm64));
    let merge = core.merge(&[&one, &other]);
    core.plan(run, &[one.clone(), other.clone(), merge.clone()]);
    let (first, second) = (core.launched(one.id), core.launched(other.id));
    core.connect(first, &[]);
    core.connect(second, &[]);

    core.report(first, one.id, 1, users_fault());
    assert_eq!(core.failure(merge.id), &FailureReason::DependencyFailed { job: one.name });
    assert_eq!(core.run_state(run), &RunState::Building);

    core.report(second, other.id, 1, PUSHED);
    assert_eq!(core.run_state(run), &RunState::Failed { plan_error: None });
}

#[test]
fn a_run_that_is_planned_twice_keeps_its_first_jobs() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 1);
    let again = core.build(Arch::Amd64);

    assert_eq!(core.plan(run, &[again]), []);

    assert_eq!(core.state.jobs.keys().copied().collect::<Vec<_>>(), jobs);
}

#[test]
fn a_run_that_is_cancelled_while_it_is_planned_ends_at_once_and_gets_no_jobs() {
    let mut core = amd64(1);
    let run = core.request(1);
    core.cancel(run);
    let build = core.build(Arch::Amd64);
    core.plan(run, &[build]);

    assert_eq!(core.run_state(run), &RunState::Cancelled { reason: CancelReason::Requested });
    assert!(core.state.jobs.is_empty() && core.state.outbox.is_empty());
}

#[test]
fn a_run_whose_planning_takes_too_long_fails_and_says_why() {
    let mut core = amd64(1);
    let run = core.request(1);
    core.wait(Duration::from_mins(10));

    let RunState::Failed { plan_error: Some(why) } = core.run_state(run) else {
        panic!("it goes on");
    };
    assert_eq!(why.reason, FailureReason::Timeout { limit_seconds: 600 });
    assert!(why.message.contains("600s"), "{}", why.message);
    assert!(core.state.outbox.is_empty());
}

#[test]
fn waiting_for_planning_has_no_time_limit_and_projects_take_turns() {
    let mut core = amd64(1);
    let (first, second, third) = (core.request(1), core.request(1), core.request(1));
    let other = core.request(2);
    let planned = |core: &Core| -> Vec<Effect> { core.state.outbox.values().cloned().collect() };
    assert_eq!(planned(&core), [Effect::Plan { run: first }, Effect::Plan { run: second }]);

    assert_eq!(core.wait(Duration::from_mins(10)).len(), 2);
    assert_eq!(planned(&core), [Effect::Plan { run: third }, Effect::Plan { run: other }]);
    assert_eq!(core.run_state(third), &RunState::Planning { since: core.now });

    let more = [core.request(1), core.request(1), core.request(2)];
    assert_eq!(core.cancel(third), [Effect::Plan { run: more[0] }], "project 2 is planned already");
    assert_eq!(core.cancel(other), [Effect::Plan { run: more[2] }], "it goes before project 1");
}

#[test]
fn a_cancelled_run_ends_at_once_and_its_machines_with_it() {
    let mut core = amd64(1);
    let (run, jobs) = core.run(1, 2);
    let machine = core.launched(jobs[0]);

    assert_eq!(core.cancel(run), [Effect::Terminate { machine }]);

    assert!(jobs.iter().all(|job| core.job_state(*job) == &JobState::Cancelled));
    assert_eq!(core.run_state(run), &RunState::Cancelled { reason: CancelReason::Requested });
}

// Planning that waits for GitHub.

fn defer(core: &mut Core, run: RunId, wait: Duration) -> Vec<Effect> {
    let until = core.now.after(wait);
    core.step(Event::PlanDeferred { run, until })
}

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_deferred_planning_resumes_at_its_time() {
    let mut core = amd64(1);
    let run = core.request(1);

    assert_eq!(defer(&mut core, run, MINUTE), []);
    assert!(core.state.outbox.is_empty());
    assert_eq!(core.state.next_deadline(), Some(core.now.after(MINUTE)));
    assert_eq!(core.wait(Duration::from_secs(59)), []);

    assert_eq!(core.wait(Duration::from_secs(1)), [Effect::Plan { run }]);
    core.plan(run, &[]);
    assert_eq!(core.run_state(run), &RunState::Completed);
    assert_eq!(core.state.next_deadline(), None);
}

#[test]
fn other_runs_are_planned_while_one_is_deferred() {
    let mut core = amd64(1);
    core.state.limits.planned_at_once = 1;
    let (first, second) = (core.request(1), core.request(1));

    assert_eq!(defer(&mut core, first, MINUTE), [Effect::Plan { run: second }]);

    assert_eq!(core.wait(MINUTE), [], "the other is planned");
    assert_eq!(core.plan(second, &[]), [Effect::Plan { run: first }]);
}

#[test]
fn deferred_time_does_not_count_as_planning_time() {
    let mut core = amd64(1);
    let run = core.request(1);
    for _ in 0..3 {
        core.wait(Duration::from_mins(9));
        defer(&mut core, run, Duration::from_hours(1));
        assert_eq!(core.wait(Duration::from_hours(1)), [Effect::Plan { run }]);
    }

    assert_eq!(core.run_state(run), &RunState::Planning { since: core.now });
    assert_eq!(core.state.next_deadline(), Some(core.now.after(Duration::from_mins(10))));
}

#[test]
fn deferred_plannings_resume_only_when_they_are_due() {
    let mut core = amd64(1);
    let runs = [core.request(1), core.request(2), core.request(3)];
    defer(&mut core, runs[0], MINUTE);
    defer(&mut core, runs[1], MINUTE);
    defer(&mut core, runs[2], Duration::from_mins(2));

    let effects = core.wait(MINUTE);

    assert_eq!(effects, [Effect::Plan { run: runs[0] }, Effect::Plan { run: runs[1] }]);
    core.plan(runs[0], &[]);
    assert_eq!(core.wait(MINUTE), [Effect::Plan { run: runs[2] }]);
}

#[test]
fn a_deferred_run_that_is_cancelled_is_not_planned() {
    let mut core = amd64(1);
    let run = core.request(1);
    defer(&mut core, run, MINUTE);

    assert_eq!(core.cancel(run), []);

    assert_eq!(core.state.next_deadline(), None);
    assert_eq!(core.wait(MINUTE), []);
}

#[test]
fn a_planning_stays_deferred_after_a_restart() {
    let mut core = amd64(1);
    let run = core.request(1);
    defer(&mut core, run, MINUTE);

    assert_eq!(core.restart(), []);

    assert_eq!(core.state.next_deadline(), Some(core.now.after(MINUTE)));
    assert_eq!(core.wait(MINUTE), [Effect::Plan { run }]);
}

#[test]
fn a_deferred_planning_that_came_due_while_core_was_down_resumes_at_once() {
    let mut core = amd64(1);
    let run = core.request(1);
    defer(&mut core, run, MINUTE);
    core.now = core.now.after(Duration::from_hours(1));
    core.restart();
    assert!(core.state.next_deadline().is_some_and(|due| due <= core.now));

    assert_eq!(core.step(Event::Tick), [Effect::Plan { run }]);
}

#[test]
fn only_what_is_planned_can_be_deferred() {
    let mut core = amd64(1);
    let (planned, cancelled) = (core.request(1), core.request(1));
    core.plan(planned, &[]);
    core.cancel(cancelled);

    for run in [planned, cancelled, RunId::from_bits(99)] {
        assert_eq!(defer(&mut core, run, MINUTE), []);
    }

    assert_eq!(core.state.next_deadline(), None);
    assert_eq!(core.run_state(planned), &RunState::Completed);
}

#[test]
fn a_plan_after_its_deferral_is_ignored() {
    let mut core = amd64(1);
    let run = core.request(1);
    defer(&mut core, run, MINUTE);
    let build = core.build(Arch::Amd64);

    core.plan(run, &[build]);

    assert!(core.state.jobs.is_empty());
    assert_eq!(core.wait(MINUTE), [Effect::Plan { run }], "it is read anew");
}
