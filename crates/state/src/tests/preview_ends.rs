//! How previews end, and what must not start them again.

use super::head_updates::*;
use super::previews::{DEPLOYED, TTL, failed, fresh};
use super::*;

const ON_REQUEST: fn(&mut PlannedJob) = |job| {
    let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!("{job:?}") };
    deployment.settings.on_request = true;
};

/// A planned run of the pull request, with a build and its deployment.
fn building(core: &mut Core, update: HeadUpdate, change: fn(&mut PlannedJob)) -> [JobId; 2] {
    let run = core.new_run_of(update);
    core.state.change_run(run, |run| run.with_preview = Some(true));
    let build = core.build(Arch::Amd64);
    let mut deploy = core.deployment(&build);
    change(&mut deploy);
    core.plan(run, &[build.clone(), deploy.clone()]);
    [build.id, deploy.id]
}

fn complete(core: &mut Core, build: JobId) {
    let machine = core.launched(build);
    core.connect(machine, &[]);
    core.report(machine, build, 1, pushed("b"));
}

fn first() -> HeadUpdate {
    HeadUpdate::first("a", 1)
}

#[test]
fn a_failed_preview_ends_after_its_ttl() {
    let mut core = amd64(1);
    let (_, deploy) = core.built(1);
    let machine = core.launched(deploy);
    core.connect(machine, &[]);
    core.report(machine, deploy, 1, failed());
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).state, PreviewState::Failed { job: deploy });
    assert_eq!(core.state.next_deadline(), Some(core.now.after(TTL)));
    core.wait(TTL);
    let ended = core.preview(1);
    assert_eq!((ended.state, ended.extended_until), (PreviewState::Ended, None));
}

#[test]
fn a_preview_whose_time_is_over_when_it_fails_to_wake_ends() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    let used_at = core.preview(1).active_at;
    core.now = used_at.after(TTL).before(Duration::from_secs(1));
    core.step(Event::PreviewRequested { preview, at: used_at });
    let deploy = core.deploy_job(1);
    let machine = core.launched(deploy);
    core.connect(machine, &[]);
    core.now = core.now.after(Duration::from_mins(1));
    core.report(machine, deploy, 1, failed());
    assert_eq!(core.preview(1).state, PreviewState::Ending);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).state, PreviewState::Ended);
}

#[test]
fn a_preview_that_ends_together_with_its_machines_lease_waits_for_the_machine() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    // Core was away until both are over.
    let effects = core.wait(TTL + Duration::from_hours(24 * 7));
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
    assert_eq!(core.state.previews[&preview].state, PreviewState::Ending);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.state.previews[&preview].state, PreviewState::Ended);
}

#[test]
fn a_failed_preview_ends_with_its_environment() {
    let mut core = amd64(1);
    let (_, deploy) = core.built(1);
    let machine = core.launched(deploy);
    core.connect(machine, &[]);
    core.report(machine, deploy, 1, failed());
    core.step(Event::MachineGone { machine, taken_back: false });
    core.step(Event::EnvironmentClosed { environment: ENVIRONMENT });
    assert_eq!(core.preview(1).state, PreviewState::Ended);
}

#[test]
fn a_preview_that_is_ended_is_not_started_by_the_run_under_way() {
    let mut core = Core::linked();
    let deploy = {
        let run = core.new_run_of(first());
        core.plan_and_build(run, |_| {})
    };
    core.deployed_on_new(deploy);
    let [build, deploy] = building(&mut core, HeadUpdate::pushed("a", "b", 2), |_| {});
    let preview = core.preview(1).id;
    core.step(Event::PreviewEndRequested { preview });
    let run = core.state.jobs[&deploy].run;
    assert_eq!(*core.run_state(run), RunState::Building, "its images are wanted");
    assert_eq!(*core.job_state(deploy), JobState::Cancelled);

    complete(&mut core, build);

    assert_eq!(*core.run_state(run), RunState::Completed);
    assert!(core.preview(1).state.is_over());
}

#[test]
fn a_preview_that_is_ended_while_it_is_deployed_leaves_a_completed_run() {
    let mut core = Core::linked();
    let [build, deploy] = building(&mut core, first(), |_| {});
    complete(&mut core, build);
    let machine = core.launched(deploy);
    let preview = core.preview(1).id;
    assert_eq!(core.step(Event::PreviewEndRequested { preview })[0], Effect::Terminate { machine });
    assert_eq!(*core.run_state(core.state.jobs[&deploy].run), RunState::Completed);
}

#[test]
fn a_run_that_is_planned_when_the_preview_is_stopped_gets_none() {
    let mut core = Core::linked();
    let run = core.new_run_of(first());
    let deploy = core.plan_and_build(run, |_| {});
    core.deployed_on_new(deploy);
    let run = core.new_run_of(HeadUpdate::pushed("a", "b", 2));
    assert!(matches!(core.run_state(run), RunState::Planning { .. }));
    let preview = core.preview(1).id;
    core.step(Event::PreviewEndRequested { preview });
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    core.plan(run, &[build.clone(), deploy.clone()]);
    assert!(!core.state.jobs.contains_key(&deploy.id));
    complete(&mut core, build.id);
    assert_eq!(*core.run_state(run), RunState::Completed);
}

