//! Interruptions: the cloud takes a machine back, and jobs that cannot end before go to another machine.

use std::time::Duration;

use super::step::Step;
use super::{
    Attempt, Interruption, Job, JobFailure, JobKind, JobState, Machine, State, StopReason,
    Timestamp,
};
use crate::ids::{JobId, MachineId};

/// The longest time that a merge takes. A merge that can end before the interruption stays.
const MERGE_TIME: Duration = Duration::from_secs(30);

/// The expected time of a build, in percent of its last time.
const BUILD_MARGIN_PERCENT: u32 = 125;

/// The jobs of an interrupted machine fail this long after its time, if its end was not reported.
pub(super) const TAKEN_BACK_GRACE: Duration = Duration::from_secs(10);

impl Step<'_> {
    pub(super) fn machine_interrupted(&mut self, id: MachineId, interruption: Interruption) {
        let Some(machine) = self.state.machines.get(&id).filter(|machine| machine.is_in_use())
        else {
            return;
        };
        let is_certain = matches!(machine.interruption, Some(Interruption::Certain { .. }));
        let is_known = machine.interruption == Some(interruption);
        if is_known || is_certain && interruption == Interruption::Likely {
            return;
        }
        self.state.change_machine(id, |machine| machine.interruption = Some(interruption));
        if let Interruption::Certain { at } = interruption {
            self.clear_by(id, at);
            let preview = self.state.preview_on(id).map(|preview| preview.id);
            if let Some(preview) = preview {
                self.send_to_sleep(preview, true);
            }
        }
    }

    /// Stops the work on the machine that does not end before `at`.
    fn clear_by(&mut self, id: MachineId, at: Timestamp) {
        self.cut_export(id, at);
        let Some(Attempt { job, .. }) = self.attempt_on(id) else { return };
        if !self.state.ends_by(job, at, self.now) {
            self.stop_work(id, job, StopReason::Interrupted);
            self.fail_attempt(job, JobFailure::taken_back());
        }
    }

    /// Forgets the interruption of a registered machine at its HELLO. The machine may have been restarted, and its
    /// agent repeats a notice that still holds.
    pub(super) fn forget_interruption(&mut self, id: MachineId) {
        let machine = self.state.machines.get(&id);
        let is_interrupted = machine.is_some_and(|machine| machine.interruption.is_some());
        if is_interrupted && self.is_registered(id) {
            self.state.change_machine(id, |machine| machine.interruption = None);
        }
    }

    /// Fails the job of a machine whose time is over.
    pub(super) fn take_back(&mut self, id: MachineId) {
        self.lose_job(id, JobFailure::taken_back());
        self.give_up_agent(id);
    }

    /// Why the work of a machine is lost: because of the interruption if it was certain, otherwise because of
    /// `message`.
    pub(super) fn loss_of(&self, id: MachineId, message: &str) -> JobFailure {
        let machine = self.state.machines.get(&id);
        match machine.and_then(|machine| machine.interruption) {
            Some(Interruption::Certain { .. }) => JobFailure::taken_back(),
            Some(Interruption::Likely) | None => JobFailure::machine_lost(message),
        }
    }
}

impl State {
    /// When the job of an interrupted machine fails at the latest.
    pub(super) fn taken_back_at(&self, machine: &Machine) -> Option<Timestamp> {
        let Some(Interruption::Certain { at }) = machine.interruption else { return None };
        let job = machine.job().and_then(|job| self.jobs.get(&job))?;
        job.state.attempt_on(machine.id).map(|_| at.after(TAKEN_BACK_GRACE))
    }

    /// Whether the job is likely to end before `at`.
    fn ends_by(&self, id: JobId, at: Timestamp, now: Timestamp) -> bool {
        let Some(job) = self.jobs.get(&id) else { return false };
        match (&job.kind, &job.state) {
            (JobKind::Merge { .. }, _) => now.after(MERGE_TIME) <= at,
            // The preview leaves the machine.
            (JobKind::Test { test, .. }, _) if test.is_on_preview() => false,
            (JobKind::Build { .. } | JobKind::Test { .. }, JobState::Running { deadline, .. }) => {
                let usual = self.usual_time(job).map(|time| time * BUILD_MARGIN_PERCENT / 100);
                let expected = job.started_at.zip(usual).map(|(since, time)| since.after(time));
                // A build that already takes longer than expected has no known end.
                *deadline <= at || expected.is_some_and(|end| now <= end && end <= at)
            }
            (JobKind::Build { .. } | JobKind::Deploy { .. } | JobKind::Test { .. }, _) => false,
        }
    }

    /// The time of the same job in the newest run of the same environment that has completed it.
    fn usual_time(&self, job: &Job) -> Option<Duration> {
        let environment = self.runs.get(&job.run)?.environment;
        let usual = self.environments.get(&environment)?.build_times.get(&job.name)?;
        (usual.emulated == job.emulated).then_some(usual.time)
    }
}

impl Machine {
    /// Whether its end was not requested.
    fn is_in_use(&self) -> bool {
        use super::MachineState as S;
        match self.state {
            S::Requested | S::Booting | S::Ready | S::Busy { .. } => true,
            S::Terminating | S::Terminated => false,
        }
    }
}
