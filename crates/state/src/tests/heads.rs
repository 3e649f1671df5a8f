//! Which updates change the head of an environment: deliveries, closings and lists.

use super::head_updates::*;
use super::*;

// Which updates count.

#[test]
fn the_first_head_of_a_pull_request_counts() {
    let mut core = Core::linked();

    let (run, event) = core.head_event(HeadUpdate::first("a", 1));
    let effects = core.step(event);

    assert_eq!(effects, [Effect::Plan { run }, REPORT]);
    assert_eq!(core.head(), (commit("a"), true));
    assert_eq!(core.environment().newest_run, Some(run));
}

#[test]
fn a_commit_that_is_delivered_twice_is_built_once() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));

    assert_eq!(core.update_head(HeadUpdate::first("a", 1)), None);
    assert_eq!(core.update_head(HeadUpdate::pushed("b", "a", 1)), None);
    assert_eq!(core.update_head(HeadUpdate::opened("a", 2)), None, "it is ready for review");

    assert_eq!(core.state.runs.len(), 1);
}

#[test]
fn a_known_run_is_not_started_again() {
    let mut core = Core::linked();
    let (run, event) = core.head_event(HeadUpdate::first("a", 1));
    core.step(event.clone());
    core.close_by_hand();
    core.report_all();

    assert_eq!(core.step(event), [], "the update is known");

    assert_eq!(core.stopped(run), Some(CancelReason::EnvironmentClosed));
    assert_eq!(core.head(), (commit("a"), false));
}

#[test]
fn a_push_that_another_has_overtaken_does_not_count() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    let last = core.new_run_of(HeadUpdate::pushed("b", "c", 3));

    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 2)), None);
    assert_eq!(core.update_head(HeadUpdate::first("a", 1)), None);

    assert_eq!((core.head(), core.stopped(last)), ((commit("c"), true), None));
}

#[test]
fn of_two_pushes_within_a_second_the_one_that_follows_the_other_stays() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    core.new_run_of(HeadUpdate::pushed("b", "c", 2));

    assert_eq!(core.head(), (commit("c"), true));
}

#[test]
fn of_two_pushes_within_a_second_the_older_one_does_not_count() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.new_run_of(HeadUpdate::pushed("b", "c", 2));

    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 2)), None);

    assert_eq!(core.head(), (commit("c"), true));
}

#[test]
fn of_unrelated_commits_within_a_second_the_last_delivery_counts() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::on_branch("a", 1));

    core.new_run_of(HeadUpdate::on_branch("b", 1));

    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn a_branch_that_is_pushed_away_and_back_is_built_each_time() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));

    core.new_run_of(HeadUpdate::pushed("a", "b", 2));
    core.new_run_of(HeadUpdate::pushed("b", "a", 3));

    assert_eq!(core.head(), (commit("a"), true));
    assert_eq!(core.state.runs.len(), 3);
}

#[test]
fn a_push_away_that_arrives_after_the_push_back_does_not_count() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    assert_eq!(core.update_head(HeadUpdate::pushed("b", "a", 3)), None, "it is at that commit");

    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 2)), None);

    assert_eq!((core.head(), core.stopped(run)), ((commit("a"), true), None));
}

#[test]
fn a_push_away_and_back_within_a_second_ends_where_it_began() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    core.new_run_of(HeadUpdate::pushed("b", "a", 2));

    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn a_late_delivery_of_the_present_commit_does_not_set_its_time_back() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 5));
    core.update_head(HeadUpdate::opened("a", 3));

    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 4)), None);

    assert!(core.environment().head.as_ref().unwrap().is_first);
}

#[test]
fn deliveries_of_a_project_without_a_link_change_nothing() {
    let mut core = Core::linked();
    core.step(Event::ProjectRemoved { project: PROJECT });

    assert_eq!(core.update_head(HeadUpdate::first("a", 1)), None);

    assert!(core.state.environments.is_empty());
}

// Closed and opened again.

#[test]
fn a_push_that_was_overtaken_by_the_closing_does_not_open_the_pull_request() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(3);

    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 2)), None);
    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 3)), None);

    assert_eq!(core.head(), (commit("a"), false));
}

#[test]
fn a_push_after_the_opening_opens_a_pull_request_whose_opening_is_late() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);

    core.new_run_of(HeadUpdate::pushed("a", "b", 4));

    assert_eq!(core.update_head(HeadUpdate::opened("a", 3)), None);
    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn a_pull_request_that_is_opened_again_with_the_same_commit_is_built_again() {
    let mut core = Core::linked();
    let first = core.new_run_of(HeadUpdate::first("a", 1));
    core.close(2);
    assert_eq!(core.stopped(first), Some(CancelReason::EnvironmentClosed));

    let again = core.new_run_of(HeadUpdate::opened("a", 3));

    assert_eq!((core.head(), core.stopped(again)), ((commit("a"), true), None));
}

#[test]
fn a_pull_request_may_be_closed_and_opened_within_a_second() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);

    core.new_run_of(HeadUpdate::opened("a", 2));

    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn an_opening_from_before_the_closing_opens_nothing() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("b", 2));
    core.close(4);

    assert_eq!(core.update_head(HeadUpdate::opened("a", 3)), None);

    assert_eq!(core.head(), (commit("b"), false));
}

