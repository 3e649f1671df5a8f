//! Commands in comments and labels.

use super::head_updates::*;
use super::*;

const REBUILD: CommandKind = CommandKind::Rebuild { failed_only: false };

fn command(comment: u64, kind: CommandKind, at: u64) -> Command {
    Command {
        comment: Some(comment),
        author: "carol".to_owned(),
        kind,
        at: second(at),
        is_late: false,
    }
}

fn cancel(comment: u64) -> Command {
    command(comment, CommandKind::Cancel, 9)
}

fn check(command: &Command) -> Effect {
    Effect::CheckCommand { environment: ENVIRONMENT, command: command.clone() }
}

fn give(core: &mut Core, command: &Command) -> Vec<Effect> {
    core.step(Event::CommandGiven { environment: ENVIRONMENT, command: command.clone() })
}

fn answer(core: &mut Core, command: &Command, verdict: CommandVerdict) -> Vec<Effect> {
    let command = command.clone();
    core.step(Event::CommandChecked { environment: ENVIRONMENT, command, verdict })
}

/// Gives the command, accepts it, and returns the note in the report.
fn follow(core: &mut Core, command: &Command, run: Option<Run>) -> String {
    assert_eq!(give(core, command), [check(command)]);
    let accepted = CommandVerdict::Accepted;
    answer(core, command, run.map_or(accepted, |run| CommandVerdict::Rebuild(Box::new(run))));
    core.environment().report.note.clone().unwrap()
}

/// The run that a rebuild of `repeated` makes.
fn rebuild_of(core: &mut Core, repeated: RunId) -> Run {
    let id = RunId::from_bits(core.id());
    let repeated = &core.state.runs[&repeated];
    let run = Run::new(id, core.environment(), String::new(), core.now);
    let run = Run {
        trigger: Trigger::Rebuild,
        rebuilds: Some(repeated.original()),
        requested_ref: repeated.requested_ref.clone(),
        github: repeated.github.clone(),
        from_fork: repeated.from_fork,
        ..run
    };
    run.with_approval(if repeated.from_fork { Approval::Awaited } else { Approval::NotNeeded })
}

// Checks.

#[test]
fn a_command_is_followed_after_its_check_and_its_outcome_is_reported() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();

    assert_eq!(give(&mut core, &cancel(1)), [check(&cancel(1))]);
    assert_eq!(core.stopped(run), None, "the verdict is not known yet");

    assert_eq!(answer(&mut core, &cancel(1), CommandVerdict::Accepted), [REPORT]);
    assert_eq!(core.stopped(run), Some(CancelReason::Requested));
    let note = core.environment().report.note.as_deref();
    assert_eq!(note, Some("`/stagely cancel` by carol: cancelled"));
}

#[test]
fn a_rejected_command_is_not_followed_and_the_reason_is_reported() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();
    give(&mut core, &cancel(1));

    let rejected = CommandVerdict::Rejected { reason: "they may not write".to_owned() };
    let effects = answer(&mut core, &cancel(1), rejected);

    assert_eq!(effects, [REPORT]);
    assert_eq!(core.stopped(run), None);
    let note = core.environment().report.note.as_deref();
    assert_eq!(note, Some("`/stagely cancel` by carol was not followed: they may not write"));
}

#[test]
fn a_comment_is_followed_once_and_an_older_comment_is_not() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    follow(&mut core, &cancel(5), None);

    assert_eq!(give(&mut core, &cancel(5)), []);
    assert_eq!(give(&mut core, &command(4, REBUILD, 9)), []);
    core.restart();
    assert_eq!(give(&mut core, &cancel(5)), [], "the last command is stored");

    assert_eq!(give(&mut core, &cancel(6)), [check(&cancel(6))]);
}

#[test]
fn a_label_is_no_comment_and_is_checked_once_at_a_time() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1).of_fork());
    follow(&mut core, &cancel(5), None);
    core.update_head(HeadUpdate::pushed("a", "b", 2).of_fork());
    let kind = CommandKind::Approve { commit: Some("b".repeat(40)) };
    let label = Command { comment: None, ..command(0, kind, 9) };

    assert_eq!(give(&mut core, &label), [check(&label)]);
    assert_eq!(give(&mut core, &label), [], "GitHub is being asked");

    assert_eq!(core.environment().last_command, 5);
    answer(&mut core, &label, CommandVerdict::Accepted);
    assert_eq!(
        give(&mut core, &label),
        [check(&label)],
        "the label was removed and attached again"
    );
}