#[test]
fn a_removed_label_takes_the_preview_from_the_run_under_way() {
    for on_request in [false, true] {
        let mut core = Core::linked();
        let change = if on_request { ON_REQUEST } else { |_: &mut PlannedJob| {} };
        let [build, deploy] = building(&mut core, first(), change);
        core.step(Event::PreviewLabelRemoved { environment: ENVIRONMENT });
        complete(&mut core, build);
        assert_eq!(*core.job_state(deploy) == JobState::Cancelled, on_request);
        let run = core.state.jobs[&deploy].run;
        let expected = if on_request { RunState::Completed } else { RunState::Deploying };
        assert_eq!(*core.run_state(run), expected);
    }
}

#[test]
fn a_label_that_is_removed_during_the_planning_takes_the_preview_from_the_plan() {
    let mut core = Core::linked();
    let run = core.new_run_of(first());
    core.state.change_run(run, |run| run.with_preview = Some(true));
    core.step(Event::PreviewLabelRemoved { environment: ENVIRONMENT });
    let build = core.build(Arch::Amd64);
    let mut deploy = core.deployment(&build);
    ON_REQUEST(&mut deploy);
    core.plan(run, &[build, deploy.clone()]);
    assert!(!core.state.jobs.contains_key(&deploy.id));
    assert_eq!(core.environment().label_removed_at, Some(core.now));
}

#[test]
fn the_rebuild_of_an_older_run_does_not_replace_what_is_shown() {
    let mut core = amd64(1);
    let (first, deploy) = core.built(1);
    core.deployed_on_new(deploy);
    let (second, deploy) = core.built(1);
    let machine = core.machine_of(deploy);
    core.start(machine, deploy, 1);
    core.report(machine, deploy, 1, DEPLOYED);
    let rebuild = core.request_as(1, |run| {
        run.trigger = Trigger::Rebuild;
        run.rebuilds = Some(first);
    });
    let deploy = core.plan_and_build(rebuild, |_| {});
    assert_eq!(*core.job_state(deploy), JobState::Cancelled);
    assert_eq!(*core.run_state(rebuild), RunState::Completed);
    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, second);
    assert_eq!(core.state.jobs[&deploy].warnings.len(), 1);
}

#[test]
fn an_older_run_that_is_late_does_not_replace_what_is_shown() {
    let mut core = amd64(2);
    let older = core.request(1);
    core.now = core.now.after(Duration::from_secs(1));
    let (newer, deploy) = core.built(1);
    core.deployed_on_new(deploy);
    let deploy = core.plan_and_build(older, |_| {});
    assert_eq!(*core.job_state(deploy), JobState::Cancelled);
    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, newer);
}

#[test]
fn a_wake_that_waits_does_not_bring_an_older_version_back() {
    let mut core = amd64(2);
    core.state.limits.previews.max_concurrent = 1;
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    // A newer run builds when the other preview takes the only machine.
    let newer = core.request(1);
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    core.plan(newer, &[build.clone(), deploy.clone()]);
    let (other, _, machine) = core.live(2);
    core.step(Event::PreviewRequested { preview, at: core.now });
    let mut runs = core.state.runs.values();
    let wake = runs.find(|run| run.trigger == Trigger::Wake).unwrap().id;
    complete(&mut core, build.id);
    core.step(Event::PreviewEndRequested { preview: other });
    core.step(Event::MachineGone { machine, taken_back: false });
    core.deployed_on_new(deploy.id);

    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, newer);
    let superseded = RunState::Cancelled { reason: CancelReason::Superseded };
    assert_eq!(*core.run_state(wake), superseded);
}

#[test]
fn a_reset_that_waits_deletes_the_data_of_the_newer_version() {
    let mut core = amd64(2);
    core.state.limits.previews.max_concurrent = 1;
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    let newer = core.request(1);
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    core.plan(newer, &[build.clone(), deploy.clone()]);
    let (other, _, machine) = core.live(2);
    core.step(Event::PreviewResetRequested { preview });
    complete(&mut core, build.id);
    core.step(Event::PreviewEndRequested { preview: other });
    core.step(Event::MachineGone { machine, taken_back: false });
    core.deployed_on_new(deploy.id);

    let mut resets = core.state.runs.values().filter(|run| run.trigger == Trigger::Reset);
    let again = resets.find(|run| !run.state.is_final()).unwrap();
    let job = core.state.jobs_of(again.id).next().unwrap();
    assert!(fresh(&core, job.id));
    let JobKind::Deploy { deployment, .. } = &job.kind else { panic!("{job:?}") };
    let shown = core.preview(1).shown.as_ref().unwrap();
    assert_eq!((&deployment.images, shown.run), (&shown.deployment.images, newer));
}

#[test]
fn a_preview_that_comes_back_or_is_reset_has_another_key() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    let key = core.preview(1).key_number;
    core.built(1);
    let deploy = core.deploy_job(1);
    core.start(machine, deploy, 1);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.preview(1).key_number, key, "links stay valid over pushes");

    core.step(Event::PreviewResetRequested { preview });
    let former = machine;
    let machine = core.deployed_on_new(core.deploy_job(1));
    core.step(Event::MachineGone { machine: former, taken_back: false });
    let reset = core.preview(1).key_number;
    assert_ne!(reset, key);

    core.step(Event::PreviewEndRequested { preview });
    core.step(Event::MachineGone { machine, taken_back: false });
    let (_, deploy) = core.built(1);
    core.deployed_on_new(deploy);
    let again = core.preview(1).key_number;
    assert!(again != reset && again != key);
}