#[test]
fn an_opening_that_overtakes_the_closing_leaves_the_pull_request_open() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    assert_eq!(
        core.update_head(HeadUpdate::opened("a", 3)),
        None,
        "core did not know that it was closed"
    );

    assert_eq!(core.close(2), []);

    assert_eq!((core.head(), core.stopped(run)), ((commit("a"), true), None));
}

#[test]
fn a_closing_of_something_unknown_changes_nothing() {
    let mut core = Core::linked();

    assert_eq!(core.close(2), []);

    assert!(core.state.environments.is_empty());
}

#[test]
fn an_environment_that_was_closed_by_request_opens_only_with_a_new_commit() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close_by_hand();

    assert_eq!(core.update_head(HeadUpdate::listed(None, "a", 1)), None);
    assert_eq!(
        core.update_head(HeadUpdate::listed(None, "a", 9)),
        None,
        "somebody wrote a comment"
    );
    assert_eq!(core.update_head(HeadUpdate::pushed("b", "a", 1)), None);

    core.new_run_of(HeadUpdate::listed(None, "b", 9));
    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn an_environment_that_was_closed_by_request_opens_with_a_push() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close_by_hand();

    core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn an_environment_that_is_closed_by_request_after_its_reopening_stays_closed() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);
    core.update_head(HeadUpdate::opened("a", 3));
    core.close_by_hand();

    assert_eq!(core.update_head(HeadUpdate::listed(None, "a", 9)), None);
}

// Lists.

#[test]
fn a_missed_head_is_found_in_a_list() {
    let mut core = Core::linked();

    core.new_run_of(HeadUpdate::listed(None, "a", 1));
    core.new_run_of(HeadUpdate::listed(Some("a"), "b", 2));

    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn a_list_without_a_new_head_changes_nothing() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));

    assert_eq!(core.update_head(HeadUpdate::listed(Some("a"), "a", 9)), None);

    assert_eq!(core.stopped(run), None);
    assert_eq!(core.environment().head.as_ref().unwrap().at, second(1), "no delivery said so");
}

#[test]
fn a_list_is_ignored_after_a_newer_delivery() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.update_head(HeadUpdate::pushed("a", "b", 2));

    assert_eq!(core.update_head(HeadUpdate::listed(Some("a"), "c", 9)), None);
    assert_eq!(core.update_head(HeadUpdate::listed(None, "c", 9)), None);

    assert_eq!(core.head(), (commit("b"), true));
}

#[test]
fn a_list_from_before_the_closing_opens_nothing() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);

    assert_eq!(core.update_head(HeadUpdate::listed(Some("a"), "b", 9)), None);

    assert_eq!(core.head(), (commit("a"), false));
}

#[test]
fn an_environment_that_github_closed_is_opened_by_a_list() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close(2);

    assert_eq!(
        core.update_head(HeadUpdate::listed(None, "a", 1)),
        None,
        "the list is older than the closing"
    );

    core.new_run_of(HeadUpdate::listed(None, "a", 3));
    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn a_list_opens_a_pull_request_that_was_reopened_within_the_second_of_its_closing() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.update_head(HeadUpdate::opened("a", 2));
    core.close(2);
    assert_eq!(core.head(), (commit("a"), false), "the order within the second is not known");

    core.new_run_of(HeadUpdate::listed(None, "a", 2));

    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn a_list_may_have_a_commit_of_an_earlier_second() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 5));

    core.new_run_of(HeadUpdate::listed(Some("a"), "b", 4));

    assert_eq!(core.head(), (commit("b"), true));
}

// Deliveries.

#[test]
fn a_delivery_counts_once() {
    let mut core = Core::linked();
    let delivery = DeliveryId(1);
    let (first, event) = core.head_event(HeadUpdate::first("a", 1));
    core.step(Event::Delivered { delivery, event: Some(Box::new(event)) });
    let (second, event) = core.head_event(HeadUpdate::pushed("a", "b", 2));

    let effects = core.step(Event::Delivered { delivery, event: Some(Box::new(event)) });

    assert_eq!(effects, []);
    assert!(core.state.runs.contains_key(&first) && !core.state.runs.contains_key(&second));
    core.restart();
    assert_eq!(core.state.deliveries[&delivery], core.now);
}

#[test]
fn a_delivery_without_an_event_is_noted_until_it_is_forgotten() {
    let mut core = Core::linked();
    let delivery = DeliveryId(1);
    assert_eq!(core.step(Event::Delivered { delivery, event: None }), []);
    let (run, event) = core.head_event(HeadUpdate::first("a", 1));
    core.step(Event::Delivered { delivery, event: Some(Box::new(event.clone())) });
    assert!(!core.state.runs.contains_key(&run));

    let (runs, machines) = (Vec::new(), Vec::new());
    core.step(Event::Forgotten { runs, machines, deliveries: vec![delivery] });

    core.step(Event::Delivered { delivery, event: Some(Box::new(event)) });
    assert!(core.state.runs.contains_key(&run));
}