#[test]
fn an_outcome_of_an_effect_that_is_not_in_the_outbox_changes_nothing() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();

    assert_eq!(answer(&mut core, &cancel(1), CommandVerdict::Accepted), []);

    assert_eq!(core.stopped(run), None);
    assert_eq!(core.environment().report.note, None);
}

#[test]
fn a_crash_before_the_answer_loses_no_command() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    give(&mut core, &cancel(1));

    core.restart();

    assert!(core.is_in_outbox(&check(&cancel(1))));
    answer(&mut core, &cancel(1), CommandVerdict::Accepted);
    assert_eq!(core.stopped(run), Some(CancelReason::Requested));
}

#[test]
fn a_command_in_a_closed_or_unknown_environment_changes_nothing() {
    let mut core = Core::linked();
    assert_eq!(give(&mut core, &cancel(1)), []);
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);

    assert_eq!(give(&mut core, &cancel(1)), []);
}

#[test]
fn a_command_is_not_followed_if_its_pull_request_was_closed_before_the_verdict() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1));
    let rebuild = command(1, REBUILD, 2);
    let again = rebuild_of(&mut core, first);
    let id = again.id;
    give(&mut core, &rebuild);
    core.close(3);

    answer(&mut core, &rebuild, CommandVerdict::Rebuild(Box::new(again)));

    assert!(!core.state.runs.contains_key(&id));
    let note = core.environment().report.note.as_deref().unwrap();
    assert!(note.ends_with("was not followed: the pull request is closed"), "{note}");
}

// Cancel.

#[test]
fn cancel_cancels_all_open_runs() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.plan_tagged(run);

    follow(&mut core, &cancel(1), None);

    assert_eq!(core.stopped(run), Some(CancelReason::Requested));
}

#[test]
fn cancel_without_an_open_run_is_reported_as_not_followed() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.plan(run, &[]);

    let note = follow(&mut core, &cancel(1), None);

    assert_eq!(note, "`/stagely cancel` by carol was not followed: nothing is under way");
}

// Rebuild.

#[test]
fn a_rebuild_repeats_the_newest_run_and_supersedes_it() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1));
    let again = rebuild_of(&mut core, first);
    let id = again.id;

    let note = follow(&mut core, &command(1, REBUILD, 2), Some(again));

    assert_eq!(note, format!("`/stagely rebuild` by carol: {id} was started"));
    assert_eq!(core.stopped(first), Some(CancelReason::Superseded));
    assert_eq!((core.stopped(id), core.environment().report.run), (None, Some(id)));
    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn a_rebuild_of_a_superseded_run_is_not_followed() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1));
    let rebuild = command(1, REBUILD, 2);
    let again = rebuild_of(&mut core, first);
    let id = again.id;
    give(&mut core, &rebuild);
    let newer = core.new_run_of(HeadUpdate::pushed("a", "b", 3));

    answer(&mut core, &rebuild, CommandVerdict::Rebuild(Box::new(again)));

    assert_eq!((core.state.runs.contains_key(&id), core.stopped(newer)), (false, None));
    let note = core.environment().report.note.as_deref().unwrap();
    assert!(note.ends_with("was not followed: a newer commit was pushed meanwhile"), "{note}");
}

#[test]
fn a_rebuild_without_a_run_is_not_followed() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    let kind = CommandKind::Rebuild { failed_only: true };

    let note = follow(&mut core, &command(1, kind, 2), None);

    let why = "there is no run to be built again";
    assert_eq!(note, format!("`/stagely rebuild failed` by carol was not followed: {why}"));
}

#[test]
fn a_rebuild_keeps_the_approval_of_its_commit() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    core.step(Event::RunApproved { run: first, by: "dave".to_owned() });
    let again = rebuild_of(&mut core, first);
    let id = again.id;

    follow(&mut core, &command(1, REBUILD, 2), Some(again));

    assert_eq!(core.state.runs[&id].approval, Approval::Given { by: "dave".to_owned() });
    assert!(core.is_in_outbox(&Effect::Plan { run: id }));
}

