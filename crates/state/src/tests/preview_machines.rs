//! The machines of previews: one takes over from another, is shared by too many, or is not there.

use super::previews::{DEPLOYED, failed};
use super::*;

const FRESH: fn(&mut PlannedJob) = |job| {
    let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!("{job:?}") };
    deployment.fresh = true;
};

/// The time without use after which a preview gives its machine to another one.
const EVICTION_IDLE: Duration = Duration::from_mins(5);

impl Core {
    /// A machine of the preview fleet whose agent is connected.
    fn registered_preview_machine(&mut self) -> MachineId {
        let machine = MachineId::from_bits(self.id());
        let (name, arch, fleet) = ("rack 2".to_owned(), Arch::Amd64, Fleet::Preview);
        self.step(Event::MachineRegistered { machine, name, arch, fleet });
        self.connect_serving(machine, &[]);
        machine
    }

    /// A run whose build completes on a registered machine. Returns its deploy job.
    fn built_on_registered(&mut self, project: u128, builder: MachineId) -> JobId {
        let run = self.request(project);
        let build = self.build(Arch::Amd64);
        let deploy = self.deployment(&build);
        self.plan(run, &[build.clone(), deploy.clone()]);
        self.report(builder, build.id, 1, PUSHED);
        deploy.id
    }

    fn shown_run(&self, project: u128) -> RunId {
        self.preview(project).shown.as_ref().unwrap().run
    }
}

#[test]
fn fresh_data_begins_on_a_new_machine_while_the_old_one_serves() {
    let mut core = amd64(1);
    let (_, first, old) = core.live(1);
    let (second, deploy) = core.built_as(1, FRESH);
    let new = core.machine_of(deploy);
    assert_ne!(new, old);
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine: old, job: deploy });
    core.launched(deploy);
    core.connect(new, &[]);
    core.start(new, deploy, 1);
    assert_eq!((core.shown_run(1), core.machine_state(old)), (first, MachineState::Ready));

    assert_eq!(core.report(new, deploy, 1, DEPLOYED), [Effect::Terminate { machine: old }]);

    assert_eq!(core.preview(1).state, PreviewState::Live { machine: new });
    assert_eq!(core.shown_run(1), second);
    assert_eq!(core.state.machines[&old].serves, None);
}

#[test]
fn the_old_machine_serves_on_when_the_new_one_fails() {
    let mut core = amd64(1);
    let (_, first, old) = core.live(1);
    let (_, deploy) = core.built_as(1, FRESH);
    let new = core.launched(deploy);
    core.connect(new, &[]);
    core.start(new, deploy, 1);

    assert_eq!(core.report(new, deploy, 1, failed()), [Effect::Terminate { machine: new }]);

    assert_eq!(core.preview(1).state, PreviewState::Live { machine: old });
    assert_eq!((core.shown_run(1), core.machine_state(old)), (first, MachineState::Ready));
}

#[test]
fn the_old_machine_serves_while_there_is_no_capacity_for_the_new_one() {
    let mut core = amd64(1);
    let (_, _, old) = core.live(1);
    let (_, deploy) = core.built_as(1, FRESH);
    let new = core.machine_of(deploy);
    let failure = LaunchFailure::NoCapacity("none".to_owned());
    core.step(Event::LaunchFailed { machine: new, failure });
    assert_eq!(core.preview(1).state, PreviewState::Live { machine: old });
    core.wait(Duration::from_secs(30));
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine: old, job: deploy });
}

#[test]
fn fresh_data_waits_for_the_archive_where_there_is_no_second_machine() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 1;
    let (preview, _, old) = core.live(1);
    let (_, deploy) = core.built_as(1, FRESH);
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { wakes: true, .. }));
    core.archived(old, preview);
    core.step(Event::MachineGone { machine: old, taken_back: false });
    let new = core.launched(deploy);
    core.connect(new, &[]);
    core.start(new, deploy, 1);
    core.report(new, deploy, 1, failed());
    assert!(core.preview(1).archive.is_some());
    let wakes = core.state.runs.values().filter(|run| run.trigger == Trigger::Wake);
    assert_eq!(wakes.count(), 1, "what served before starts again");
}

#[test]
fn fresh_data_needs_no_archive() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 1;
    let (preview, _, machine) = core.live(1);
    let (_, deploy) = core.built_as(1, FRESH);
    let problem = "the data is too large".to_owned();

    let effects = core.step(Event::PreviewArchiveFailed { machine, preview, problem });

    assert_eq!(effects, [Effect::Terminate { machine }]);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: deploy });
}

