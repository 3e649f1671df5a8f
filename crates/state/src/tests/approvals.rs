//! Runs of forks' commits are not planned before their approval.

use super::head_updates::*;
use super::*;

fn approve(core: &mut Core, run: RunId) -> Vec<Effect> {
    core.step(Event::RunApproved { run, by: "carol".to_owned() })
}

fn given() -> Approval {
    Approval::Given { by: "carol".to_owned() }
}

fn approval(core: &Core, run: RunId) -> &Approval {
    &core.state.runs[&run].approval
}

#[test]
fn a_run_that_awaits_approval_is_reported_and_not_planned() {
    let mut core = Core::linked();

    let (run, event) = core.head_event(HeadUpdate::first("a", 1).of_fork());

    assert_eq!(core.step(event), [REPORT]);
    assert_eq!(
        (core.run_state(run), approval(&core, run)),
        (&RunState::AwaitingApproval, &Approval::Awaited)
    );
}

#[test]
fn a_run_awaits_approval_without_a_time_limit_and_over_restarts() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.report_all();

    assert_eq!(core.wait(Duration::from_hours(24)), []);
    assert_eq!(core.restart(), []);
    assert_eq!(core.wait(Duration::from_hours(24)), []);

    assert_eq!(core.state.next_deadline(), None);
    assert_eq!(core.run_state(run), &RunState::AwaitingApproval);
}

#[test]
fn a_plan_of_a_run_that_awaits_approval_is_ignored() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    let build = core.build(Arch::Amd64);

    core.plan(run, &[build]);

    assert_eq!(core.run_state(run), &RunState::AwaitingApproval);
    assert!(core.state.jobs.is_empty());
}

#[test]
fn a_run_that_awaits_approval_does_not_block_others() {
    let mut core = Core::linked();
    core.state.limits.planned_at_once = 1;
    core.update_head(HeadUpdate::first("a", 1).of_fork());

    let other = core.request(2);

    assert!(core.is_in_outbox(&Effect::Plan { run: other }));
}

#[test]
fn an_approved_run_is_planned_and_reported_at_once() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.report_all();

    assert_eq!(approve(&mut core, run), [Effect::Plan { run }, REPORT]);

    assert_eq!(approval(&core, run), &given());
    let approved = ApprovedCommit { commit: commit("a"), by: "carol".to_owned() };
    assert_eq!(core.environment().approved, Some(approved));
}

#[test]
fn a_run_is_approved_once() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    approve(&mut core, run);
    core.report_all();

    assert_eq!(core.step(Event::RunApproved { run, by: "mallory".to_owned() }), []);

    assert_eq!(approval(&core, run), &given());
}

#[test]
fn a_run_that_needs_no_approval_gets_none() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();

    assert_eq!(approve(&mut core, run), []);
    assert_eq!(approve(&mut core, RunId::from_bits(99)), []);

    assert_eq!(approval(&core, run), &Approval::NotNeeded);
    assert_eq!(core.environment().approved, None);
}

#[test]
fn a_newer_commit_of_a_fork_needs_an_approval_of_its_own() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    approve(&mut core, first);

    let second = core.new_run_of(HeadUpdate::pushed("a", "b", 2).of_fork());

    assert_eq!(approval(&core, second), &Approval::Awaited);
    assert!(!core.is_in_outbox(&Effect::Plan { run: second }));
    assert_eq!(core.stopped(first), Some(CancelReason::Superseded));
}

#[test]
fn an_approved_commit_that_is_pushed_again_needs_no_second_approval() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    approve(&mut core, first);
    core.new_run_of(HeadUpdate::pushed("a", "b", 2).of_fork());

    let again = core.new_run_of(HeadUpdate::pushed("b", "a", 3).of_fork());

    assert_eq!(approval(&core, again), &given());
    assert!(core.is_in_outbox(&Effect::Plan { run: again }));
}

#[test]
fn an_approved_commit_is_built_when_its_pull_request_is_opened_again() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    approve(&mut core, first);
    core.close(2);

    let again = core.new_run_of(HeadUpdate::opened("a", 3).of_fork());

    assert_eq!(approval(&core, again), &given());
}

#[test]
fn a_run_that_awaits_approval_ends_with_a_newer_commit() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.new_run_of(HeadUpdate::pushed("a", "b", 2).of_fork());
    core.report_all();

    assert_eq!(approve(&mut core, first), [], "the approval is for the older commit");

    assert_eq!(core.stopped(first), Some(CancelReason::Superseded));
    assert_eq!(core.environment().approved, None);
}

#[test]
fn a_run_that_awaits_approval_ends_with_its_pull_request() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.close(2);
    core.report_all();

    assert_eq!(approve(&mut core, run), []);

    assert_eq!(core.stopped(run), Some(CancelReason::EnvironmentClosed));
}

#[test]
fn a_run_that_awaits_approval_may_be_cancelled() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.report_all();

    assert_eq!(core.cancel(run), [REPORT]);
    core.report_all();
    assert_eq!(approve(&mut core, run), []);

    assert_eq!(core.stopped(run), Some(CancelReason::Requested));
}
