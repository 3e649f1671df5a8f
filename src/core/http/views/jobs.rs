//! Jobs.

use stagely_agent::protocol::{FailureReason, Platform, slow_down};

use super::machines::queue_reason;
use crate::api::{JobKindView, JobStatus, JobView, LostAttempt, QueuePlace};
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
        queue: queue_place(records, job),
        queued_at: job.queued_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
    }
}

/// Where a job is in the queue, if it waits there. The whole queue is looked through only for a job that
/// does.
fn queue_place(records: &Records, job: &Job) -> Option<QueuePlace> {
    if !matches!(job.state, JobState::Queued { .. }) {
        return None;
    }
    let index = records.queue.iter().position(|queued| queued.job == job.id)?;
    let reason = queue_reason(records, &records.queue[index].reason);
    Some(QueuePlace { position: index + 1, reason })
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
