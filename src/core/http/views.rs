//! Records as the API shows them.

use stagely_agent::protocol::{FailureReason, Platform};

use crate::api::{
    JobKindView, JobStatus, JobView, LostAttempt, MachineStatus, MachineView, QueueView,
    QueuedJobView, RunStatus, RunView,
};
use crate::core::records::Records;
use crate::core::state::{
    Job, JobKind, JobState, Machine, MachineKind, MachineState, QueueReason, Run, RunState,
};

/// A run without its jobs, as lists show it.
pub(super) fn run_summary(records: &Records, run: &Run) -> RunView {
    let project = records.projects.get(&run.project);
    let environment = records.environments.get(&run.environment);
    let (status, plan_error, cancel_reason) = match &run.state {
        RunState::Pending => (RunStatus::Pending, None, None),
        RunState::Building => (RunStatus::Building, None, None),
        RunState::Completed => (RunStatus::Completed, None, None),
        RunState::Failed { plan_error } => (RunStatus::Failed, plan_error.clone(), None),
        RunState::Cancelled { reason } => (RunStatus::Cancelled, None, Some(*reason)),
    };
    let (reason, error) = plan_error.map(|it| (it.reason, it.message)).unzip();
    RunView {
        id: run.id,
        status,
        reason,
        error,
        cancel_reason,
        project_id: run.project,
        project: project.map(|project| project.name.clone()).unwrap_or_default(),
        environment_id: run.environment,
        environment: environment.map(|found| found.name.clone()).unwrap_or_default(),
        repository: run.repository.clone(),
        reference: run.requested_ref.clone(),
        commit: run.commit.clone(),
        trigger: run.trigger,
        created_at: run.created_at,
        ended_at: run.ended_at,
        pull_request: environment.and_then(|found| found.pull_request),
        keeps: run.keeps,
        skipped: Vec::new(),
        saved_machines: 0,
        live_machines: records.live_of_run.get(&run.id).copied().unwrap_or_default(),
        jobs: Vec::new(),
    }
}

/// A run with its jobs.
pub(super) fn run(records: &Records, run: &Run) -> RunView {
    let jobs = records.jobs_of(run.id).map(job).collect();
    RunView { jobs, ..run_summary(records, run) }
}

/// A job.
pub(super) fn job(job: &Job) -> JobView {
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
        slow_down: None,
        took_over: job.took_over,
        kept_from: job.kept_from,
        queued_at: job.queued_at,
        started_at: job.started_at,
        ended_at: job.ended_at,
    }
}

/// How far a job is.
pub(super) const fn job_status(state: &JobState) -> JobStatus {
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

/// A machine.
pub(super) fn machine(machine: &Machine) -> MachineView {
    let job = match machine.state {
        MachineState::Busy { job, .. } => Some(job),
        _ => machine.requested_for,
    };
    MachineView {
        id: machine.id,
        kind: machine.kind,
        name: machine.name.clone(),
        arch: machine.arch,
        size: machine.size,
        status: match machine.state {
            MachineState::Requested => MachineStatus::Requested,
            MachineState::Booting => MachineStatus::Booting,
            MachineState::Ready => MachineStatus::Ready,
            MachineState::Busy { .. } => MachineStatus::Busy,
            MachineState::Terminating => MachineStatus::Terminating,
            MachineState::Terminated => MachineStatus::Terminated,
        },
        connected: machine.connected,
        job_id: job,
        exporting_cache_of: machine.exporting.map(|export| export.attempt.job),
        requested_at: machine.requested_at,
        lease_until: machine.lease_until,
        terminated_at: machine.terminated_at,
        system_info: machine.system_info.clone(),
    }
}

/// The queue.
pub(super) fn queue(records: &Records, max_concurrent: u32) -> QueueView {
    let jobs = records.queue.iter().enumerate().filter_map(|(index, queued)| {
        let job = records.jobs.get(&queued.job)?;
        let project = records.runs.get(&job.run).and_then(|run| records.projects.get(&run.project));
        Some(QueuedJobView {
            position: index + 1,
            job_id: job.id,
            name: job.name.clone(),
            run_id: job.run,
            project: project.map(|project| project.name.clone()).unwrap_or_default(),
            reason: reason(records, &queued.reason),
        })
    });
    let launched = records.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
    QueueView { max_concurrent, live_machines: launched.count(), jobs: jobs.collect() }
}

/// What a job waits for, in words.
fn reason(records: &Records, reason: &QueueReason) -> String {
    match reason {
        QueueReason::Jobs(jobs) => {
            let names: Vec<&str> =
                jobs.iter().filter_map(|job| Some(records.jobs.get(job)?.name.as_str())).collect();
            format!("waiting for {}", names.join(", "))
        }
        QueueReason::Builder { max_concurrent } => {
            format!("waiting for 1 of {max_concurrent} builders")
        }
        QueueReason::StaticMachine { arch: Some(arch) } => {
            format!("waiting for a registered {arch} machine")
        }
        QueueReason::StaticMachine { arch: None } => "waiting for a registered machine".to_owned(),
        QueueReason::Nothing => "next".to_owned(),
    }
}
