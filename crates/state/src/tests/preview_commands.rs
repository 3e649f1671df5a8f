//! Commands and labels that are about previews.

use super::head_updates::*;
use super::previews::{DEPLOYED, failed};
use super::*;
use crate::ids::PreviewId;

/// Follows the command, which may start `run`. Returns what its note says.
fn follow(core: &mut Core, action: PreviewCommand, run: Option<Run>) -> String {
    let command = Command {
        comment: None,
        author: "carol".to_owned(),
        kind: CommandKind::Preview { action },
        at: second(9),
        is_late: false,
    };
    core.step(Event::CommandGiven { environment: ENVIRONMENT, command: command.clone() });
    let accepted = CommandVerdict::Accepted;
    let verdict = run.map_or(accepted, |run| CommandVerdict::Rebuild(Box::new(run)));
    core.step(Event::CommandChecked { environment: ENVIRONMENT, command, verdict });
    let note = core.environment().report.note.clone().unwrap();
    let begin = format!("`{action}` by carol");
    note.strip_prefix(&begin).unwrap().trim_start_matches(": ").to_owned()
}

fn start(core: &mut Core) -> String {
    follow(core, PreviewCommand::Start, None)
}

/// A further run of the newest run's commit, with a preview.
fn further_run(core: &mut Core, newest: RunId) -> Run {
    let id = RunId::from_bits(core.id());
    let run = Run::new(id, core.environment(), String::new(), core.now);
    Run { trigger: Trigger::Rebuild, rebuilds: Some(newest), with_preview: Some(true), ..run }
}

/// A pull request whose preview is live.
fn live(core: &mut Core) -> (RunId, MachineId) {
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    let deploy = core.plan_and_build(run, |_| {});
    (run, core.deployed_on_new(deploy))
}

fn preview(core: &Core) -> PreviewId {
    core.preview(1).id
}

#[test]
fn a_preview_is_started_stopped_and_started_by_a_further_run() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    core.plan(run, &[]);
    let further = further_run(&mut core, run);
    let id = further.id;
    assert_eq!(
        follow(&mut core, PreviewCommand::Start, Some(further)),
        format!("{id} was started")
    );
    let deploy = core.plan_and_build(id, |_| {});
    assert_eq!(start(&mut core), "it is being deployed");
    core.deployed_on_new(deploy);
    assert_eq!(start(&mut core), "it is live");

    assert_eq!(follow(&mut core, PreviewCommand::Stop, None), "ended");
    assert_eq!(core.preview(1).state, PreviewState::Ending);
    let none = " was not followed: there is no preview";
    assert_eq!(follow(&mut core, PreviewCommand::Stop, None), none);
    let again = further_run(&mut core, run);
    let id = again.id;
    assert_eq!(follow(&mut core, PreviewCommand::Start, Some(again)), format!("{id} was started"));
}

#[test]
fn a_run_that_is_not_planned_yet_gets_the_preview() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1).of_fork());
    assert_eq!(start(&mut core), "it is deployed when the commit is approved");
    assert_eq!(core.state.runs[&run].with_preview, Some(true));
    assert_eq!(*core.run_state(run), RunState::AwaitingApproval);

    core.step(Event::PreviewLabelRemoved { environment: ENVIRONMENT });
    assert_eq!(core.state.runs[&run].with_preview, None);
}

#[test]
fn a_deployment_that_waits_for_its_images_is_not_repeated() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    core.plan(run, &[build, deploy]);
    assert_eq!(start(&mut core), "it is deployed when its images are there");
}

