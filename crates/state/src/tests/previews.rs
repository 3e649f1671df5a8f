//! Previews: deployed on machines of their own, updated in place, put to sleep, woken, moved and ended.

use stagely_protocol::{BuildArgs, Submodules};

use super::head_updates::HeadUpdate;
use super::*;
use crate::ids::PreviewId;

pub(super) const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);
pub(super) const SLEEP_AFTER: Duration = Duration::from_mins(20);
pub(super) const TTL: Duration = Duration::from_hours(7 * 24);

fn settings() -> PreviewSettings {
    PreviewSettings {
        access: Access::Link,
        public_paths: Vec::new(),
        on_request: false,
        sleep_after: Some(SLEEP_AFTER),
        ttl: TTL,
    }
}

impl Core {
    pub(super) fn deployment(&mut self, build: &PlannedJob) -> PlannedJob {
        let deployment = Deployment {
            compose: None,
            images: BTreeMap::from([("app".to_owned(), UsedImage::Job { job: build.id })]),
            default_images: BTreeMap::new(),
            endpoints: Vec::new(),
            env: BuildArgs::default(),
            submodules: Submodules::default(),
            secrets: Vec::new(),
            migrate: None,
            seed: None,
            fresh: false,
            reset_when: Vec::new(),
            disk_gib: 20,
            settings: settings(),
        };
        let kind = JobKind::Deploy { arch: Some(Arch::Amd64), deployment: Box::new(deployment) };
        self.job(kind, vec![build.id])
    }

    /// A run of a build and its deployment, whose build has completed.
    pub(super) fn built(&mut self, project: u128) -> (RunId, JobId) {
        self.built_as(project, |_| {})
    }

    pub(super) fn built_as(
        &mut self,
        project: u128,
        change: impl FnOnce(&mut PlannedJob),
    ) -> (RunId, JobId) {
        let run = self.request(project);
        let deploy = self.plan_and_build(run, change);
        (run, deploy)
    }

    /// Plans a build and its deployment, and completes the build. Returns the deploy job.
    pub(super) fn plan_and_build(
        &mut self,
        run: RunId,
        change: impl FnOnce(&mut PlannedJob),
    ) -> JobId {
        let build = self.build(Arch::Amd64);
        let mut deploy = self.deployment(&build);
        change(&mut deploy);
        self.plan(run, &[build.clone(), deploy.clone()]);
        let machine = self.launched(build.id);
        self.connect(machine, &[]);
        let pushed = JobOutcome::Completed { digest: Some(digest("b")) };
        self.report(machine, build.id, 1, pushed);
        self.step(Event::MachineGone { machine, taken_back: false });
        deploy.id
    }

    /// A preview that is live, its run, and its machine.
    pub(super) fn live(&mut self, project: u128) -> (PreviewId, RunId, MachineId) {
        let (run, deploy) = self.built(project);
        let machine = self.deployed_on_new(deploy);
        (self.preview(project).id, run, machine)
    }

    /// Launches a machine for the deploy job, which completes on it.
    pub(super) fn deployed_on_new(&mut self, deploy: JobId) -> MachineId {
        let machine = self.launched(deploy);
        self.connect_serving(machine, &[]);
        let attempt = self.state.jobs[&deploy].attempt;
        self.start(machine, deploy, attempt);
        self.report(machine, deploy, attempt, DEPLOYED);
        machine
    }

    pub(super) fn connect_serving(
        &mut self,
        machine: MachineId,
        previews: &[PreviewId],
    ) -> Vec<Effect> {
        let system_info = SystemInfo {
            hostname: "preview".to_owned(),
            architecture: Arch::Amd64,
            docker_version: String::new(),
            emulated: Vec::new(),
        };
        self.session = self.session.next();
        let (session, previews) = (self.session, Some(previews.iter().copied().collect()));
        self.step(Event::AgentConnected {
            machine,
            session,
            system_info,
            holds: Vec::new(),
            previews,
        })
    }

    pub(super) fn preview(&self, project: u128) -> &Preview {
        self.state.preview_of(EnvironmentId::from_bits(project)).unwrap()
    }

