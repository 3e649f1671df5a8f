//! The invariants of tests: what they run against, and whose results count.

use stagely_state::{
    Attempt, Fleet, Job, JobState, Machine, MachineState, Preview, PreviewState, State, Test,
};

use crate::agents::results;
use crate::{fairness, money};

pub(super) fn check(core: &State) {
    for job in core.jobs.values() {
        if job.kind.is_test() {
            check_test(core, job);
        } else {
            assert_eq!((&job.results, &job.artifacts), (&None, &None), "{} tests nothing", job.id);
        }
    }
}

fn check_test(core: &State, job: &Job) {
    let id = job.id;
    if let Some(machine) = job.state.machine().map(|machine| &core.machines[&machine]) {
        assert!(fairness::serves_tested(core, job), "{id} tests a preview that does not serve it");
        check_machine(job, machine);
    }
    match &job.state {
        // The results are those of the attempt that has ended the test.
        JobState::Completed { .. } if job.reused_from.is_none() => {
            let attempt = Attempt { job: id, number: job.attempt };
            assert_eq!(job.results, Some(results(attempt)), "{id} has the results of others");
        }
        JobState::Completed { .. } => assert!(job.results.is_some(), "{id} reuses no results"),
        JobState::Failed(_) => {
            let passed = job.results.as_ref().map(|results| results.passed);
            assert!(
                passed.is_none_or(|passed| passed == u64::from(job.attempt)),
                "{id}: {passed:?}"
            );
        }
        JobState::Cancelled
        | JobState::Queued { .. }
        | JobState::Postponed { .. }
        | JobState::Provisioning { .. }
        | JobState::Running { .. } => assert_eq!(job.results, None, "{id} has no results yet"),
    }
    if matches!(job.state, JobState::Queued { .. }) && has_all_needs(core, job) {
        check_waiting(core, job);
    }
}

fn check_machine(job: &Job, machine: &Machine) {
    let is_on_preview = job.kind.test().is_some_and(Test::is_on_preview);
    let fleet = if is_on_preview { Fleet::Preview } else { Fleet::Tester };
    assert_eq!(machine.fleet, fleet, "{} is on {}", job.id, machine.id);
    assert_eq!(machine.serves.is_some(), is_on_preview, "{} is on {}", job.id, machine.id);
}

fn has_all_needs(core: &State, job: &Job) -> bool {
    job.needs.iter().all(|id| matches!(core.jobs[id].state, JobState::Completed { .. }))
}

/// A test waits only for what will come.
fn check_waiting(core: &State, job: &Job) {
    let id = job.id;
    let Some(test) = job.kind.test().filter(|test| test.preview_of.is_some()) else { return };
    let environment = core.runs[&job.run].environment;
    let preview = core.preview_of(environment).expect("a test of nothing does not wait");
    let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
    assert_eq!(shown, test.preview_of, "{id} waits for something that is not shown any more");
    match preview.state {
        PreviewState::Live { machine } if test.is_on_preview() => {
            let machine = &core.machines[&machine];
            let is_free = machine.connected && machine.state == MachineState::Ready;
            let may_wait = machine.interruption.is_some() || money::is_short_of_money(core, id);
            assert!(!is_free || may_wait, "{id} waits for nothing");
        }
        PreviewState::Live { .. }
        | PreviewState::Updating { .. }
        | PreviewState::Waking { .. }
        | PreviewState::Archiving { wakes: true, .. } => {}
        PreviewState::Asleep => assert!(is_to_be_deployed(core, preview), "{id} wakes nothing"),
        PreviewState::Deploying { .. }
        | PreviewState::Archiving { wakes: false, .. }
        | PreviewState::Ending
        | PreviewState::Ended
        | PreviewState::Failed { .. } => panic!("{id} waits for {:?}", preview.state),
    }
}

/// Whether a deployment of the preview is open, or a run that builds its images again.
fn is_to_be_deployed(core: &State, preview: &Preview) -> bool {
    let is_rebuilt = preview
        .rebuilt_by
        .and_then(|run| core.runs.get(&run))
        .is_some_and(|run| !run.state.is_final());
    let mut jobs = core.jobs.values();
    let is_open = |job: &Job| job.kind.is_deploy() && !job.state.is_final();
    is_rebuilt
        || jobs.any(|job| is_open(job) && core.runs[&job.run].environment == preview.environment)
}
