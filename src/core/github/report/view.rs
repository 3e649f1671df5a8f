//! The part of the records that a report shows, with the addresses of its pages.

use std::fmt;
use std::time::Duration;

use stagely_protocol::{CommitSha, FailureReason, Platform};
use stagely_state::ids::{EnvironmentId, JobId, MachineId};
use stagely_state::{
    Environment, Job, JobFailure, JobKind, JobState, MachineState, Preview, Run, RunState,
};
use url::Url;

use crate::core::previews::PreviewLinks;
use crate::core::records::Records;
use crate::core::wait::Wait;

/// An environment and its newest run, as the records have them at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReportView<'a> {
    pub(crate) records: &'a Records,
    pub(crate) environment: &'a Environment,
    pub(crate) run: &'a Run,
    /// Core's address for people.
    pub(crate) public_url: &'a Url,
    /// `github.approval-label`.
    pub(crate) approval_label: &'a str,
    /// `core.open-logs`.
    pub(crate) open_logs: bool,
    pub(crate) links: &'a PreviewLinks,
}

impl<'a> ReportView<'a> {
    /// `None` if the environment has no run to report.
    pub(crate) fn find(
        records: &'a Records,
        environment: EnvironmentId,
        public_url: &'a Url,
        approval_label: &'a str,
        open_logs: bool,
        links: &'a PreviewLinks,
    ) -> Option<Self> {
        let environment = records.environments.get(&environment)?;
        let run = records.runs.get(&environment.report.run?)?;
        Some(Self { records, environment, run, public_url, approval_label, open_logs, links })
    }

    /// The jobs, in the order of the plan.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.records.jobs_of(self.run.id)
    }

    /// The jobs that failed, without those that were not started because another one failed.
    pub(crate) fn failed_jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.jobs().filter(|job| match &job.state {
            JobState::Failed(JobFailure { reason, .. }) => {
                !matches!(reason, FailureReason::DependencyFailed { .. })
            }
            _ => false,
        })
    }

    /// The run's job that deploys the preview.
    pub(crate) fn deploy_job(&self) -> Option<&'a Job> {
        self.jobs().find(|job| job.kind.is_deploy())
    }

    /// The preview of the environment.
    pub(crate) fn preview(&self) -> Option<&'a Preview> {
        self.records.preview_of(self.environment.id)
    }

    /// The preview's address, without its key.
    pub(crate) fn preview_url(&self) -> Option<Url> {
        self.links.address(self.records, self.environment.id)
    }

    /// The commit that a job of any run works with.
    pub(crate) fn commit_of(&self, job: JobId) -> Option<&'a CommitSha> {
        self.records.runs.get(&self.records.jobs.get(&job)?.run)?.commit.as_ref()
    }

    /// The wait of a job whose last launch found no capacity, unless its next machine has been launched.
    pub(crate) fn capacity_wait(&self, job: &Job) -> Option<Wait> {
        let is_requested = |machine: MachineId| {
            let machine = self.records.machines.get(&machine);
            machine.is_some_and(|machine| machine.state == MachineState::Requested)
        };
        self.records.wait_for_capacity(job).filter(|_| job.state.machine().is_none_or(is_requested))
    }

    /// The commit of the plan, or before planning the requested one.
    pub(crate) fn commit(&self) -> Option<CommitSha> {
        self.run.commit.clone().or_else(|| self.run.requested_commit())
    }

    pub(crate) fn awaits_approval(&self) -> bool {
        self.run.state == RunState::AwaitingApproval
    }

    /// Whether the user could have avoided the run's failure.
    pub(crate) fn is_users_failure(&self) -> bool {
        if let RunState::Failed { plan_error: Some(error) } = &self.run.state {
            return error.reason.is_users();
        }
        self.jobs().any(|job| self.is_users_job(job))
    }

    /// Whether the user could have avoided the job's failure, or that of the job whose failure kept it from
    /// starting.
    pub(crate) fn is_users_job(&self, job: &Job) -> bool {
        let mut cause = Some(job);
        // Bounded, because records from a file might hold circular dependencies.
        for _ in 0..=self.jobs().count() {
            let Some(Job { state: JobState::Failed(JobFailure { reason, .. }), .. }) = cause else {
                break;
            };
            let FailureReason::DependencyFailed { job: dependency } = reason else {
                return reason.is_users();
            };
            cause = self.jobs().find(|job| job.name == *dependency);
        }
        false
    }

    pub(crate) fn run_url(&self) -> String {
        self.page("runs", &self.run.id)
    }

    pub(crate) fn job_url(&self, job: JobId) -> String {
        self.page("jobs", &job)
    }

    /// The address of one of the pictures that a test has left, numbered from 1.
    pub(super) fn picture_url(&self, job: JobId, number: usize) -> String {
        format!("{}/pictures/{number}", self.job_url(job))
    }

    pub(super) fn page(&self, kind: &str, id: &dyn fmt::Display) -> String {
        format!("{}/{kind}/{id}", self.public_url.as_str().trim_end_matches('/'))
    }
}

/// The job's platform, or all platforms of an image index.
pub(super) fn platforms(job: &Job) -> String {
    match &job.kind {
        JobKind::Build { platform, .. } => platform.to_string(),
        JobKind::Merge { platforms, .. } => {
            platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        JobKind::Deploy { arch, .. } | JobKind::Test { arch, .. } => {
            arch.map(|arch| Platform(arch).to_string()).unwrap_or_default()
        }
    }
}

/// The warnings of a job, each for people.
pub(super) fn warnings_of(job: &Job) -> impl Iterator<Item = String> {
    // The warnings of an ended build include that of its agent. A reused build has the warnings of none.
    let lacks_warning = job.emulated && (!job.state.is_final() || job.reused_from.is_some());
    let emulated = lacks_warning.then(|| "built under QEMU emulation, which is slow".to_owned());
    job.warnings.iter().cloned().chain(emulated)
}

/// The digits of a commit that people read, and write after `/stagely approve`.
pub(super) fn short(commit: &CommitSha) -> &str {
    &commit.as_str()[..12]
}

/// `4.2s`, `3m 7s`.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}