    pub(super) fn archived(&mut self, machine: MachineId, preview: PreviewId) -> Vec<Effect> {
        let archive = Archive { digest: digest("a"), bytes: 100, made_at: self.now };
        let (archive, problem) = (Some(archive), None);
        self.step(Event::PreviewArchived { machine, preview, archive, problem })
    }

    /// The deploy job under way.
    pub(super) fn deploy_job(&self, project: u128) -> JobId {
        self.preview(project).state.job().unwrap()
    }
}

pub(super) const DEPLOYED: JobOutcome = JobOutcome::Completed { digest: None };

pub(super) fn failed() -> JobOutcome {
    let reason = FailureReason::Deploy { problem: stagely_protocol::DeployProblem::Health };
    JobOutcome::Failed(JobFailure::new(reason, "web did not answer"))
}

#[test]
fn a_preview_machine_is_launched_by_the_provider_of_previews() {
    let mut core = Core::new(8, &[Arch::Amd64]);
    core.state.limits.launchable_previews = [(Arch::Amd64, ProviderName::Aws)].into();
    let (_, deploy) = core.built(1);
    let machine = core.launched(deploy);
    assert_eq!(core.state.machines[&machine].provider, ProviderName::Aws);
}

#[test]
fn images_are_deployed_on_a_machine_of_the_preview_fleet_that_stays() {
    let mut core = amd64(1);
    let (run, deploy) = core.built(1);
    assert_eq!(*core.run_state(run), RunState::Deploying);
    let machine = core.launched(deploy);
    assert_eq!(core.state.machines[&machine].fleet, Fleet::Preview);
    core.connect(machine, &[]);
    core.start(machine, deploy, 1);
    assert_eq!(core.report(machine, deploy, 1, DEPLOYED), []);

    assert_eq!(*core.run_state(run), RunState::Completed);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
    let preview = core.preview(1);
    assert_eq!(preview.state, PreviewState::Live { machine });
    let shown = preview.shown.as_ref().unwrap();
    assert_eq!((shown.run, shown.number), (run, 1));
    let UsedImage::Image { image } = &shown.deployment.images["app"] else { panic!("{shown:?}") };
    assert!(image.as_str().contains("@sha256:"), "{image}");
}

#[test]
fn preview_machines_do_not_take_the_slots_of_builders() {
    let mut core = amd64(1);
    core.live(1);
    let (_, jobs) = core.run(2, 1);
    assert!(matches!(core.job_state(jobs[0]), JobState::Provisioning { .. }));
}

#[test]
fn a_newer_commit_is_deployed_in_place_while_the_old_version_serves() {
    let mut core = amd64(1);
    let (_, first, machine) = core.live(1);
    let (second, deploy) = core.built(1);
    let job = core.deploy_job(1);
    assert_eq!((core.preview(1).state, job), (PreviewState::Updating { machine, job }, deploy));
    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, first, "it shows the old version");
    core.start(machine, deploy, 1);
    assert_eq!(core.report(machine, deploy, 1, DEPLOYED), []);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    let shown = core.preview(1).shown.as_ref().unwrap();
    assert_eq!((shown.run, shown.number), (second, 2));
}

