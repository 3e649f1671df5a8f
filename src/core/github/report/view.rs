//! What is told of an environment: the run that is told of, with the addresses of the pages about it.

use std::fmt;

use stagely_protocol::{CommitSha, FailureReason};
use stagely_state::ids::{EnvironmentId, JobId};
use stagely_state::{Environment, Job, JobKind, JobState, Run, RunState};
use url::Url;

use crate::core::records::Records;

/// An environment and its newest run, as the records have them at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) records: &'a Records,
    pub(crate) environment: &'a Environment,
    pub(crate) run: &'a Run,
    /// Where people reach core.
    pub(crate) public_url: &'a Url,
    /// The label that approves what waits, as the configuration has it.
    pub(crate) approval_label: &'a str,
}

impl<'a> Shown<'a> {
    /// `None` where there is nothing to tell.
    pub(crate) fn find(
        records: &'a Records,
        environment: EnvironmentId,
        public_url: &'a Url,
        approval_label: &'a str,
    ) -> Option<Self> {
        let environment = records.environments.get(&environment)?;
        let run = records.runs.get(&environment.report.run?)?;
        Some(Self { records, environment, run, public_url, approval_label })
    }

    /// The jobs, in the order of the plan.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.records.jobs_of(self.run.id)
    }

    /// The jobs that failed by themselves, and not because another one did.
    pub(crate) fn failed_jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.jobs().filter(|job| match &job.state {
            JobState::Failed { reason, .. } => {
                !matches!(reason, FailureReason::DependencyFailed { .. })
            }
            _ => false,
        })
    }

    /// The commit: that of the plan, or before there is one the commit that was asked for.
    pub(crate) fn commit(&self) -> Option<CommitSha> {
        self.run.commit.clone().or_else(|| self.run.requested_commit())
    }

    /// Whether somebody must agree before it goes on.
    pub(crate) fn awaits_approval(&self) -> bool {
        self.run.state == RunState::AwaitingApproval
    }

    /// Whether a change to what is built would have helped.
    pub(crate) fn is_users_failure(&self) -> bool {
        if let RunState::Failed { plan_error: Some(error) } = &self.run.state {
            return error.reason.is_users();
        }
        self.jobs().any(|job| self.is_users_job(job))
    }

    /// Whether a change to what is built would have helped the job, or the one that it was not started
    /// for.
    pub(crate) fn is_users_job(&self, job: &Job) -> bool {
        let mut cause = Some(job);
        // Dependencies have no circles, but records are read from a file.
        for _ in 0..=self.jobs().count() {
            let Some(Job { state: JobState::Failed { reason, .. }, .. }) = cause else { break };
            let FailureReason::DependencyFailed { job } = reason else { return reason.is_users() };
            cause = self.jobs().find(|it| it.name == *job);
        }
        false
    }

    /// The page of the run.
    pub(crate) fn run_url(&self) -> String {
        self.page("runs", &self.run.id)
    }

    /// The page of a job.
    pub(crate) fn job_url(&self, job: JobId) -> String {
        self.page("jobs", &job)
    }

    fn page(&self, kind: &str, id: &dyn fmt::Display) -> String {
        format!("{}/{kind}/{id}", self.public_url.as_str().trim_end_matches('/'))
    }
}

/// `linux/amd64`, or all that an index joins.
pub(super) fn platforms(job: &Job) -> String {
    match &job.kind {
        JobKind::Build { platform, .. } => platform.to_string(),
        JobKind::Merge { platforms, .. } => {
            platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
    }
}

/// The digits of a commit that people read, and write after `/stagely approve`.
pub(super) fn short(commit: &CommitSha) -> &str {
    &commit.as_str()[..12]
}

/// `4.2s`, `3m 7s`.
pub(crate) fn seconds(time: std::time::Duration) -> String {
    if time < std::time::Duration::from_mins(1) {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(std::time::Duration::from_secs(time.as_secs())).to_string()
}
