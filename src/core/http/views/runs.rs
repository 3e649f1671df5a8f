//! Runs.

use stagely_state::{Run, RunState, SkipReason, SkippedBuild};

use super::job;
use super::waits::wait;
use crate::api::{RunStatus, RunView, SkippedBuildView, SpendingView};
use crate::core::clock::now;
use crate::core::records::Records;

/// A run without its jobs, for lists.
pub(in crate::core::http) fn run_summary(records: &Records, run: &Run) -> RunView {
    let project = records.projects.get(&run.project);
    let environment = records.environments.get(&run.environment);
    let (status, plan_error, cancel_reason) = match &run.state {
        RunState::AwaitingApproval
        | RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. } => (RunStatus::Pending, None, None),
        RunState::Building => (RunStatus::Building, None, None),
        RunState::Deploying => (RunStatus::Deploying, None, None),
        RunState::Testing => (RunStatus::Testing, None, None),
        RunState::Completed => (RunStatus::Completed, None, None),
        RunState::Failed { plan_error } => (RunStatus::Failed, plan_error.clone(), None),
        RunState::Cancelled { reason } => (RunStatus::Cancelled, None, Some(*reason)),
    };
    let (reason, error) = plan_error.map(|failure| (failure.reason, failure.message)).unzip();
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
        from_fork: run.from_fork,
        approval: run.approval.clone(),
        reuses: run.reuses,
        skipped: run.skipped.iter().map(skipped).collect(),
        saved_machines: records.jobs_of(run.id).filter(|job| job.took_over.is_some()).count(),
        live_machines: records.live_of_run.get(&run.id).copied().unwrap_or_default(),
        cost: SpendingView::of(records.spending_of_run(run.id, now())),
        wait: records.wait_of_run(run).map(wait),
        jobs: Vec::new(),
    }
}

pub(in crate::core::http) fn run(records: &Records, run: &Run) -> RunView {
    let jobs = records.jobs_of(run.id).map(|found| job(records, found)).collect();
    RunView { jobs, ..run_summary(records, run) }
}

/// A skipped build with the reason for people.
fn skipped(skipped: &SkippedBuild) -> SkippedBuildView {
    let image = match &skipped.reason {
        SkipReason::PathsUnchanged { image, .. } => Some(image.clone()),
        SkipReason::Branch { .. } | SkipReason::NoImage { .. } | SkipReason::NoPreview => None,
    };
    let reason = skipped.reason.to_string();
    SkippedBuildView { build: skipped.variant.to_string(), reason, image }
}
