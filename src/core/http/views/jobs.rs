//! Jobs.

use stagely_agent::protocol::{FailureReason, Platform, Step};

use crate::api::{JobKindView, JobStatus, JobView, LostAttempt};
use crate::core::records::Records;
use crate::core::state::{Job, JobKind, JobState};

/// A job.
pub(in crate::core::http) fn job(records: &Records, job: &Job) -> JobView {
    let (kind, platforms, image): (_, Vec<Platform>, _) = match &job.kind {
        JobKind::Build { platform, image, .. } => (JobKindView::Build, vec![*platform], image),
        JobKind::Merge { platforms, image } => (JobKindView::Merge, platforms.clone(), image),
    };
    let end = End::of(&job.state);
    JobView {
        id: job.id,
        run_id: job.run,
        name: job.name.clone(),
        build: job.build.clone(),
        variant: job.variant.clone(),
        kind,
        platforms,
        status: job_status(&job.state),
        attempt: job.attempt,
        lost_attempts: job
            .lost_attempts
            .iter()
            .map(|lost| LostAttempt {
                attempt: lost.attempt,
                reason: lost.reason.clone(),
                message: lost.message.clone(),
            })
            .collect(),
        machine_id: job.state.machine(),
        image: image.clone(),
        digest: end.digest,
        reason: end.reason,
        error: end.error,
        exit_code: end.exit_code,
        warnings: job.warnings.clone(),
        steps: job.steps.clone(),
        cached_steps: job.steps.iter().filter(|step| step.cached).count(),
        cache_miss: job.cache_miss.clone(),
        tag: job.tag.clone(),
        emulated: job.emulated,
        slow_down: slow_down_of(records, job),
        took_over: job.took_over,
        kept_from: job.kept_from,
        queued_at: job.queued_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
    }
}

/// How far a job is.
pub(in crate::core::http) const fn job_status(state: &JobState) -> JobStatus {
    match state {
        JobState::Queued { .. } => JobStatus::Queued,
        JobState::Provisioning { .. } => JobStatus::Provisioning,
        JobState::Running { .. } => JobStatus::Running,
        JobState::Completed { .. } => JobStatus::Completed,
        JobState::Failed { .. } => JobStatus::Failed,
        JobState::Cancelled => JobStatus::Cancelled,
    }
}

/// What only an ended job has.
#[derive(Default)]
struct End {
    digest: Option<stagely_agent::protocol::Digest>,
    reason: Option<FailureReason>,
    error: Option<String>,
    exit_code: Option<i32>,
}

impl End {
    fn of(state: &JobState) -> Self {
        match state {
            JobState::Completed { digest } => Self { digest: digest.clone(), ..Self::default() },
            JobState::Failed { reason, message, exit_code } => Self {
                reason: Some(reason.clone()),
                error: Some(message.clone()),
                exit_code: *exit_code,
                digest: None,
            },
            JobState::Queued { .. }
            | JobState::Provisioning { .. }
            | JobState::Running { .. }
            | JobState::Cancelled => Self::default(),
        }
    }
}

/// How many times longer the job took than natively; `None` where it did not run under emulation, or
/// nothing native is known to compare with.
fn slow_down_of(records: &Records, job: &Job) -> Option<f64> {
    if !job.emulated || job.steps.is_empty() {
        return None;
    }
    slow_down(&records.native_twin(job)?.steps, &job.steps)
}

/// Less native time than this is too little to divide by.
const NATIVE_SECONDS_MIN: f64 = 0.05;

/// How many times longer the steps took under emulation that really ran both times.
fn slow_down(native: &[Step], emulated: &[Step]) -> Option<f64> {
    let mut seconds = (0.0, 0.0);
    for step in emulated.iter().filter(|step| !step.cached) {
        let twin = native.iter().find(|other| other.name == step.name && !other.cached);
        if let Some(twin) = twin {
            seconds = (seconds.0 + twin.seconds, seconds.1 + step.seconds);
        }
    }
    (seconds.0 > NATIVE_SECONDS_MIN).then(|| seconds.1 / seconds.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_steps_that_ran_both_times_say_how_slow_emulation_is() {
        let step = |name: &str, seconds, cached| Step { name: name.to_owned(), seconds, cached };
        let native =
            [step("RUN a", 1.0, false), step("RUN b", 2.0, false), step("RUN c", 9.0, true)];
        let emulated = [
            step("RUN a", 10.0, false),
            step("RUN b", 0.0, true),
            step("RUN c", 99.0, false),
            step("RUN d", 99.0, false),
        ];

        assert_eq!(slow_down(&native, &emulated), Some(10.0));
        assert_eq!(slow_down(&native[1..], &emulated), None, "nothing ran both times");
        assert_eq!(slow_down(&[step("RUN a", 0.01, false)], &emulated), None, "too little");
    }
}