#[test]
fn what_served_before_goes_on_when_an_update_fails() {
    let mut core = amd64(1);
    let (_, first, machine) = core.live(1);
    let (second, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    assert_eq!(core.report(machine, deploy, 1, failed()), []);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert_eq!(core.preview(1).shown.as_ref().unwrap().run, first);
    assert_eq!(core.preview(1).problem.as_deref(), Some("web did not answer"));
    assert_eq!(*core.run_state(second), RunState::Failed { plan_error: None });
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn a_cancelled_update_does_not_end_the_machine_that_serves() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (second, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    let attempt = attempt(deploy, 1);
    let reason = StopReason::RunCancelled;
    assert_eq!(core.cancel(second), [Effect::Cancel { machine, attempt, reason }]);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    core.report(machine, deploy, 1, JobOutcome::Cancelled);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn an_idle_preview_sleeps_and_a_request_wakes_it_from_its_archive() {
    let mut core = amd64(1);
    let (preview, first, machine) = core.live(1);
    core.now = core.now.after(SLEEP_AFTER / 2);
    let at = core.now;
    core.step(Event::PreviewRequested { preview, at });
    assert_eq!(core.wait(SLEEP_AFTER / 2), [], "it was in use");
    assert_eq!(core.wait(SLEEP_AFTER / 2), [Effect::Sleep { machine, preview }]);
    assert_eq!(core.archived(machine, preview), [Effect::Terminate { machine }]);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    core.step(Event::MachineGone { machine, taken_back: false });

    let at = core.now;
    let effects = core.step(Event::PreviewRequested { preview, at });
    let deploy = core.deploy_job(1);
    let machine = core.machine_of(deploy);
    assert_eq!(effects, [Effect::Launch { machine }]);
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: deploy });
    let wake = core.state.jobs[&deploy].run;
    assert_eq!(core.state.runs[&wake].trigger, Trigger::Wake);
    assert_eq!(core.state.environments[&ENVIRONMENT].newest_run, Some(first));
    core.step(Event::PreviewRequested { preview, at });
    assert_eq!(core.deploy_job(1), deploy, "it is woken once");

    core.launched(deploy);
    core.connect(machine, &[]);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    assert!(core.preview(1).archive.is_some(), "it is the data of the next loss");
}

#[test]
fn a_preview_that_is_updated_when_the_cloud_takes_its_machine_back_moves() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let (_, deploy) = core.built(1);
    core.start(machine, deploy, 1);
    let at = core.now.after(Duration::from_mins(2));

    let interruption = Interruption::Certain { at };
    let effects = core.step(Event::MachineInterrupted { machine, interruption });

    let preview = core.preview(1);
    assert!(matches!(preview.state, PreviewState::Archiving { wakes: true, .. }), "{preview:?}");
    assert!(effects.contains(&Effect::Sleep { machine, preview: preview.id }), "{effects:?}");
}

#[test]
fn a_preview_whose_data_cannot_be_archived_serves_on() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    let problem = "core's disk is full".to_owned();

    core.step(Event::PreviewArchiveFailed { machine, preview, problem: problem.clone() });

    let record = core.preview(1);
    assert_eq!(record.state, PreviewState::Live { machine });
    assert_eq!(record.problem, Some(problem));
    assert_eq!(core.wait(SLEEP_AFTER), [Effect::Sleep { machine, preview }]);
}

#[test]
fn a_preview_that_nobody_uses_is_not_bought_again_after_each_loss() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::PreviewRequested { preview, at: core.now });
    let lose = |core: &mut Core| {
        let deploy = core.deploy_job(1);
        let machine = core.machine_of(deploy);
        core.step(Event::MachineLaunched { machine, placement: None });
        core.connect(machine, &[]);
        core.report(machine, deploy, 1, DEPLOYED);
        core.wait(SLEEP_AFTER / 2);
        core.step(Event::MachineGone { machine, taken_back: false });
    };
    lose(&mut core);
    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }), "it is in use");
    lose(&mut core);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
}

#[test]
fn a_preview_that_fails_to_wake_is_tried_again_after_a_growing_pause() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    let request = |core: &mut Core| {
        core.step(Event::PreviewRequested { preview, at: core.now });
        matches!(core.preview(1).state, PreviewState::Waking { .. })
    };
    let fail = |core: &mut Core| {
        let deploy = core.deploy_job(1);
        let machine = core.machine_of(deploy);
        core.connect(machine, &[]);
        core.report(machine, deploy, 1, failed());
        core.step(Event::MachineGone { machine, taken_back: false });
        assert_eq!(core.preview(1).state, PreviewState::Asleep);
    };
    let minute = Duration::from_mins(1);

    assert!(request(&mut core));
    fail(&mut core);
    assert!(!request(&mut core), "browsers load the page again and again");
    core.wait(minute);
    assert!(request(&mut core));
    fail(&mut core);
    core.wait(minute);
    assert!(!request(&mut core));
    core.step(Event::PreviewWakeRequested { preview });
    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }), "a person may");
    let deploy = core.deploy_job(1);
    let machine = core.machine_of(deploy);
    core.connect(machine, &[]);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.preview(1).failed_wakes, None);
}

