//! What a step may do to tests.

use stagely_state::{Job, JobFailure, JobState, RunState, State};

use super::{Before, LiveWork};
use crate::world::World;

/// Why an attempt is lost whose preview does not serve any more.
const PREVIEW_LOST: &str = "the preview stopped serving while it was tested";

impl LiveWork {
    /// Whether it is a test that has lost its machine or was cancelled because its preview does not serve any more.
    pub(super) fn is_preview_lost(&self, world: &World) -> bool {
        let job = world.core.jobs.get(&self.job.id);
        self.job.kind.is_test()
            && job.is_some_and(|job| is_lost(job, self.attempt.number, &world.core))
    }
}

fn is_lost(job: &Job, attempt: u32, core: &State) -> bool {
    let is_run_cancelled =
        core.runs.get(&job.run).is_some_and(|run| matches!(run.state, RunState::Cancelled { .. }));
    let lost = job.lost_attempts.iter().find(|lost| lost.attempt == attempt);
    match (&job.state, lost) {
        (_, Some(lost)) => lost.message == PREVIEW_LOST,
        (JobState::Failed(JobFailure { message, .. }), None) => message == PREVIEW_LOST,
        (JobState::Cancelled, None) => !is_run_cancelled,
        _ => false,
    }
}

impl Before {
    /// Counts what happens to tests.
    pub(crate) fn note_tests(&self, world: &mut World) {
        let mut counted = Vec::new();
        let core = &world.core;
        for work in self.work.iter().filter(|work| work.job.kind.is_test()) {
            if work.is_preview_lost(world) {
                counted.push("a test loses its preview");
            }
        }
        let is_new = |job: &&Job| job.kind.is_test() && !self.ended_jobs.contains(&job.id);
        for job in core.jobs.values().filter(is_new) {
            match &job.state {
                JobState::Completed { .. } if job.reused_from.is_some() => {
                    counted.push("a test is reused");
                }
                JobState::Completed { .. } => counted.push("a test passes"),
                JobState::Failed(_) => counted.push("a test fails"),
                JobState::Cancelled => counted.push("a test is cancelled"),
                JobState::Queued { .. }
                | JobState::Postponed { .. }
                | JobState::Provisioning { .. }
                | JobState::Running { .. } => {}
            }
        }
        for what in counted {
            world.count(what);
        }
    }
}