#[test]
fn a_preview_whose_data_cannot_be_archived_does_not_move() {
    let mut core = amd64(1);
    let (preview, first, machine) = core.live(1);
    let (second, _) = core.built_as(1, |deploy| deploy.size = MachineSize::Large);
    let problem = "core's disk is full".to_owned();

    let effects = core.step(Event::PreviewArchiveFailed { machine, preview, problem });

    assert_eq!(effects, [], "it is not stopped again and again");
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert_eq!(core.shown_run(1), first);
    assert_eq!(*core.run_state(second), RunState::Failed { plan_error: None });
}

#[test]
fn an_update_that_fills_the_disk_goes_to_another_machine() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    let (_, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    let full = JobFailure::new(FailureReason::DiskFull, "no space left");

    let effects = core.report(machine, deploy, 1, JobOutcome::Failed(full));

    assert_eq!(effects, [Effect::Sleep { machine, preview }]);
    core.archived(machine, preview);
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: deploy });
    assert_ne!(core.machine_of(deploy), machine);
}

#[test]
fn what_served_before_starts_again_when_a_move_fails() {
    let mut core = amd64(1);
    let (preview, first, old) = core.live(1);
    let (_, deploy) = core.built_as(1, |deploy| deploy.size = MachineSize::Large);
    core.archived(old, preview);
    let new = core.launched(deploy);
    core.connect(new, &[]);
    core.report(new, deploy, 1, failed());

    let wake = core.deploy_job(1);
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: wake });
    core.deployed_on_new(wake);
    let shown = core.preview(1).shown.as_ref().unwrap();
    assert_eq!(shown.size, MachineSize::Medium);
    assert_ne!(shown.run, first, "a wake is a run of its own");
}

#[test]
fn an_agent_may_take_its_time_to_go_back_to_what_served_before() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (second, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    core.cancel(second);
    assert_eq!(core.wait(DEPLOYMENT_RETURN), [], "the agent has not given up");
    core.report(machine, deploy, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_agent_that_goes_back_after_its_time_limit_reports_its_own_failure() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (_, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    core.wait(TIMEOUT + DEPLOYMENT_RETURN);
    core.report(machine, deploy, 1, failed());
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert_eq!(core.preview(1).problem.as_deref(), Some("web did not answer"));
}

#[test]
fn an_agent_that_never_stops_a_deployment_loses_its_machine() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (second, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    core.cancel(second);
    let grace = core.state.limits.job_grace + DEPLOYMENT_RETURN;
    assert!(core.wait(grace).contains(&Effect::Terminate { machine }));
}

#[test]
fn an_agent_that_is_away_during_an_update_keeps_its_preview() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (_, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    core.connect(machine, &[(deploy, 1)]);
    core.disconnect(machine);
    let grace = core.state.limits.reconnect_grace;
    assert_eq!(core.wait(grace * 2), []);
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine, job: deploy });
    let effects = core.wait(PreviewLimits::default().reconnect);
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
}

#[test]
fn the_longest_idle_preview_sleeps_when_another_one_needs_a_machine() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 2;
    let (first, _, machine) = core.live(1);
    core.now = core.now.after(Duration::from_mins(1));
    core.live(2);
    core.now = core.now.after(EVICTION_IDLE);
    let (_, deploy) = core.built(3);
    assert!(core.job_state(deploy).is_waiting());
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
    assert!(matches!(core.preview(2).state, PreviewState::Live { .. }));
    core.archived(machine, first);
    assert!(core.job_state(deploy).is_waiting(), "the machine is still there");
    core.step(Event::MachineGone { machine, taken_back: false });
    assert!(matches!(core.job_state(deploy), JobState::Provisioning { .. }));
}

#[test]
fn a_preview_that_was_used_a_moment_ago_keeps_its_machine() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 1;
    let (preview, _, machine) = core.live(1);
    let (_, deploy) = core.built(2);
    let queued = core.state.queue();
    let reason = QueueReason::PreviewLimit { project: None, max_concurrent: 1 };
    assert_eq!(queued, [QueuedJob { job: deploy, reason }]);
    core.now = core.now.after(EVICTION_IDLE / 2);
    core.step(Event::PreviewRequested { preview, at: core.now });
    let used_at = core.now;
    assert_eq!(core.wait(EVICTION_IDLE / 2), []);
    assert_eq!(core.state.next_deadline(), Some(used_at.after(EVICTION_IDLE)));
    let effects = core.wait(EVICTION_IDLE / 2);
    assert_eq!(effects, [Effect::Sleep { machine, preview }]);
}