#[test]
fn a_preview_that_is_requested_while_it_goes_to_sleep_wakes_afterwards() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.step(Event::PreviewRequested { preview, at: core.now });

    core.archived(machine, preview);

    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }));
}

#[test]
fn a_lost_machine_is_replaced_from_the_last_archive() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::MachineGone { machine, taken_back: false });
    let deploy = core.deploy_job(1);
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: deploy });
    assert_ne!(core.machine_of(deploy), machine);
    assert_eq!(core.preview(1).id, preview);
    assert_eq!(core.preview(1).problem.as_deref(), Some("its machine was lost"));
}

#[test]
fn an_agent_that_is_away_for_too_long_loses_its_preview() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    core.disconnect(machine);
    let limit = PreviewLimits::default().reconnect;
    assert_eq!(core.wait(limit / 2), [], "its containers run");
    let effects = core.wait(limit / 2);
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
    assert!(matches!(core.preview(1).state, PreviewState::Waking { .. }));
}

#[test]
fn a_preview_is_archived_and_moves_when_the_cloud_takes_its_machine_back() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    let interruption = Interruption::Certain { at: core.now.after(Duration::from_mins(2)) };
    let effects = core.step(Event::MachineInterrupted { machine, interruption });
    assert_eq!(effects, [Effect::Sleep { machine, preview }]);
    let effects = core.archived(machine, preview);
    let deploy = core.deploy_job(1);
    let next = core.machine_of(deploy);
    assert_eq!(effects, [Effect::Terminate { machine }, Effect::Launch { machine: next }]);
}

#[test]
fn an_archive_that_takes_too_long_is_given_up_and_the_older_one_stays() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    let effects = core.wait(PreviewLimits::default().archive);
    assert_eq!(effects, [Effect::Terminate { machine }]);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    let preview = core.preview(1);
    assert_eq!(
        preview.problem.as_deref(),
        Some("its data was not archived within previews.archive-limit")
    );
    let loss = preview.data_loss.as_ref().unwrap();
    assert_eq!((loss.archived_at, loss.at), (None, core.now));
}

#[test]
fn a_preview_ends_with_its_environment_and_leaves_no_machine() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let effects = core.step(Event::EnvironmentClosed { environment: ENVIRONMENT });
    assert_eq!(effects, [Effect::Terminate { machine }]);
    assert_eq!(core.preview(1).state, PreviewState::Ending);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).state, PreviewState::Ended);
}

#[test]
fn a_preview_has_not_ended_before_its_machine_is_gone_although_its_run_is_forgotten() {
    let mut core = amd64(1);
    let (preview, run, machine) = core.live(1);
    core.step(Event::Forgotten { runs: vec![run], machines: Vec::new(), deliveries: Vec::new() });
    let effects = core.step(Event::PreviewEndRequested { preview });
    assert!(effects.contains(&Effect::Terminate { machine }), "{effects:?}");
    assert_eq!(core.preview(1).state, PreviewState::Ending);
    core.step(Event::MachineGone { machine, taken_back: false });
    let left = core.state.preview_of(ENVIRONMENT);
    assert!(left.is_none_or(Preview::has_ended), "{left:?}");
}

#[test]
fn a_preview_that_is_deployed_ends_with_its_environment() {
    let mut core = amd64(1);
    let (run, deploy) = core.built(1);
    let machine = core.launched(deploy);
    let effects = core.step(Event::EnvironmentClosed { environment: ENVIRONMENT });
    assert_eq!(effects, [Effect::Terminate { machine }]);
    assert!(matches!(core.run_state(run), RunState::Cancelled { .. }));
    assert_eq!(core.preview(1).state, PreviewState::Ended);
    let at = core.now;
    let preview = core.preview(1).id;
    assert_eq!(core.step(Event::PreviewRequested { preview, at }), [], "nothing wakes it");
}

