//! Which runs a newer run supersedes. Late reports of a superseded run change nothing.

use super::head_updates::*;
use super::*;

// Runs of older commits.

/// Moves the head to a newer commit, and completes the reports.
fn supersede(core: &mut Core, older: RunId) -> (RunId, Vec<Effect>) {
    let (newer, event) = core.head_event(HeadUpdate::pushed("a", "b", 9));
    let effects = core.step(event);
    assert_eq!(core.stopped(older), Some(CancelReason::Superseded));
    assert_eq!(core.environment().report.run, Some(newer));
    core.report_all();
    (newer, effects)
}

const SUPERSEDED: Option<CancelReason> = Some(CancelReason::Superseded);

#[test]
fn a_run_being_planned_is_superseded_and_gets_no_jobs() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let (newer, effects) = supersede(&mut core, older);
    assert!(effects.contains(&Effect::Plan { run: newer }));
    assert!(!core.is_in_outbox(&Effect::Plan { run: older }));

    let build = core.build(Arch::Amd64);

    assert_eq!(core.plan(older, &[build]), []);
    assert!(core.state.jobs.is_empty());
}

#[test]
fn a_run_with_deferred_planning_is_superseded() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let until = core.now.after(Duration::from_mins(1));
    core.step(Event::PlanDeferred { run: older, until });
    supersede(&mut core, older);

    assert_eq!(core.wait(Duration::from_mins(1)), []);
    assert_eq!(core.stopped(older), SUPERSEDED);
}

#[test]
fn queued_jobs_are_dropped_with_a_newer_commit() {
    let mut core = Core::linked();
    core.state.limits.max_concurrent = 0;
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let job = core.plan_tagged(older);

    supersede(&mut core, older);

    assert_eq!(core.job_state(job), &JobState::Cancelled);
    assert_eq!(core.state.queue(), []);
}

#[test]
fn running_jobs_are_stopped_and_their_late_reports_change_nothing() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let (job, machine) = core.build_tagged(older);
    let (_, effects) = supersede(&mut core, older);
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
    let wanted = core.environment().report.wanted;

    let effects = core.report(machine, job, 1, pushed("a"));

    assert!(!effects.contains(&REPORT), "{effects:?}");
    assert_eq!(core.job_state(job), &JobState::Cancelled);
    assert_eq!(core.environment().images, BTreeMap::new());
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.environment().report.wanted, wanted);
}

#[test]
fn a_merge_under_way_is_stopped_and_its_late_report_changes_nothing() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let one = core.build(Arch::Amd64);
    let tag = Some("registry/app:latest".parse().unwrap());
    let merge = PlannedJob { tag, ..core.merge(&[&one]) };
    core.plan(older, &[one.clone(), merge.clone()]);
    let builder = core.launched(one.id);
    core.connect(builder, &[]);
    core.report(builder, one.id, 1, pushed("c"));
    let machine = core.machine_of(merge.id);
    core.step(Event::MachineLaunched { machine, placement: None });
    core.connect(machine, &[]);
    core.start(machine, merge.id, 1);
    assert!(matches!(core.job_state(merge.id), JobState::Running { .. }));
    supersede(&mut core, older);

    let effects = core.report(machine, merge.id, 1, pushed("a"));

    assert!(!effects.contains(&REPORT), "{effects:?}");
    assert_eq!(core.job_state(merge.id), &JobState::Cancelled);
    assert_eq!(core.stopped(older), SUPERSEDED);
    assert_eq!(core.environment().images, BTreeMap::new());
}

#[test]
fn an_export_under_way_is_ended_and_its_late_report_changes_nothing() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let (one, other) = (core.build(Arch::Amd64), core.build(Arch::Amd64));
    core.plan(older, &[one.clone(), other.clone()]);
    let machine = core.launched(one.id);
    core.connect(machine, &[]);
    core.report_early(machine, one.id, 1);
    assert_eq!(core.exporting(machine), Some(one.id));
    let (_, effects) = supersede(&mut core, older);
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");

    let effects = core.report(machine, one.id, 1, PUSHED);

    assert!(!effects.contains(&REPORT), "{effects:?}");
    assert_eq!(core.job_state(one.id), &JobState::Completed { digest: None });
    assert_eq!(core.job_state(other.id), &JobState::Cancelled);
    assert_eq!(core.stopped(older), SUPERSEDED);
}

