//! Which commits the data of a preview may depend on.

use super::head_updates::commit;
use super::previews::failed;
use super::*;

impl Core {
    fn commits_of_data(&self) -> Vec<String> {
        self.preview(1).commits_of_data().map(|commit| commit.as_str()[..1].to_owned()).collect()
    }

    /// Deploys another commit on `machine`, up to the DEPLOY.
    fn update(&mut self, sha: &str, machine: MachineId) -> JobId {
        let (run, deploy) = self.built(1);
        self.state.change_run(run, |run| run.commit = Some(commit(sha)));
        self.start(machine, deploy, 1);
        deploy
    }
}

#[test]
fn a_deployment_that_did_not_complete_may_have_changed_the_data() {
    let mut core = amd64(1);
    let (_, _, machine) = core.live(1);
    let shown = core.commits_of_data();
    assert_eq!(shown.len(), 1);

    let deploy = core.update("d", machine);
    core.report(machine, deploy, 1, failed());
    assert_eq!(core.commits_of_data(), [&*shown[0], "d"]);
    let deploy = core.update("e", machine);
    let run = core.state.jobs[&deploy].run;
    core.step(Event::CancelRequested { run, reason: CancelReason::Superseded });
    assert_eq!(core.commits_of_data(), [&*shown[0], "d", "e"]);
    core.report(machine, deploy, 1, JobOutcome::Cancelled);
    // Not after a failure before anything was started.
    let deploy = core.update("f", machine);
    let reason = FailureReason::Deploy { problem: stagely_protocol::DeployProblem::Compose };
    core.report(machine, deploy, 1, JobOutcome::Failed(JobFailure::new(reason, "no service")));
    assert_eq!(core.commits_of_data(), [&*shown[0], "d", "e"]);

    let deploy = core.update("a", machine);
    core.report(machine, deploy, 1, JobOutcome::Completed { digest: None });
    assert_eq!(core.commits_of_data(), ["a"]);
}

#[test]
fn a_deployment_of_edited_files_gets_a_new_machine_while_the_old_one_serves() {
    let mut core = amd64(1);
    let (_, _, old) = core.live(1);
    let (_, deploy) = core.built(1);
    let attempt = Attempt { job: deploy, number: 1 };
    let effects = core.step(Event::FilesNeedReset { machine: old, attempt });
    assert!(previews::fresh(&core, deploy));
    let new = core.machine_of(deploy);
    assert_eq!(effects, [Effect::Launch { machine: new }]);
    assert_eq!(core.preview(1).state, PreviewState::Updating { machine: old, job: deploy });
    assert_eq!(core.machine_state(old), MachineState::Ready);
    assert_eq!(core.state.jobs[&deploy].last_attempt(&core.state.limits), 4, "it does not count");
    for (machine, number) in [(old, 1), (new, 1)] {
        let late = Event::FilesNeedReset { machine, attempt: Attempt { number, ..attempt } };
        assert_eq!(core.step(late), []);
    }
}

#[test]
fn a_preview_that_wakes_with_edited_files_gets_fresh_data_at_once() {
    let mut core = amd64(1);
    let (preview, _, machine) = core.live(1);
    core.step(Event::PreviewSleepRequested { preview });
    core.archived(machine, preview);
    let (_, deploy) = core.built(1);
    let machine = core.launched(deploy);
    core.connect(machine, &[]);
    let attempt = Attempt { job: deploy, number: 1 };
    let effects = core.step(Event::FilesNeedReset { machine, attempt });
    assert!(previews::fresh(&core, deploy));
    assert_eq!(effects, [Effect::Assign { machine, attempt }]);
}
