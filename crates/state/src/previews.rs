//! Previews: what other parts of the state ask about them. The parts of their life are below.

mod deployments;
mod life;
mod lost_images;
mod placement;

use stagely_protocol::ImageRef;

use super::{Fleet, Job, JobState, MachineKind, Preview, PreviewState, State, Timestamp};
use crate::ids::{EnvironmentId, JobId, MachineId};

/// The name of the job that deploys a preview.
pub const DEPLOY_JOB: &str = "deploy";

impl State {
    /// The environment's preview, whatever its state.
    pub fn preview_of(&self, environment: EnvironmentId) -> Option<&Preview> {
        self.previews.get(self.index.environment_previews.get(&environment)?)
    }

    /// The live preview whose machine is `id`.
    pub(super) fn preview_on(&self, id: MachineId) -> Option<&Preview> {
        let serves = self.machines.get(&id)?.serves?;
        self.previews.get(&serves)
    }

    /// When something happens to the preview without an event: it sleeps, its archive is given up, or it ends.
    pub(super) fn preview_due(&self, preview: &Preview) -> Option<Timestamp> {
        let settings = preview.settings();
        let idle_since = preview.active_at;
        let ttl = preview.ends_at();
        match preview.state {
            PreviewState::Live { machine } => {
                let is_tested = self.is_under_test(preview);
                let sleep = settings.and_then(|settings| settings.sleep_after);
                let retry_at = preview.archive_retry_at.unwrap_or_default();
                let sleep = sleep.map(|after| idle_since.after(after).max(retry_at));
                let lease = self.machines.get(&machine).and_then(|machine| machine.lease_until);
                // The lease has to last for the archive and its grace.
                let before = self.limits.previews.archive + self.limits.job_grace;
                let lease = lease.map(|at| at.before(before).max(retry_at.min(at)));
                let idle = [ttl, sleep].map(|at| at.filter(|_| !is_tested));
                idle.into_iter().chain([lease]).flatten().min()
            }
            PreviewState::Archiving { since, .. } => {
                Some(self.due(since, since.after(self.limits.previews.archive)))
            }
            PreviewState::Asleep | PreviewState::Failed { .. } => ttl,
            PreviewState::Deploying { .. }
            | PreviewState::Updating { .. }
            | PreviewState::Waking { .. }
            | PreviewState::Ending
            | PreviewState::Ended => None,
        }
    }

    /// When core ends a deployment that begins at `now`.
    fn end_of_deployment(&self, job: &Job, now: Timestamp) -> Timestamp {
        now.after(job.timeout).after(self.limits.grace_of(job))
    }

    /// The preview whose deployment is `job`.
    fn preview_of_job(&self, job: JobId) -> Option<&Preview> {
        let run = self.runs.get(&self.jobs.get(&job)?.run)?;
        self.preview_of(run.environment).filter(|preview| preview.state.job() == Some(job))
    }

    /// The newest deployment of the environment whose images are there, and that waits for a machine or for capacity.
    fn waiting_deployment(&self, environment: EnvironmentId) -> Option<JobId> {
        let is_of = |job: &&Job| {
            job.kind.is_deploy()
                && self.runs.get(&job.run).is_some_and(|run| run.environment == environment)
        };
        let waiting = self.index.postponed.iter().chain(&self.index.deployments);
        let waiting = waiting.filter_map(|(_, job)| self.jobs.get(job)).filter(is_of);
        waiting.max_by_key(|job| (job.queued_at, job.id)).map(|job| job.id)
    }

    /// Whether a deployment waits that starts the preview, or its images are built again.
    pub(super) fn is_to_be_deployed(&self, preview: &Preview) -> bool {
        self.waiting_deployment(preview.environment).is_some()
            || self.run_of_lost_images(preview).is_some()
    }

    fn has_preview_machine(&self, preview: &Preview) -> bool {
        let environment_of = |job: JobId| {
            let run = self.runs.get(&self.jobs.get(&job)?.run)?;
            Some(run.environment)
        };
        let mut machines = self.live_machines().filter(|machine| machine.fleet == Fleet::Preview);
        machines.any(|machine| {
            // The run of its deployment may be forgotten.
            [machine.serves, machine.served].contains(&Some(preview.id))
                || machine.kind == MachineKind::Launched
                    && machine.jobs().any(|job| environment_of(job) == Some(preview.environment))
        })
    }

    /// The image of a completed job, by digest if its agent reported one.
    pub fn image_of(&self, job: JobId) -> Option<ImageRef> {
        let job = self.jobs.get(&job)?;
        let JobState::Completed { digest } = &job.state else { return None };
        let image = job.kind.image()?;
        Some(digest.as_ref().map_or_else(|| image.clone(), |digest| image.at_digest(digest)))
    }
}

impl PreviewState {
    /// Whether a machine may belong to it.
    pub(super) const fn has_machine(self) -> bool {
        match self {
            Self::Deploying { .. }
            | Self::Live { .. }
            | Self::Updating { .. }
            | Self::Archiving { .. }
            | Self::Waking { .. }
            | Self::Ending => true,
            Self::Asleep | Self::Ended | Self::Failed { .. } => false,
        }
    }
}
