//! Test jobs: when one may begin, what becomes of it when its preview does not serve, and when it is not wanted.
//!
//! A test of a preview has a machine only while the preview is live and shows what the test is for. The step that moves
//! the preview away takes the machine from its tests. They begin again when the preview serves again.

use stagely_protocol::FailureReason;

use super::schedule::JobClass;
use super::step::Step;
use super::{
    DEPLOY_JOB, Fleet, Interruption, Job, JobEvent, JobFailure, JobKind, JobState, Machine,
    MachineState, Preview, PreviewEvent, PreviewState, QueueReason, State, StopReason, Test,
};
use crate::ids::{JobId, MachineId, PreviewId, RunId};

const NO_TESTER: &str = "there is no machine for tests: set `provider` in `[testers]` of stagely.toml, or register a machine \
     with `stagely machines add --fleet tester`";

const PREVIEW_MOVED: &str = "the preview stopped serving while it was tested";

const PREVIEW_OVER: &str = "it was not run, because the preview that it tests has ended";

const PREVIEW_REPLACED: &str = "it was not run, because the preview shows another run by now";

const NOT_DEPLOYED: &str = "it was not run, because the preview was not deployed";

/// What follows for a test that waits for its preview, or for the preview's machine.
enum TestTarget {
    /// The machine that serves the preview.
    Machine(MachineId),
    /// The preview is woken first.
    Wake(PreviewId),
    Wait(QueueReason),
    Fail(JobFailure),
    /// Nothing is left to be tested; the reason is for people.
    Drop(&'static str),
}

impl JobKind {
    /// What the job tests, if it is a test.
    pub const fn test(&self) -> Option<&Test> {
        match self {
            Self::Test { test, .. } => Some(test),
            Self::Build { .. } | Self::Merge { .. } | Self::Deploy { .. } => None,
        }
    }
}

impl Step<'_> {
    /// Decides about the tests that wait for their preview. Returns whether something has changed, which may be what
    /// other jobs wait for.
    pub(super) fn schedule_tests(&mut self) -> bool {
        let waiting: Vec<JobId> = self.state.index.tests.iter().map(|(_, job)| *job).collect();
        let changed = waiting.into_iter().filter(|job| self.schedule_test(*job));
        let has_changed = changed.count() > 0;
        self.fail_without_tester() || has_changed
    }

    fn schedule_test(&mut self, id: JobId) -> bool {
        // An earlier one may have changed its preview.
        let Some(job) = self.state.jobs.get(&id).filter(|job| job.is_queued()) else {
            return false;
        };
        match self.state.test_target(job) {
            TestTarget::Machine(machine) => {
                let end = self.now.after(job.timeout).after(self.state.limits.grace_of(job));
                self.begin_attempt(id, machine);
                self.extend_lease(machine, end);
                self.assign(machine, id);
            }
            TestTarget::Wake(preview) => return self.wake_for_test(preview),
            TestTarget::Wait(_) => return false,
            TestTarget::Fail(failure) => self.fail_job(id, failure),
            TestTarget::Drop(reason) => self.drop_test(id, reason),
        }
        true
    }

    /// Fails the tests that no machine could ever run.
    fn fail_without_tester(&mut self) -> bool {
        let mut has_failed = false;
        while let Some(id) = self.state.next_without_tester() {
            self.fail_job(id, JobFailure::new(FailureReason::Provider, NO_TESTER));
            has_failed = true;
        }
        has_failed
    }

    fn wake_for_test(&mut self, id: PreviewId) -> bool {
        let Some(preview) = self.state.previews.get(&id) else { return false };
        if matches!(preview.state, PreviewState::Archiving { .. }) {
            return self.move_preview(id, PreviewEvent::Requested);
        }
        self.preview_requests.wake.push(id);
        true
    }

