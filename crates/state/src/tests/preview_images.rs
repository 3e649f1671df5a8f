//! Images of previews that are gone from the registry.

use stagely_protocol::RegistryProblem;

use super::previews::{DEPLOYED, fresh};
use super::*;
use crate::ids::PreviewId;

const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(1);

fn gone() -> JobOutcome {
    let reason = FailureReason::Registry { problem: RegistryProblem::Missing };
    JobOutcome::Failed(JobFailure::new(reason, "cannot pull app: manifest unknown"))
}

impl Core {
    /// A sleeping preview and its run.
    fn asleep(&mut self) -> (PreviewId, RunId) {
        let (preview, run, machine) = self.live(1);
        self.step(Event::PreviewSleepRequested { preview });
        self.archived(machine, preview);
        self.step(Event::MachineGone { machine, taken_back: false });
        (preview, run)
    }

    /// The deploy job gets a machine, and does not find its images.
    fn finds_no_images(&mut self, deploy: JobId) {
        let machine = self.launched(deploy);
        self.connect(machine, &[]);
        self.report(machine, deploy, 1, gone());
        self.step(Event::MachineGone { machine, taken_back: false });
    }

    fn wake(&mut self, preview: PreviewId) {
        self.step(Event::PreviewWakeRequested { preview });
    }

    /// The runs that build lost images.
    fn rebuilds(&self) -> Vec<&Run> {
        let runs = self.state.runs.values();
        runs.filter(|run| run.trigger == Trigger::ImagesGone).collect()
    }

    fn problem(&self) -> &str {
        self.preview(1).problem.as_deref().unwrap()
    }
}

#[test]
fn images_that_are_gone_when_a_preview_wakes_are_built_and_deployed_again() {
    let mut core = amd64(1);
    let (preview, run) = core.asleep();
    core.wake(preview);
    core.finds_no_images(core.deploy_job(1));

    let [rebuild] = core.rebuilds()[..] else { panic!("{:?}", core.rebuilds()) };
    let first = &core.state.runs[&run];
    assert_eq!(rebuild.requested_commit(), first.commit);
    assert_eq!((rebuild.rebuilds, rebuild.reuses), (Some(run), None));
    assert_eq!((rebuild.with_preview, rebuild.with_fresh_data), (Some(true), false));
    assert!(matches!(rebuild.state, RunState::Planning { .. }), "it is planned at once");
    let rebuild = rebuild.id;
    assert_eq!(core.state.environments[&ENVIRONMENT].newest_run, Some(rebuild));
    let expected = format!("manifest unknown; its images are built again in {rebuild}");
    assert!(core.problem().ends_with(&expected), "{}", core.problem());
    // Nobody buys a machine for images that are not there.
    core.wake(preview);
    assert_eq!(core.preview(1).state, PreviewState::Asleep);

    let deploy = core.plan_and_build(rebuild, |_| {});
    core.deployed_on_new(deploy);
    let woken = core.preview(1);
    assert!(matches!(woken.state, PreviewState::Live { .. }));
    assert_eq!((&woken.problem, woken.rebuilt_by, woken.failed_wakes), (&None, None, None));
}

#[test]
fn images_that_are_gone_before_the_first_deployment_are_built_again_once() {
    let mut core = amd64(1);
    let (_, deploy) = core.built(1);
    core.finds_no_images(deploy);
    let [rebuild] = core.rebuilds()[..] else { panic!("{:?}", core.rebuilds()) };
    let rebuild = rebuild.id;
    let deploy = core.plan_and_build(rebuild, |_| {});
    core.finds_no_images(deploy);

    assert_eq!(core.rebuilds().len(), 1);
    assert_eq!(core.preview(1).state, PreviewState::Failed { job: deploy });
    let expected = format!("they were built again in {rebuild} already");
    assert!(core.problem().contains(&expected), "{}", core.problem());
}

#[test]
fn a_preview_whose_rebuild_failed_is_not_built_again_by_each_visit() {
    let mut core = amd64(1);
    let (preview, _) = core.asleep();
    core.wake(preview);
    core.finds_no_images(core.deploy_job(1));
    let rebuild = core.rebuilds()[0].id;
    core.step(Event::CancelRequested { run: rebuild, reason: CancelReason::Requested });
    core.wake(preview);
    core.finds_no_images(core.deploy_job(1));
    assert_eq!(core.rebuilds().len(), 1);
    assert!(core.problem().contains("already"), "{}", core.problem());
}

#[test]
fn images_of_an_older_commit_are_built_again_without_becoming_the_newest() {
    let mut core = amd64(1);
    let (preview, _) = core.asleep();
    let newer = core.request(1);
    let failure = PlanFailure { reason: FailureReason::Manifest, message: String::new() };
    core.step(Event::RunPlanned { run: newer, plan: Err(failure) });
    core.wake(preview);
    core.finds_no_images(core.deploy_job(1));
    assert_eq!(core.rebuilds().len(), 1);
    assert_eq!(core.state.environments[&ENVIRONMENT].newest_run, Some(newer));
}

#[test]
fn images_with_arguments_of_a_caller_are_not_built_without_them() {
    let mut core = amd64(1);
    let run = core.request_as(1, |run| run.set_names = BTreeSet::from(["MODE".to_owned()]));
    let deploy = core.plan_and_build(run, |_| {});
    core.finds_no_images(deploy);
    assert!(core.rebuilds().is_empty());
    let expected = format!("{run} had build arguments that core does not keep");
    assert!(core.problem().contains(&expected), "{}", core.problem());
}

#[test]
fn the_fresh_data_of_a_reset_comes_with_the_images_that_are_built_again() {
    let mut core = amd64(1);
    let (preview, _) = core.asleep();
    core.step(Event::PreviewResetRequested { preview });
    core.finds_no_images(core.deploy_job(1));
    let rebuild = core.rebuilds()[0].id;
    let deploy = core.plan_and_build(rebuild, |_| {});
    assert!(fresh(&core, deploy));

    // A reset that comes during the builds counts, too.
    core.deployed_on_new(deploy);
    let PreviewState::Live { machine } = core.preview(1).state else { panic!() };
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    core.step(Event::MachineGone { machine, taken_back: false });
    core.wake(preview);
    core.finds_no_images(core.deploy_job(1));
    core.step(Event::PreviewResetRequested { preview });
    let rebuild = core.rebuilds()[1].id;
    assert!(core.state.runs[&rebuild].with_fresh_data);
    let deploy = core.plan_and_build(rebuild, |_| {});
    assert!(fresh(&core, deploy));
    let machine = core.launched(deploy);
    core.connect_serving(machine, &[]);
    core.start(machine, deploy, 1);
    core.report(machine, deploy, 1, DEPLOYED);
    assert_eq!(core.preview(1).archive, None);
}