#[test]
fn a_rebuild_of_a_run_without_approval_needs_one_too() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    let again = rebuild_of(&mut core, first);
    let id = again.id;

    follow(&mut core, &command(1, REBUILD, 2), Some(again));

    assert_eq!(core.state.runs[&id].approval, Approval::Awaited);
    assert!(!core.is_in_outbox(&Effect::Plan { run: id }));
}

// Approve.

fn approve(comment: u64, commit: Option<&str>, at: u64) -> Command {
    let commit = commit.map(ToOwned::to_owned);
    command(comment, CommandKind::Approve { commit }, at)
}

fn is_approved(core: &Core, run: RunId) -> bool {
    let approval = &core.state.runs[&run].approval;
    assert_eq!(core.is_in_outbox(&Effect::Plan { run }), *approval != Approval::Awaited);
    *approval == Approval::Given { by: "carol".to_owned() }
}

#[test]
fn a_first_commit_is_approved_by_any_comment() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 5).of_fork());

    let note = follow(&mut core, &approve(1, None, 5), None);

    assert_eq!(note, "`/stagely approve` by carol: approved");
    assert!(is_approved(&core, run));
}

#[test]
fn a_later_commit_is_approved_by_a_comment_that_was_written_after_it() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1).of_fork());
    let run = core.new_run_of(HeadUpdate::pushed("a", "b", 5).of_fork());

    let why = follow(&mut core, &approve(1, None, 5), None);

    let what = "write `/stagely approve bbbbbbbbbbbb`";
    assert!(why.contains("a newer commit is there") && why.contains(what), "{why}");
    assert!(!is_approved(&core, run), "it may have come within the second of the comment");
    follow(&mut core, &approve(2, None, 6), None);
    assert!(is_approved(&core, run));
}

#[test]
fn a_commit_that_was_pushed_after_the_comment_is_not_approved() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1).of_fork());
    give(&mut core, &approve(1, None, 3));
    let run = core.new_run_of(HeadUpdate::pushed("a", "b", 4).of_fork());

    answer(&mut core, &approve(1, None, 3), CommandVerdict::Accepted);

    assert!(!is_approved(&core, run));
    assert_eq!(core.environment().approved, None);
}

#[test]
fn an_approval_with_digits_approves_the_commit_that_begins_with_them() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1).of_fork());
    let run = core.new_run_of(HeadUpdate::pushed("a", "b", 5).of_fork());

    let why = follow(&mut core, &approve(1, Some("aaaaaaa"), 9), None);
    assert!(why.contains("a newer commit is there"), "{why}");
    assert!(!is_approved(&core, run));

    follow(&mut core, &approve(2, Some("bbbbbbb"), 2), None);
    assert!(is_approved(&core, run));
}

#[test]
fn an_approval_without_a_waiting_run_is_not_followed() {
    let mut core = Core::linked();
    let refused = |core: &mut Core, comment| {
        let note = follow(core, &approve(comment, None, 99), None);
        assert!(note.ends_with("was not followed: nothing waits for approval"), "{note}");
    };
    core.update_head(HeadUpdate::first("a", 1));
    refused(&mut core, 1);
    core.update_head(HeadUpdate::pushed("a", "b", 2).of_fork());
    follow(&mut core, &approve(2, None, 9), None);
    refused(&mut core, 3);
    let ended = core.new_run_of(HeadUpdate::pushed("b", "c", 4).of_fork());
    core.cancel(ended);
    refused(&mut core, 4);
}

#[test]
fn a_run_without_a_requested_commit_is_not_approved_by_a_comment() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    let (id, event) = core.head_event(HeadUpdate::opened("a", 2).of_fork());
    let Event::HeadMoved { run, environment, .. } = event else { unreachable!() };
    let run = Box::new(Run { requested_ref: Some("main".to_owned()), ..*run });
    core.step(Event::RunRequested { run, project: linked_project(), environment });

    let note = follow(&mut core, &approve(1, None, 9), None);

    assert!(note.ends_with("the run that waits is of no certain commit"), "{note}");
    assert!(!is_approved(&core, id));
}