    /// The preview has left `before`. Its tests lose their machines if it does not serve any more, and are cancelled if
    /// it ends.
    pub(super) fn interrupt_tests(&mut self, id: PreviewId, before: PreviewState) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let is_live = |state: PreviewState| matches!(state, PreviewState::Live { .. });
        if !is_live(before) || is_live(preview.state) {
            return;
        }
        let is_over = preview.state.is_over();
        let tests: Vec<JobId> = self.state.open_tests_of(preview).map(|job| job.id).collect();
        for test in tests {
            if is_over {
                self.drop_test(test, PREVIEW_OVER);
            } else {
                self.interrupt_test(test);
            }
        }
    }

    fn interrupt_test(&mut self, id: JobId) {
        let Some(machine) = self.job_state(id).and_then(JobState::machine) else { return };
        self.stop_test(machine, id, StopReason::PreviewLost);
        self.fail_attempt(id, JobFailure::machine_lost(PREVIEW_MOVED));
    }

    /// Stops a test. The machine of its preview goes on serving, or is ended by others.
    fn stop_test(&mut self, machine: MachineId, id: JobId, reason: StopReason) {
        let is_ending = self.state.machines.get(&machine).is_none_or(|machine| {
            matches!(machine.state, MachineState::Terminating | MachineState::Terminated)
        });
        if !is_ending {
            self.stop_work(machine, id, reason);
        }
    }

    /// Cancels a test alone, for want of anything to be tested. `reason` is for people.
    pub(super) fn drop_test(&mut self, id: JobId, reason: &str) {
        let Some(job) = self.state.jobs.get(&id).filter(|job| !job.state.is_final()) else {
            return;
        };
        let run = job.run;
        self.state.change_job(id, |job| job.warnings.push(reason.to_owned()));
        if let Some(machine) = self.job_state(id).and_then(JobState::machine) {
            self.stop_test(machine, id, StopReason::PreviewLost);
        }
        self.close_job(id, JobEvent::Cancelled);
        self.settle_run(run);
    }

    /// Cancels the tests of a deployment that was cancelled.
    pub(super) fn drop_tests_of(&mut self, deployment: JobId, run: RunId) {
        let is_its_own = |job: &&Job| job.needs.contains(&deployment) && job.kind.test().is_some();
        let tests: Vec<JobId> =
            self.state.jobs_of(run).filter(is_its_own).map(|job| job.id).collect();
        for test in tests {
            self.drop_test(test, NOT_DEPLOYED);
        }
    }
}

impl State {
    /// The open tests of what the preview shows, whose images are there.
    pub(super) fn open_tests_of(&self, preview: &Preview) -> impl Iterator<Item = &Job> {
        let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
        let open = self.index.preview_tests.get(&preview.environment).into_iter().flatten();
        open.filter_map(|job| self.jobs.get(job))
            .filter(move |job| job.kind.test().is_some_and(|test| test.preview_of == shown))
    }

    /// Whether the preview is tested, or is about to be. It stays as it is meanwhile.
    pub(super) fn is_under_test(&self, preview: &Preview) -> bool {
        self.open_tests_of(preview).next().is_some()
    }

    pub(super) fn is_tested(&self, preview: PreviewId) -> bool {
        self.previews.get(&preview).is_some_and(|preview| self.is_under_test(preview))
    }

    /// What the queued tests in the index of tests wait for, the oldest first.
    pub(super) fn test_queue(&self) -> impl Iterator<Item = (JobId, QueueReason)> {
        let waiting = self.index.tests.iter().filter_map(|(_, id)| self.jobs.get(id));
        waiting.map(|job| match self.test_target(job) {
            TestTarget::Wait(reason) => (job.id, reason),
            _ => (job.id, QueueReason::Nothing),
        })
    }

