//! Reports to GitHub.

use super::head_updates::*;
use super::*;

/// The number of the newest change, and that of the newest published one.
fn counts(core: &Core) -> (u64, u64) {
    let report = &core.environment().report;
    (report.wanted, report.published)
}

#[test]
fn a_change_is_reported_once() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    assert_eq!((core.is_in_outbox(&REPORT), counts(&core)), (true, (1, 0)));

    assert_eq!(core.report_all(), []);
    assert_eq!((core.is_in_outbox(&REPORT), counts(&core)), (false, (1, 1)));

    assert_eq!(core.plan(run, &[]), [REPORT]);
    assert_eq!(counts(&core), (2, 1));
}

#[test]
fn changes_during_a_report_are_in_one_further_report() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    let (job, machine) = core.build_tagged(run);
    core.report(machine, job, 1, users_fault());
    let (wanted, _) = counts(&core);
    assert!(wanted > 2, "{wanted}");
    let reports = core.state.outbox.values().filter(|effect| **effect == REPORT).count();
    assert_eq!(reports, 1);

    assert_eq!(core.reported(1, Ok(PublishedReport::default())), [REPORT]);
    assert_eq!(counts(&core), (wanted, 1));

    assert_eq!(core.reported(wanted, Ok(PublishedReport::default())), []);
    assert_eq!(counts(&core), (wanted, wanted));
}

#[test]
fn the_published_report_is_recorded() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    let status = CommitStatus {
        state: StatusState::Pending,
        description: "planned".to_owned(),
        target_url: String::new(),
    };
    let published = PublishedReport {
        comment: Some(3),
        comment_digest: Some("0".repeat(64)),
        commit: Some(commit("a")),
        statuses: BTreeMap::from([("stagely".to_owned(), status)]),
        deployments: vec![PublishedDeployment { id: 5, commit: commit("a"), status: None }],
    };

    core.reported(1, Ok(published.clone()));

    core.restart();
    let report = &core.environment().report;
    assert_eq!(
        (report.comment, &report.comment_digest),
        (published.comment, &published.comment_digest)
    );
    assert_eq!((&report.commit, &report.statuses), (&published.commit, &published.statuses));
    assert_eq!(report.deployments, published.deployments);
    assert_eq!(report.problem, None);
}

#[test]
fn the_outcome_of_an_unknown_report_changes_nothing() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.report_all();
    let published = PublishedReport { comment: Some(3), ..PublishedReport::default() };

    assert_eq!(core.reported(9, Ok(published)), []);

    assert_eq!((counts(&core), core.environment().report.comment), ((1, 1), None));
}

#[test]
fn a_report_under_way_survives_a_restart() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));

    core.restart();

    assert!(core.is_in_outbox(&REPORT));
    assert_eq!(counts(&core), (1, 0));
    assert_eq!(core.report_all(), []);
}

#[test]
fn a_failed_report_is_tried_again_with_the_next_change() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.reported(1, Ok(PublishedReport { comment: Some(3), ..PublishedReport::default() }));
    core.cancel(run);
    assert_eq!(
        core.reported(2, Err("no permission".to_owned())),
        [],
        "the report would fail again"
    );
    let report = &core.environment().report;
    assert_eq!((report.problem.as_deref(), report.comment), (Some("no permission"), Some(3)));

    core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    assert!(core.is_in_outbox(&REPORT));
    core.report_all();
    assert_eq!(core.environment().report.problem, None);
}

#[test]
fn a_failed_report_is_tried_again_when_core_starts() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.reported(1, Err("no permission".to_owned()));

    assert_eq!(core.restart(), [REPORT]);

    assert_eq!(counts(&core), (2, 1));
    core.report_all();
    assert_eq!(core.restart(), [], "the report has succeeded");
}

#[test]
fn a_project_without_a_link_is_not_reported() {
    let mut core = amd64(1);
    let (run, event) = core.head_event(HeadUpdate::first("a", 1));
    let Event::HeadMoved { run: requested, environment, .. } = event else { unreachable!() };
    let project = Project { github: None, ..linked_project() };

    let effects = core.step(Event::RunRequested { run: requested, project, environment });

    assert_eq!(effects, [Effect::Plan { run }]);
    assert_eq!(counts(&core), (0, 0));
}

#[test]
fn a_removed_project_is_not_reported() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::on_branch("a", 1));
    core.step(Event::ProjectRemoved { project: PROJECT });

    assert_eq!(core.cancel(run), []);
    assert_eq!(
        core.reported(0, Err("the project is not linked".to_owned())),
        [],
        "there would be more to report"
    );

    assert!(core.state.outbox.is_empty());
    assert_eq!(core.restart(), []);
}

#[test]
fn manual_runs_on_a_branch_are_not_reported() {
    let mut core = Core::linked();
    let push = core.new_run_of(HeadUpdate::on_branch("a", 1));
    core.report_all();

    let own = core.request(1);
    core.plan(own, &[]);

    assert_eq!(core.run_state(own), &RunState::Completed);
    assert_eq!(core.environment().report.run, Some(push));
    assert_eq!((core.is_in_outbox(&REPORT), counts(&core)), (false, (1, 1)));
}

#[test]
fn a_superseded_run_is_not_reported_beside_the_newer_one() {
    let mut core = Core::linked();
    let older = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();

    let newer = core.new_run_of(HeadUpdate::pushed("a", "b", 2));

    assert_eq!(core.stopped(older), Some(CancelReason::Superseded));
    assert_eq!(core.environment().report.run, Some(newer));
    assert_eq!(counts(&core), (2, 1), "one change, and not two");
}

#[test]
fn the_end_of_a_closed_pull_request_is_reported() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.report_all();

    assert_eq!(core.close(2), [REPORT]);
}

#[test]
fn an_environment_stays_until_github_has_answered() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.close(2);
    core.step(Event::Forgotten { runs: vec![run], machines: Vec::new(), deliveries: Vec::new() });
    assert!(core.state.environments.contains_key(&ENVIRONMENT), "a report is under way");

    assert_eq!(core.reported(1, Ok(PublishedReport::default())), [], "the run is forgotten");

    assert!(core.state.environments.is_empty() && core.state.outbox.is_empty());
}

#[test]
fn an_environment_stays_until_its_last_command_is_answered() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.report_all();
    let kind = CommandKind::Cancel;
    let (comment, author, at) = (Some(1), "carol".to_owned(), second(2));
    let command = Command { comment, author, kind, at, is_late: false };
    core.step(Event::CommandGiven { environment: ENVIRONMENT, command: command.clone() });
    core.plan(run, &[]);
    core.report_all();
    core.step(Event::Forgotten { runs: vec![run], machines: Vec::new(), deliveries: Vec::new() });
    assert!(core.environment().state.is_closed());

    let environment = ENVIRONMENT;
    let verdict = CommandVerdict::Accepted;
    let effects = core.step(Event::CommandChecked { environment, command, verdict });

    assert_eq!(effects, []);
    assert!(core.state.environments.is_empty() && core.state.outbox.is_empty());
}
