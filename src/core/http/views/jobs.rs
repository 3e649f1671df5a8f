//! Jobs.

use stagely_protocol::{FailureReason, Platform, slow_down};
use stagely_state::{Job, JobFailure, JobKind, JobState};

use super::machines::queue_reason;
use super::waits::wait;
use crate::api::{CostView, JobKindView, JobStatus, JobView, LostAttempt, QueuePosition, TestView};
use crate::core::clock::now;
use crate::core::records::Records;

pub(in crate::core::http) fn job(records: &Records, job: &Job) -> JobView {
    let (kind, platforms, image): (_, Vec<Platform>, _) = match &job.kind {
        JobKind::Build { platform, image, .. } => {
            (JobKindView::Build, vec![*platform], Some(image))
        }
        JobKind::Merge { platforms, image } => (JobKindView::Merge, platforms.clone(), Some(image)),
        JobKind::Deploy { arch, .. } => {
            (JobKindView::Deploy, arch.iter().copied().map(Platform).collect(), None)
        }
        JobKind::Test { arch, .. } => {
            (JobKindView::Test, arch.iter().copied().map(Platform).collect(), None)
        }
    };
    let end = End::of(&job.state);
    JobView {
        id: job.id,
        run_id: job.run,
        name: job.name.clone(),
        build: job.build.clone(),
        variant: job.variant.to_string(),
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
        image: image.cloned(),
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
        reused_from: job.reused_from,
        cost: CostView::of(records.cost_of_job(job, now())),
        test: job.kind.test().map(|test| TestView {
            shard: test.shard,
            of_preview: test.preview_of.is_some(),
            results: job.results.clone(),
            artifacts: job.artifacts.clone(),
        }),
        wait: records.wait_of_job(job).map(wait),
        queue: queue_position(records, job),
        queued_at: job.queued_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
    }
}

/// The position of a waiting job in the queue.
fn queue_position(records: &Records, job: &Job) -> Option<QueuePosition> {
    let (index, queued) = records.queued(job.id)?;
    Some(QueuePosition { position: index + 1, reason: queue_reason(records, queued) })
}

pub(in crate::core::http) const fn job_status(state: &JobState) -> JobStatus {
    match state {
        JobState::Queued { .. } | JobState::Postponed { .. } => JobStatus::Queued,
        JobState::Provisioning { .. } => JobStatus::Provisioning,
        JobState::Running { .. } => JobStatus::Running,
        JobState::Completed { .. } => JobStatus::Completed,
        JobState::Failed(_) => JobStatus::Failed,
        JobState::Cancelled => JobStatus::Cancelled,
    }
}

/// The fields that only an ended job has.
#[derive(Default)]
struct End {
    digest: Option<stagely_protocol::Digest>,
    reason: Option<FailureReason>,
    error: Option<String>,
    exit_code: Option<i32>,
}

impl End {
    fn of(state: &JobState) -> Self {
        match state {
            JobState::Completed { digest } => Self { digest: digest.clone(), ..Self::default() },
            JobState::Failed(JobFailure { reason, message, exit_code }) => Self {
                reason: Some(reason.clone()),
                error: Some(message.clone()),
                exit_code: *exit_code,
                digest: None,
            },
            JobState::Queued { .. }
            | JobState::Postponed { .. }
            | JobState::Provisioning { .. }
            | JobState::Running { .. }
            | JobState::Cancelled => Self::default(),
        }
    }
}

/// The duration of an emulated job relative to a native build; `None` if it was not emulated, or if no native build is
/// known.
fn slow_down_of(records: &Records, job: &Job) -> Option<f64> {
    if !job.emulated || job.steps.is_empty() {
        return None;
    }
    slow_down(&records.native_twin(job)?.steps, &job.steps)
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::JobId;
    use stagely_state::{Fleet, QueueReason, QueuedJob, Timestamp};

    use super::*;
    use crate::core::fixtures;

    /// Jobs 1, 2 and 3 of one run. The queue has 3 and then 2.
    fn records() -> Records {
        let mut records = Records::default();
        for id in 1..=3 {
            let job = fixtures::job(id, 1, &format!("app{id}"), "linux/amd64");
            records.jobs.insert(job.id, job);
        }
        let first = QueuedJob { job: JobId::from_bits(3), reason: QueueReason::Nothing };
        let reason = QueueReason::FleetLimit { fleet: Fleet::Builder, max_concurrent: 50 };
        let second = QueuedJob { job: JobId::from_bits(2), reason };
        records.set_queue(vec![first, second]);
        records
    }

    fn place(records: &Records, id: u128) -> Option<(usize, String)> {
        let place = job(records, &records.jobs[&JobId::from_bits(id)]).queue?;
        Some((place.position, place.reason))
    }

    #[test]
    fn a_job_that_waits_shows_its_place_from_one_and_its_reason() {
        let records = records();

        assert_eq!(place(&records, 3), Some((1, "next".to_owned())));
        assert_eq!(place(&records, 2), Some((2, "waiting for 1 of 50 builders".to_owned())));
    }

    #[test]
    fn a_job_that_does_not_wait_has_no_place() {
        let mut records = records();
        let machine = stagely_state::ids::MachineId::from_bits(1);
        let running = JobState::Running { attempt: 1, machine, deadline: Timestamp(1) };
        records.jobs.get_mut(&JobId::from_bits(1)).unwrap().state = running;

        assert_eq!(place(&records, 1), None);
    }

    #[test]
    fn places_move_up_and_those_that_are_served_lose_theirs() {
        let mut records = records();
        let rest = records.queue()[1..].to_vec();

        records.set_queue(rest);

        assert_eq!(place(&records, 2).map(|(position, _)| position), Some(1));
        assert_eq!(place(&records, 3), None);
    }

    #[test]
    fn the_queue_and_the_job_show_the_same_position() {
        let records = records();

        let queue = super::super::queue(&records, 50);

        for listed in queue.jobs {
            let job = job(&records, &records.jobs[&listed.job_id]).queue.unwrap();
            assert_eq!((job.position, job.reason), (listed.position, listed.reason));
        }
    }
}