#[test]
fn a_preview_without_pushes_and_visits_ends() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    core.wait(TTL);
    let ended = core.preview(1);
    assert_eq!(ended.state, PreviewState::Ended);
    assert!(ended.archive.is_none() && ended.shown.is_none());
}

#[test]
fn a_larger_disk_needs_another_machine_and_a_smaller_one_does_not() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let disk = |gib| {
        move |job: &mut PlannedJob| {
            let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!("{job:?}") };
            deployment.disk_gib = gib;
        }
    };
    let (_, deploy) = core.built_as(1, disk(10));
    assert_eq!(core.machine_of(deploy), machine);
    core.start(machine, deploy, 1);
    core.report(machine, deploy, 1, DEPLOYED);
    core.built_as(1, disk(30));
    assert!(matches!(core.preview(1).state, PreviewState::Archiving { .. }));
}

#[test]
fn another_size_of_machine_is_reached_through_the_archive() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    let (_, deploy) = core.built_as(1, |deploy| deploy.size = MachineSize::Large);
    assert_eq!(
        core.preview(1).state,
        PreviewState::Archiving { machine, since: core.now, wakes: true }
    );
    core.archived(machine, preview);
    assert_eq!(core.preview(1).state, PreviewState::Waking { job: deploy });
    assert_eq!(core.state.machines[&core.machine_of(deploy)].size, MachineSize::Large);
}

#[test]
fn a_registered_machine_of_the_preview_fleet_serves_and_is_freed_without_an_end() {
    let mut core = without_provider();
    let builder = core.registered_machine(Arch::Amd64);
    core.connect(builder, &[]);
    let machine = MachineId::from_bits(core.id());
    let (name, arch, fleet) = ("rack 2".to_owned(), Arch::Amd64, Fleet::Preview);
    core.step(Event::MachineRegistered { machine, name, arch, fleet });
    core.connect_serving(machine, &[]);
    let run = core.request(1);
    let build = core.build(Arch::Amd64);
    let deploy = core.deployment(&build);
    core.plan(run, &[build.clone(), deploy.clone()]);
    assert_eq!(core.machine_of(build.id), builder, "it takes no builds");
    core.report(builder, build.id, 1, PUSHED);
    assert_eq!(core.machine_of(deploy.id), machine);
    core.report(machine, deploy.id, 1, DEPLOYED);
    let preview = core.preview(1).id;
    let effects = core.step(Event::PreviewEndRequested { preview });
    assert_eq!(effects, [Effect::Retire { machine, preview }]);
    assert_eq!(core.machine_state(machine), MachineState::Ready);
}

#[test]
fn hello_is_compared_with_what_the_machine_should_serve() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.disconnect(machine);
    let stray = PreviewId::from_bits(9_999);
    let effects = core.connect_serving(machine, &[preview, stray]);
    assert_eq!(effects, [Effect::Retire { machine, preview: stray }]);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });
    core.connect(machine, &[]);
    assert_eq!(
        core.preview(1).state,
        PreviewState::Live { machine },
        "a simple agent does not say"
    );
    core.connect_serving(machine, &[]);
    assert!(
        matches!(core.preview(1).state, PreviewState::Waking { .. }),
        "its containers are gone"
    );
    assert_eq!(core.machine_state(machine), MachineState::Terminating);
}

#[test]
fn lost_data_is_noted_with_the_age_of_its_archive_until_there_is_a_newer_one() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    let made_at = core.now;
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    assert_eq!(core.preview(1).data_loss, None);

    core.step(Event::PreviewRequested { preview, at: core.now });
    let machine = core.deployed_on_new(core.deploy_job(1));
    core.now = core.now.after(Duration::from_mins(10));
    core.step(Event::MachineGone { machine, taken_back: false });
    let machine = core.deployed_on_new(core.deploy_job(1));
    let loss = core.preview(1).data_loss.clone().unwrap();
    assert_eq!((loss.archived_at, loss.at), (Some(made_at), core.now));
    assert_eq!(loss.reason, "its machine was lost");
    assert_eq!(core.preview(1).problem, None);

    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    assert_eq!(core.preview(1).data_loss, None);
}