#[test]
fn a_preview_sleeps_wakes_and_wakes_while_it_goes_to_sleep() {
    let mut core = Core::linked();
    let (_, machine) = live(&mut core);
    let preview = preview(&core);
    assert_eq!(follow(&mut core, PreviewCommand::Sleep, None), "it goes to sleep");
    let asleep = " was not followed: it sleeps already";
    assert_eq!(follow(&mut core, PreviewCommand::Sleep, None), asleep);
    assert_eq!(start(&mut core), "it wakes");
    core.archived(machine, preview);
    let deploy = core.deploy_job(1);
    let late = " was not followed: it is being deployed; write it again when that has ended";
    assert_eq!(follow(&mut core, PreviewCommand::Reset, None), late);
    let machine = core.deployed_on_new(deploy);

    follow(&mut core, PreviewCommand::Sleep, None);
    core.archived(machine, preview);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    assert_eq!(start(&mut core), "it wakes");
    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }));
}

#[test]
fn a_preview_is_reset_and_extended() {
    let mut core = Core::linked();
    let by = Duration::from_hours(36);
    let none = " was not followed: there is no preview";
    core.new_run_of(HeadUpdate::first("a", 1));
    assert_eq!(follow(&mut core, PreviewCommand::Extend { by }, None), none);
    assert_eq!(follow(&mut core, PreviewCommand::Reset, None), none);

    let mut core = Core::linked();
    live(&mut core);
    let end = core.preview(1).ends_at().unwrap();
    assert_eq!(follow(&mut core, PreviewCommand::Extend { by }, None), "extended");
    assert_eq!(core.preview(1).ends_at(), Some(end.after(by)));
    assert_eq!(
        follow(&mut core, PreviewCommand::Reset, None),
        "it is deployed again with fresh data"
    );
    assert!(matches!(core.preview(1).state, PreviewState::Updating { .. }));
}

#[test]
fn an_update_that_failed_is_deployed_again() {
    let mut core = Core::linked();
    let (_, machine) = live(&mut core);
    let second = core.new_run_of(HeadUpdate::pushed("a", "b", 2));
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    let commit = commit("b");
    let plan = PlannedRun::new(commit, vec![build.clone(), deploy.clone()]);
    core.step(Event::RunPlanned { run: second, plan: Ok(plan) });
    let builder = core.launched(build.id);
    core.connect(builder, &[]);
    core.report(builder, build.id, 1, pushed("c"));
    core.start(machine, deploy.id, 1);
    core.report(machine, deploy.id, 1, failed());
    assert!(matches!(core.preview(1).state, PreviewState::Live { .. }), "the old version serves");

    let again = further_run(&mut core, second);
    let id = again.id;
    assert_eq!(follow(&mut core, PreviewCommand::Start, Some(again)), format!("{id} was started"));
    let late = " was not followed: something newer came meanwhile; write it again";
    core.cancel(id);
    assert_eq!(start(&mut core), late, "its run was not made");
}

#[test]
fn only_a_preview_by_label_ends_when_the_label_is_removed() {
    for on_request in [false, true] {
        let mut core = Core::linked();
        let run = core.new_run_of(HeadUpdate::first("a", 1));
        core.state.change_run(run, |run| run.with_preview = Some(true));
        let deploy = core.plan_and_build(run, |deploy| {
            let JobKind::Deploy { deployment, .. } = &mut deploy.kind else { panic!() };
            deployment.settings.on_request = on_request;
        });
        let machine = core.launched(deploy);
        core.connect(machine, &[]);
        core.report(machine, deploy, 1, DEPLOYED);
        core.step(Event::PreviewLabelRemoved { environment: ENVIRONMENT });
        assert_eq!(core.preview(1).state.is_over(), on_request);
    }
}

#[test]
fn commands_are_written_as_people_write_them() {
    let extend = |minutes| {
        let action = PreviewCommand::Extend { by: Duration::from_mins(minutes) };
        CommandKind::Preview { action }.to_string()
    };
    assert_eq!(extend(3 * 24 * 60), "/stagely preview extend 3d");
    assert_eq!(extend(36 * 60), "/stagely preview extend 36h");
    assert_eq!(extend(90), "/stagely preview extend 90m");
}
