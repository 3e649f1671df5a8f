//! Adding and removing projects.

use std::num::NonZeroU32;

use super::head_updates::*;
use super::*;

fn remove(core: &mut Core) -> Vec<Effect> {
    core.step(Event::ProjectRemoved { project: PROJECT })
}

#[test]
fn a_project_keeps_its_name_and_repository_and_takes_over_the_rest() {
    let mut core = Core::linked();
    let mut changed = linked_project();
    "other".clone_into(&mut changed.name);
    "https://elsewhere".clone_into(&mut changed.repository);
    changed.github.as_mut().unwrap().forks = ForkPolicy::Never;
    changed.max_concurrent = NonZeroU32::new(3);

    core.step(Event::ProjectSet { project: changed.clone() });

    let (known, before) = (&core.state.projects[&PROJECT], linked_project());
    assert_eq!((&known.name, &known.repository), (&before.name, &before.repository));
    assert_eq!((&known.github, known.max_concurrent), (&changed.github, changed.max_concurrent));
}

#[test]
fn a_higher_limit_of_a_project_lets_its_queued_jobs_begin() {
    let mut core = amd64(5);
    let max_concurrent = NonZeroU32::new(1);
    core.step(Event::ProjectSet { project: Project { max_concurrent, ..linked_project() } });
    let (_, jobs) = core.run(1, 2);
    assert_eq!(core.job_state(jobs[1]), &JobState::Queued { attempt: 1 });

    core.step(Event::ProjectSet { project: linked_project() });

    assert!(matches!(core.job_state(jobs[1]), JobState::Provisioning { .. }));
}

#[test]
fn a_removed_project_keeps_its_record_and_its_pull_requests_are_closed() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    let (_, machine) = core.build_tagged(run);
    core.report_all();

    assert_eq!(remove(&mut core), [Effect::Terminate { machine }], "GitHub gets no more reports");

    assert_eq!(core.stopped(run), Some(CancelReason::EnvironmentClosed));
    assert_eq!(core.head(), (commit("a"), false));
    let known = &core.state.projects[&PROJECT];
    assert_eq!((&*known.name, &known.github), ("shop", &None));
    let effects = core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(effects, [Effect::CleanUp { environment: ENVIRONMENT }]);
}

#[test]
fn the_branches_of_a_removed_project_stay_open() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::on_branch("a", 1));

    remove(&mut core);

    assert_eq!((core.head(), core.stopped(run)), ((commit("a"), true), None));
}

#[test]
fn removing_a_project_does_not_change_others() {
    let mut core = Core::linked();
    let other = core.request(2);
    let id = EnvironmentId::from_bits(2);
    core.update_head(HeadUpdate::first("a", 1));

    remove(&mut core);

    assert!(!core.state.environments[&id].state.is_closed());
    assert_eq!(core.run_state(other), &RunState::Planning { since: core.now });
}

#[test]
fn removing_an_unlinked_project_changes_nothing() {
    let mut core = amd64(1);
    let run = core.request(1);

    assert_eq!(remove(&mut core), []);
    assert_eq!(core.step(Event::ProjectRemoved { project: ProjectId::from_bits(99) }), []);

    assert_eq!(core.run_state(run), &RunState::Planning { since: core.now });
}

#[test]
fn a_project_that_is_added_again_builds_its_next_commits() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    remove(&mut core);
    assert_eq!(core.update_head(HeadUpdate::pushed("a", "b", 2)), None);

    core.step(Event::ProjectSet { project: linked_project() });

    let run = core.new_run_of(HeadUpdate::listed(None, "b", 2));
    assert_eq!((core.head(), core.stopped(run)), ((commit("b"), true), None));
}

#[test]
fn a_project_that_is_added_again_builds_its_open_pull_requests() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    remove(&mut core);
    core.step(Event::ProjectSet { project: linked_project() });

    core.new_run_of(HeadUpdate::listed(None, "a", 1));

    assert_eq!(core.head(), (commit("a"), true));
}

#[test]
fn an_environment_that_was_closed_by_request_stays_closed_when_its_project_is_added_again() {
    let mut core = Core::linked();
    core.update_head(HeadUpdate::first("a", 1));
    core.close_by_hand();
    remove(&mut core);
    core.step(Event::ProjectSet { project: linked_project() });

    assert_eq!(core.update_head(HeadUpdate::listed(None, "a", 1)), None);
}