#[test]
fn one_preview_sleeps_for_one_deployment_although_it_wakes_afterwards() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 2;
    let (first, _, machine) = core.live(1);
    core.live(2);
    core.now = core.now.after(EVICTION_IDLE);
    let (_, deploy) = core.built(3);
    core.step(Event::PreviewRequested { preview: first, at: core.now });
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { wakes: true, .. }));
    assert!(matches!(core.preview(2).state, PreviewState::Live { .. }));
    core.archived(machine, first);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert!(matches!(core.job_state(deploy), JobState::Provisioning { .. }));
    assert_eq!(core.preview(1).state, PreviewState::Asleep, "it waits in turn");
}

#[test]
fn an_idle_preview_leaves_a_registered_machine_for_another_one() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let machine = core.registered_preview_machine();
    let deploy = core.built_on_registered(1, builder);
    core.report(machine, deploy, 1, DEPLOYED);
    let next = core.built_on_registered(2, builder);
    let reason = QueueReason::RegisteredMachine { arch: Some(Arch::Amd64) };
    assert_eq!(core.state.queue(), [QueuedJob { job: next, reason }]);
    let preview = core.preview(1).id;
    assert_eq!(core.wait(EVICTION_IDLE), [Effect::Sleep { machine, preview }]);
    core.archived(machine, preview);
    assert_eq!(core.machine_of(next), machine);
}

#[test]
fn a_deployment_fails_at_once_where_no_machine_can_run_it() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let deploy = core.built_on_registered(1, builder);
    assert_eq!(*core.failure(deploy), FailureReason::Provider);
    assert_eq!(core.preview(1).state, PreviewState::Failed { job: deploy });
    let problem = core.preview(1).problem.clone().unwrap();
    assert!(problem.contains("`stagely machines add --fleet preview`"), "{problem}");
}

#[test]
fn what_serves_keeps_its_machine_where_no_other_one_can_be_had() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.state.limits.launchable_previews.clear();
    let (_, larger) = core.built_as(1, |deploy| deploy.size = MachineSize::Large);
    assert_eq!(*core.failure(larger), FailureReason::Provider);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    core.step(Event::PreviewResetRequested { preview });
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
}

#[test]
fn a_preview_that_no_machine_can_wake_backs_off() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let machine = core.registered_preview_machine();
    let deploy = core.built_on_registered(1, builder);
    core.report(machine, deploy, 1, DEPLOYED);
    let preview = core.preview(1).id;
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineUnregistered { machine });
    core.step(Event::PreviewRequested { preview, at: core.now });
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    assert_eq!(core.preview(1).failed_wakes.unwrap().count, 1);
}

#[test]
fn a_registered_machine_that_serves_a_preview_is_not_unregistered() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let machine = core.registered_preview_machine();
    let deploy = core.built_on_registered(1, builder);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.step(Event::MachineUnregistered { machine }), []);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    let preview = core.preview(1).id;
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    assert_eq!(core.step(Event::MachineUnregistered { machine }), [Effect::Disconnect { machine }]);
}

#[test]
fn a_deployment_that_was_stopped_too_late_is_undone() {
    let mut core = amd64(1);
    let (_, first, machine) = core.live(1);
    let shown = core.preview(1).shown.clone().unwrap();
    let (second, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    core.cancel(second);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.shown_run(1), first);
    let again = core.deploy_job(1);
    assert_eq!(core.machine_of(again), machine);
    core.report(machine, again, 1, DEPLOYED);
    let now = core.preview(1).shown.clone().unwrap();
    assert_eq!((now.deployment, now.requested_at), (shown.deployment, shown.requested_at));
}

#[test]
fn a_preview_on_a_machine_whose_lease_is_over_does_not_hold_up_the_timeouts() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let lease = core.state.machines[&machine].lease_until.unwrap();
    core.now = lease.after(Duration::from_secs(1));
    core.restart();
    let effects = core.step(Event::Tick);
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
}

#[test]
fn a_preview_that_never_sleeps_moves_before_its_lease_ends() {
    let mut core = amd64(1);
    core.state.limits.previews.lease = Duration::from_hours(2);
    let (run, deploy) = core.built_as(1, |job| {
        let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!("{job:?}") };
        deployment.settings.sleep_after = None;
    });
    let machine = core.deployed_on_new(deploy);
    assert_eq!(*core.run_state(run), RunState::Completed);
    core.wait(Duration::from_hours(2));
    assert!(matches!(
        core.preview(1).state,
        PreviewState::Archiving { machine: archived, wakes: true, .. } if archived == machine
    ));
}

#[test]
fn an_archive_may_be_reported_after_core_was_away() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.now = core.now.after(PreviewLimits::default().archive * 2);
    core.restart();
    core.step(Event::Tick);
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
    core.connect_serving(machine, &[]);
    core.archived(machine, preview);
    assert!(core.preview(1).archive.is_some());
}