    fn test_target(&self, job: &Job) -> TestTarget {
        let Some(test) = job.kind.test() else { return TestTarget::Wait(QueueReason::Preview) };
        let environment = self.runs.get(&job.run).map(|run| run.environment);
        let preview = environment.and_then(|environment| self.preview_of(environment));
        let Some(preview) = preview.filter(|preview| !preview.state.is_over()) else {
            return TestTarget::Drop(PREVIEW_OVER);
        };
        let Some(shown) = &preview.shown else { return TestTarget::Drop(PREVIEW_OVER) };
        if test.preview_of != Some(shown.requested_at) {
            return TestTarget::Drop(PREVIEW_REPLACED);
        }
        if !test.is_on_preview() && !self.has_testers() {
            return TestTarget::Fail(JobFailure::new(FailureReason::Provider, NO_TESTER));
        }
        match preview.state {
            PreviewState::Live { machine } if test.is_on_preview() => self.on_serving(job, machine),
            PreviewState::Archiving { wakes: false, .. } => TestTarget::Wake(preview.id),
            PreviewState::Asleep => self.woken(preview),
            PreviewState::Live { .. }
            | PreviewState::Deploying { .. }
            | PreviewState::Updating { .. }
            | PreviewState::Archiving { wakes: true, .. }
            | PreviewState::Waking { .. }
            | PreviewState::Ending
            | PreviewState::Ended
            | PreviewState::Failed { .. } => TestTarget::Wait(QueueReason::Preview),
        }
    }

    /// The machine that serves, unless it is not free, or a budget does not suffice for its longer life.
    fn on_serving(&self, job: &Job, id: MachineId) -> TestTarget {
        let is_free = |machine: &&Machine| {
            let is_taken_back = matches!(machine.interruption, Some(Interruption::Certain { .. }));
            machine.connected && machine.state == MachineState::Ready && !is_taken_back
        };
        let Some(machine) = self.machines.get(&id).filter(is_free) else {
            return TestTarget::Wait(QueueReason::Preview);
        };
        let end = self.stepped_at.after(job.timeout).after(self.limits.grace_of(job));
        match self.lease_shortage(machine, end.after(self.limits.job_grace)) {
            Some(shortage) => TestTarget::Wait(QueueReason::Budget(shortage)),
            None => TestTarget::Machine(machine.id),
        }
    }

    /// A preview that could not be started again is not tried for each test once more.
    fn woken(&self, preview: &Preview) -> TestTarget {
        if preview.failed_wakes.is_some() {
            let why = preview.problem.as_deref().unwrap_or("it did not start");
            let message = format!("the preview could not be woken: {why}");
            let reason = FailureReason::DependencyFailed { job: DEPLOY_JOB.to_owned() };
            return TestTarget::Fail(JobFailure::new(reason, message));
        }
        if self.is_to_be_deployed(preview) {
            return TestTarget::Wait(QueueReason::Preview);
        }
        TestTarget::Wake(preview.id)
    }

    /// A ready test that no machine could ever run.
    fn next_without_tester(&self) -> Option<JobId> {
        let of_testers = |class: &JobClass| class.fleet() == Fleet::Tester;
        let mut ready = self.index.ready.iter().filter(|((_, class), _)| of_testers(class));
        let (_, jobs) = ready.next()?;
        let job = jobs.first().map(|(_, job)| *job);
        job.filter(|_| !self.has_testers())
    }

    fn has_testers(&self) -> bool {
        !self.available(Fleet::Tester).is_empty()
    }
}

impl Job {
    pub(super) const fn is_queued(&self) -> bool {
        matches!(self.state, JobState::Queued { .. })
    }

    /// Whether the job waits for the preview of its environment, or for the machine that serves it. `preview` is that
    /// preview.
    pub(super) fn waits_for_preview(&self, preview: Option<&Preview>) -> bool {
        let Some(test) = self.kind.test() else { return false };
        let Some(requested_at) = test.preview_of else { return false };
        let is_shown = preview.is_some_and(|preview| {
            let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
            matches!(preview.state, PreviewState::Live { .. }) && shown == Some(requested_at)
        });
        test.is_on_preview() || !is_shown
    }
}