#[test]
fn the_outcome_of_a_tag_under_way_does_not_change_a_superseded_run() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let (job, machine) = core.build_tagged(older);
    core.report(machine, job, 1, pushed("a"));
    let (environment, variant) = (ENVIRONMENT, VariantName::from("app"));
    assert!(core.is_in_outbox(&Effect::Tag { environment, variant: variant.clone() }));
    supersede(&mut core, older);

    let result = Err("no answer".to_owned());
    let tagged = Event::ImageTagged { environment, variant, digest: digest("a"), result };

    assert_eq!(core.step(tagged), []);
    assert_eq!(core.stopped(older), SUPERSEDED);
    assert!(core.state.jobs[&job].warnings.is_empty());
}

#[test]
fn a_run_that_has_ended_stays_as_it_is() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    core.plan(older, &[]);
    assert_eq!(core.run_state(older), &RunState::Completed);

    core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    assert_eq!(core.run_state(older), &RunState::Completed);
}

// Runs that people request, warm-ups and rebuilds.

/// A run that is requested through the API.
fn start_by_hand(core: &mut Core, pull_request: Option<u64>, trigger: Trigger) -> RunId {
    let id = RunId::from_bits(core.id());
    let mut environment = Environment::new(ENVIRONMENT, PROJECT, String::new());
    environment.pull_request = pull_request;
    let run = Run { trigger, ..Run::new(id, &environment, String::new(), core.now) };
    let run = Box::new(run);
    core.step(Event::RunRequested { run, project: linked_project(), environment });
    id
}

#[test]
fn on_a_branch_pushes_and_manual_runs_do_not_supersede_each_other() {
    let mut core = Core::linked();
    let push = core.new_run_of(HeadUpdate::on_branch("a", 1));
    let own = start_by_hand(&mut core, None, Trigger::Manual);
    assert_eq!(core.stopped(push), None);
    assert_eq!(core.environment().report.run, Some(push), "only pushes are reported");

    let next = core.new_run_of(HeadUpdate::on_branch("b", 2));

    assert_eq!(core.stopped(push), Some(CancelReason::Superseded));
    assert_eq!((core.stopped(own), core.stopped(next)), (None, None));
}

#[test]
fn in_a_pull_request_the_newest_run_supersedes_all_others() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1));
    let own = start_by_hand(&mut core, Some(7), Trigger::Manual);
    assert_eq!(core.stopped(first), Some(CancelReason::Superseded));
    assert_eq!(core.environment().report.run, Some(own));

    let next = core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    assert_eq!(core.stopped(own), Some(CancelReason::Superseded));
    assert_eq!(core.stopped(next), None);
}

#[test]
fn a_warm_up_supersedes_no_run_and_is_not_superseded() {
    let mut core = Core::linked();
    let push = core.new_run_of(HeadUpdate::on_branch("a", 1));
    let warm_up = start_by_hand(&mut core, None, Trigger::WarmUp);

    core.new_run_of(HeadUpdate::on_branch("b", 2));

    assert_eq!(core.stopped(push), Some(CancelReason::Superseded));
    assert_eq!(core.stopped(warm_up), None);
}

#[test]
fn a_rebuild_of_an_older_run_supersedes_no_run() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    let newest = core.new_run_of(HeadUpdate::pushed("a", "b", 2));
    let (again, event) = core.head_event(HeadUpdate::opened("a", 3));
    let Event::HeadMoved { run, environment, .. } = event else { unreachable!() };
    let run = Box::new(Run { rebuilds: Some(older), trigger: Trigger::Rebuild, ..*run });

    core.step(Event::RunRequested { run, project: linked_project(), environment });

    assert_eq!((core.stopped(again), core.stopped(newest)), (None, None));
    assert_eq!(core.environment().report.run, Some(newest));
}