#[test]
fn a_preview_without_volumes_sleeps_without_a_problem() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    let (archive, problem) = (None, None);
    core.step(Event::PreviewArchived { machine, preview, archive, problem });
    let asleep = core.preview(1);
    assert_eq!((asleep.state, &asleep.problem), (PreviewState::Asleep, &None));
    assert_eq!(asleep.data_loss, None);
}

pub(super) fn fresh(core: &Core, job: JobId) -> bool {
    match &core.state.jobs[&job].kind {
        JobKind::Deploy { deployment, .. } => deployment.fresh,
        other => panic!("{other:?} is no deployment"),
    }
}

#[test]
fn a_reset_deploys_the_shown_images_with_fresh_data_and_drops_the_archive() {
    let mut core = amd64(1);
    let (preview, first, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    core.step(Event::PreviewResetRequested { preview });
    let deploy = core.deploy_job(1);
    assert!(fresh(&core, deploy));
    let reset = core.state.jobs[&deploy].run;
    assert_eq!(core.state.runs[&reset].trigger, Trigger::Reset);
    assert_eq!(core.state.environments[&ENVIRONMENT].newest_run, Some(first));
    assert!(core.preview(1).archive.is_some(), "the data is there until the deployment completed");
    let machine = core.deployed_on_new(deploy);
    assert_eq!(core.preview(1).archive, None);

    // A live one, once at a time.
    core.step(Event::PreviewResetRequested { preview });
    let deploy = core.deploy_job(1);
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine, job: deploy });
    core.step(Event::PreviewResetRequested { preview });
    let machine = core.deployed_on_new(deploy);
    assert_eq!(core.preview(1).state, PreviewState::Live { machine });

    // The next loss does not delete the data again.
    core.step(Event::MachineGone { machine, taken_back: false });
    assert!(!fresh(&core, core.deploy_job(1)));
}

#[test]
fn a_reset_deploys_again_what_failed_at_first() {
    let mut core = amd64(1);
    let (_, deploy) = core.built(1);
    let machine = core.launched(deploy);
    core.connect(machine, &[]);
    core.report(machine, deploy, 1, failed());
    core.step(Event::MachineGone { machine, taken_back: false });
    let failed = core.preview(1);
    assert_eq!(failed.state, PreviewState::Failed { job: deploy });
    let preview = failed.id;
    core.step(Event::PreviewResetRequested { preview });
    let again = core.deploy_job(1);
    assert_ne!(again, deploy);
    core.deployed_on_new(again);
    let shown = core.preview(1).shown.as_ref().unwrap();
    let mut images = shown.deployment.used_images();
    assert!(images.all(|image| matches!(image, UsedImage::Image { .. })), "{shown:?}");
}

#[test]
fn a_deployment_that_waits_gets_the_fresh_data_of_a_reset() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.disconnect(machine);
    let (run, deploy) = core.built(1);
    assert!(core.job_state(deploy).is_waiting());
    let key = core.preview(1).key_number;
    core.step(Event::PreviewResetRequested { preview });
    assert_eq!(core.preview(1).key_number, key + 1, "links from before do not open it");
    core.connect_serving(machine, &[preview]);
    assert!(core.deploy_job(1) == deploy && fresh(&core, deploy));
    assert_eq!(core.state.jobs[&deploy].run, run);
}

#[test]
fn a_preview_that_is_ended_is_not_started_by_a_run_that_waited() {
    let mut core = amd64(1);
    core.state.limits.previews.max_concurrent = 1;
    let (first, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview: first });
    core.archived(machine, first);
    core.step(Event::MachineGone { machine, taken_back: false });
    let (_, deploy) = core.built(2);
    core.launched(deploy);
    let at = core.now;
    core.step(Event::PreviewRequested { preview: first, at });
    let mut wakes = core.state.runs.values().filter(|run| run.trigger == Trigger::Wake);
    let wake = wakes.next().unwrap().id;
    assert_eq!(core.preview(1).state, PreviewState::Asleep, "the other one has the machine");
    core.step(Event::PreviewEndRequested { preview: first });
    assert!(matches!(core.run_state(wake), RunState::Cancelled { .. }));
    assert_eq!(core.preview(1).state, PreviewState::Ended);
}

#[test]
fn an_extension_ends_at_most_thirty_days_from_now_and_never_earlier_than_before() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    let end = core.preview(1).ends_at().unwrap();
    let by = Duration::from_hours(3 * 24);
    core.step(Event::PreviewExtended { preview, by });
    assert_eq!(core.preview(1).ends_at(), Some(end.after(by)));
    core.step(Event::PreviewExtended { preview, by: Duration::MAX });
    let latest = core.now.after(PREVIEW_EXTENSION_MAX);
    assert_eq!(core.preview(1).ends_at(), Some(latest));
    core.now = core.now.before(Duration::from_secs(500));
    core.step(Event::PreviewExtended { preview, by });
    assert_eq!(core.preview(1).ends_at(), Some(latest), "the clock was set back");

    assert_eq!(core.state.next_deadline(), Some(latest));
    core.now = latest.before(Duration::from_secs(1));
    core.step(Event::Tick);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);
    core.wait(Duration::from_secs(1));
    let ended = core.preview(1);
    assert_eq!((ended.state, ended.extended_until), (PreviewState::Ended, None));
    core.step(Event::PreviewExtended { preview, by });
    assert_eq!(core.preview(1).extended_until, None, "nothing is there to stay");
}

#[test]
fn the_reported_run_of_an_open_preview_stays_in_memory() {
    let mut core = Core::linked();
    let run = core.new_run_of(HeadUpdate::first("a", 1));
    let deploy = core.plan_and_build(run, |_| {});
    core.deployed_on_new(deploy);
    core.report_all();
    assert_eq!(*core.run_state(run), RunState::Completed);
    core.state.take_ended();
    assert!(core.state.runs.contains_key(&run), "the comment shows it with the preview");
    let preview = core.preview(1).id;
    core.step(Event::PreviewEndRequested { preview });
    let machine = core.state.live_machines().next().unwrap().id;
    core.step(Event::MachineGone { machine, taken_back: false });
    core.report_all();
    core.report_all();
    core.state.take_ended();
    assert!(!core.state.runs.contains_key(&run));
}

#[test]
fn a_preview_takes_only_its_legal_transitions() {
    let (job, machine, at) = (JobId::from_bits(1), MachineId::from_bits(2), Timestamp(3));
    let events = [
        PreviewEvent::DeploymentBegan { job },
        PreviewEvent::Deployed { machine },
        PreviewEvent::DeploymentFailed,
        PreviewEvent::DeploymentCancelled,
        PreviewEvent::SleepRequested { at, wakes: false },
        PreviewEvent::Archived,
        PreviewEvent::MachineLost,
        PreviewEvent::EndRequested,
        PreviewEvent::MachinesGone,
        PreviewEvent::Requested,
    ];
    let legal = |state: PreviewState| {
        let applies = |index: &usize| state.transition(events[*index]).is_ok();
        (0..events.len()).filter(applies).collect::<Vec<_>>()
    };
    assert_eq!(legal(PreviewState::Deploying { job }), [1, 2, 3, 7]);
    assert_eq!(legal(PreviewState::Live { machine }), [0, 4, 6, 7]);
    assert_eq!(legal(PreviewState::Updating { machine, job }), [1, 2, 3, 6, 7]);
    assert_eq!(legal(PreviewState::Archiving { machine, since: at, wakes: true }), [5, 6, 7, 9]);
    assert_eq!(legal(PreviewState::Asleep), [0, 7]);
    assert_eq!(legal(PreviewState::Waking { job }), [1, 2, 3, 7]);
    assert_eq!(legal(PreviewState::Ending), [7, 8]);
    assert_eq!(legal(PreviewState::Ended), [0]);
    assert_eq!(legal(PreviewState::Failed { job }), [0, 7]);
}
