//! Deploy jobs: how they begin and end, and deployments of images that are there already.

use std::time::Duration;

use stagely_protocol::{Arch, CommitSha, FailureReason};

use super::DEPLOY_JOB;
use super::placement::DeployTarget;
use crate::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};
use crate::step::Step;
use crate::{
    Attempt, CancelReason, CommitSource, Deployment, Effect, FailedWakes, Generation, Interruption,
    Job, JobFailure, JobKind, JobState, MachineSize, PlannedJob, Preview, PreviewEvent,
    PreviewState, Run, RunState, State, Timestamp, Trigger, UsedImage,
};

const NO_MACHINE: &str = "there is no machine for previews: set `provider` in `[previews]` of stagely.toml, or register a \
     machine with `stagely machines add --fleet preview`";

const NEEDS_RESET: &str =
    "files of reset_when were edited, so the deployment begins with fresh data on another machine";

const OUTDATED: &str = "it was not deployed, because the preview is that of a newer run";

/// What is deployed again, with images that are there.
struct Redeployment {
    commit: CommitSha,
    source: CommitSource,
    requested_at: Timestamp,
    deployment: Deployment,
    /// Of the machine; `None` if the images are for both.
    arch: Option<Arch>,
    size: MachineSize,
    timeout: Duration,
}

impl From<Generation> for Redeployment {
    fn from(generation: Generation) -> Self {
        let Generation { commit, source, requested_at, deployment, arch, size, timeout, .. } =
            generation;
        Self { commit, source, requested_at, deployment, arch: Some(arch), size, timeout }
    }
}

impl Step<'_> {
    /// Gives machines to the deploy jobs whose images are there.
    pub(crate) fn schedule_previews(&mut self, new_id: &mut dyn FnMut() -> u128) {
        for preview in std::mem::take(&mut self.preview_requests.wake) {
            self.wake(preview, new_id);
        }
        for preview in std::mem::take(&mut self.preview_requests.reset) {
            self.reset(preview, new_id);
        }
        for preview in std::mem::take(&mut self.preview_requests.restore) {
            self.restore(preview, new_id);
        }
        self.end_unused_previews();
        // One deployment may have what another waits for.
        loop {
            let waiting = self.state.index.deployments.iter().map(|(_, id)| *id);
            let waiting: Vec<JobId> = waiting.collect();
            let begun = waiting.into_iter().filter(|id| self.schedule_deployment(*id, new_id));
            if begun.count() == 0 {
                break;
            }
        }
        for preview in std::mem::take(&mut self.preview_requests.end) {
            self.end_preview(preview, CancelReason::Requested);
            self.end_unused_previews();
        }
    }

    /// Returns false if the job goes on waiting for something that has begun already.
    fn schedule_deployment(&mut self, id: JobId, new_id: &mut dyn FnMut() -> u128) -> bool {
        let Some(job) = self.state.jobs.get(&id) else { return false };
        match self.state.deploy_target(job) {
            DeployTarget::Machine(machine) => {
                let end = self.state.end_of_deployment(job, self.now);
                self.begin_deployment(id, new_id);
                self.begin_attempt(id, machine);
                self.extend_lease(machine, end);
                self.assign(machine, id);
            }
            DeployTarget::Launch(arch, provider) => {
                self.begin_deployment(id, new_id);
                self.launch(MachineId::from_bits(new_id()), id, arch, provider);
            }
            DeployTarget::AfterSleep => {
                let environment = self.state.runs.get(&job.run).map(|run| run.environment);
                let preview = environment.and_then(|id| self.state.preview_of(id));
                return preview
                    .map(|preview| preview.id)
                    .is_some_and(|preview| self.send_to_sleep(preview, true));
            }
            DeployTarget::AfterSleepOf { preview, idle_at, .. } => {
                return idle_at <= self.now && self.send_to_sleep(preview, false);
            }
            DeployTarget::Wait(_) => return false,
            DeployTarget::NoMachine => {
                self.begin_deployment(id, new_id);
                self.fail_job(id, JobFailure::new(FailureReason::Provider, NO_MACHINE));
            }
            DeployTarget::Outdated => self.cancel_deployment(id, OUTDATED),
        }
        true
    }

    /// Cancels the deployment alone: the images are there, or are still built. `reason` is for people.
    pub(crate) fn cancel_deployment(&mut self, id: JobId, reason: &str) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        if job.state.is_final() {
            return;
        }
        let run = job.run;
        self.state.change_job(id, |job| job.warnings.push(reason.to_owned()));
        self.cancel_job(id);
        self.drop_tests_of(id, run);
        self.settle_run(run);
    }

    /// Makes the job the preview's deployment, and the preview's record if there is none.
    fn begin_deployment(&mut self, id: JobId, new_id: &mut dyn FnMut() -> u128) {
        let Some(run) = self.state.jobs.get(&id).and_then(|job| self.state.runs.get(&job.run))
        else {
            return;
        };
        let (project, environment) = (run.project, run.environment);
        let known = self.state.preview_of(environment).map(|preview| preview.id);
        let preview = known.unwrap_or_else(|| {
            let preview = PreviewId::from_bits(new_id());
            let record = Preview::new(preview, project, environment, self.now);
            self.state.insert_preview(record);
            preview
        });
        let Some(state) = self.state.previews.get(&preview).map(|preview| preview.state) else {
            return;
        };
        if state.job() == Some(id) {
            return;
        }
        self.move_preview(preview, PreviewEvent::DeploymentBegan { job: id });
        self.state.change_preview(preview, |preview| match state {
            // Links from before its end do not open it.
            PreviewState::Ended => preview.key_number += 1,
            // It stays for the `ttl` of the new deployment.
            PreviewState::Failed { .. } => preview.extended_until = None,
            _ => {}
        });
    }

    /// Numbers the attempt that is about to be sent to an agent.
    pub(crate) fn note_generation(&mut self, job: JobId) {
        if let Some(preview) = self.state.preview_of_job(job).map(|preview| preview.id) {
            self.state.change_preview(preview, |preview| preview.last_generation += 1);
        }
    }

    /// The deploy job has completed on `machine`, which serves the preview from now on.
    pub(crate) fn deployed(&mut self, job: JobId, machine: MachineId) {
        let Some(preview) = self.state.preview_of_job(job) else { return };
        let (id, before) = (preview.id, preview.state.machine());
        let number = preview.last_generation;
        let Some(generation) = self.state.generation(job, machine, number) else { return };
        if !self.move_preview(id, PreviewEvent::Deployed { machine }) {
            return;
        }
        let now = self.now;
        let is_fresh = generation.deployment.fresh;
        let run = generation.run;
        let trigger = self.state.runs.get(&run).map(|run| run.trigger);
        self.state.change_preview(id, |preview| {
            // The archive is of the data that this deployment has replaced.
            preview.archive.take_if(|_| is_fresh);
            preview.data_loss.take_if(|_| is_fresh);
            preview.shown = Some(generation);
            preview.attempted_commits.clear();
            preview.rebuilt_by = None;
            // Nobody has used it because its machine was lost.
            if trigger != Some(Trigger::Wake) {
                preview.active_at = preview.active_at.max(now);
            }
            preview.archive_retry_at = None;
            preview.problem = None;
            preview.failed_wakes = None;
        });
        self.state.change_machine(machine, |machine| machine.serves = Some(id));
        self.change_payer(machine, job);
        self.lease_preview(machine);
        if let Some(before) = before.filter(|before| *before != machine) {
            self.retire(before);
        }
        self.supersede_restarts(id, run);
    }

    /// Cancels the runs that would start the preview again with what it showed before `newest`.
    fn supersede_restarts(&mut self, id: PreviewId, newest: RunId) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let is_restart = |run: &RunId| {
            let trigger = self.state.runs.get(run).map(|run| run.trigger);
            *run != newest && trigger.is_some_and(Trigger::is_of_preview)
        };
        let open = self.state.open_runs_of(preview.environment).into_iter();
        for run in open.filter(is_restart).collect::<Vec<_>>() {
            if self.state.runs.get(&run).is_some_and(|run| run.trigger == Trigger::Reset) {
                // What is shown now gets the fresh data.
                self.preview_requests.reset.push(id);
            }
            self.cancel_run(run, CancelReason::Superseded);
        }
    }

    /// An attempt of a deploy job is lost, or found no capacity. What served before goes on until the next attempt begins,
    /// so that it can also move to another machine.
    pub(crate) fn update_interrupted(&mut self, job: JobId) {
        let Some(preview) = self.state.preview_of_job(job) else { return };
        let id = preview.id;
        if matches!(preview.state, PreviewState::Updating { .. }) {
            self.note_attempted_commit(id, job);
            self.move_preview(id, PreviewEvent::DeploymentCancelled);
            self.leave_interrupted(id);
        }
    }

    /// Moves a preview that serves again from a machine that the cloud takes back.
    fn leave_interrupted(&mut self, id: PreviewId) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let machine = preview.state.machine().and_then(|machine| self.state.machines.get(&machine));
        let interruption = machine.and_then(|machine| machine.interruption);
        if matches!(interruption, Some(Interruption::Certain { .. })) {
            self.send_to_sleep(id, true);
        }
    }

    /// Notes that the deployment may have changed the data, for instance by `migrate`.
    fn note_attempted_commit(&mut self, preview: PreviewId, job: JobId) {
        // Fresh data is on another machine.
        let changes_data = |job: &&Job| match &job.kind {
            JobKind::Deploy { deployment, .. } => job.assigned_at.is_some() && !deployment.fresh,
            JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => false,
        };
        let job = self.state.jobs.get(&job).filter(changes_data);
        let run = job.and_then(|job| self.state.runs.get(&job.run));
        if let Some(commit) = run.and_then(|run| run.commit.clone()) {
            self.state.change_preview(preview, |preview| preview.note_attempt(commit));
        }
    }

    /// The deployment has fresh data: files of `reset_when` were edited. Its agent gets it now, unless the machine serves what was
    /// deployed before: that goes on until another machine takes over.
    pub(crate) fn reset_by_files(&mut self, machine: MachineId, attempt: Attempt) {
        if self.attempt_of(attempt.job, machine) != Some(attempt) {
            return;
        }
        self.state.change_job(attempt.job, |job| {
            if let JobKind::Deploy { deployment, .. } = &mut job.kind {
                deployment.fresh = true;
            }
        });
        let serves = self.state.machines.get(&machine).and_then(|machine| machine.serves);
        if serves.is_none() {
            return self.emit(Effect::Assign { machine, attempt });
        }
        // Its agent may have got the attempt before it was restarted, so the next one has another id.
        self.lose_to_restart(machine, attempt.job, NEEDS_RESET);
        self.release(machine);
    }

    /// A deploy job has failed or was cancelled. What served before goes on.
    pub(crate) fn deployment_closed(&mut self, job: JobId) {
        let Some(record) = self.state.jobs.get(&job) else { return };
        let (event, problem) = match &record.state {
            JobState::Failed(failure) => {
                (PreviewEvent::DeploymentFailed, Some(failure.message.clone()))
            }
            JobState::Cancelled => (PreviewEvent::DeploymentCancelled, None),
            JobState::Queued { .. }
            | JobState::Postponed { .. }
            | JobState::Provisioning { .. }
            | JobState::Running { .. }
            | JobState::Completed { .. } => return,
        };
        let Some(preview) = self.state.preview_of_job(job) else { return };
        let id = preview.id;
        let was_waking = matches!(preview.state, PreviewState::Waking { .. });
        let was_updating = matches!(preview.state, PreviewState::Updating { .. });
        let (lacks_image, may_have_changed_data) = match &record.state {
            JobState::Failed(failure) => {
                (failure.lacks_image(), !failure.reason.precedes_deployment())
            }
            _ => (false, true),
        };
        let is_wake =
            self.state.runs.get(&record.run).is_some_and(|run| run.trigger == Trigger::Wake);
        let JobKind::Deploy { deployment, .. } = &record.kind else { return };
        let ends_at = self.now.after(deployment.settings.ttl);
        if was_updating && may_have_changed_data {
            self.note_attempted_commit(id, job);
        }
        self.move_preview(id, event);
        if lacks_image {
            self.preview_requests.lost_images.push(job);
        }
        let now = self.now;
        self.state.change_preview(id, |preview| {
            if problem.is_some() {
                preview.problem = problem;
                if is_wake {
                    preview.failed_wakes = Some(FailedWakes::after(preview.failed_wakes, now));
                }
            }
            if matches!(preview.state, PreviewState::Failed { .. }) {
                preview.extended_until = Some(ends_at);
            }
        });
        self.leave_interrupted(id);
        if !was_waking {
            return;
        }
        let Some(preview) = self.state.previews.get(&id) else { return };
        if preview.ends_at().is_some_and(|end| end <= now) {
            self.preview_requests.end.push(id);
        } else if !is_wake && !preview.is_idle(now) {
            // What it showed before comes back, because it is in use.
            self.preview_requests.wake.push(id);
        }
    }

    /// Starts a sleeping preview from its archive.
    fn wake(&mut self, id: PreviewId, new_id: &mut dyn FnMut() -> u128) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let (PreviewState::Asleep, Some(shown)) = (preview.state, preview.shown.clone()) else {
            return;
        };
        // A deployment that waits wakes it with the newer images.
        if !self.state.is_to_be_deployed(preview) {
            self.deploy_again(preview.environment, shown.into(), Trigger::Wake, new_id);
        }
    }

    /// Deploys the preview again with fresh data, or has the next deployment do so.
    fn reset(&mut self, id: PreviewId, new_id: &mut dyn FnMut() -> u128) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        // What is deployed then is not known before the end of a deployment under way.
        if preview.state.job().is_some() {
            return;
        }
        let environment = preview.environment;
        let set_fresh = |job: &mut Job| {
            if let JobKind::Deploy { deployment, .. } = &mut job.kind {
                deployment.fresh = true;
            }
        };
        let redeployment = self.state.redeployment(preview);
        // Links from before do not open it any more.
        self.state.change_preview(id, |preview| preview.key_number += 1);
        let Some(preview) = self.state.previews.get(&id) else { return };
        if let Some(job) = self.state.waiting_deployment(environment) {
            return self.state.change_job(job, set_fresh);
        }
        if let Some(run) = self.state.run_of_lost_images(preview) {
            let deployment = self.state.jobs_of(run).find(|job| job.kind.is_deploy());
            match deployment.map(|job| (job.id, job.state.is_final())) {
                Some((job, false)) => return self.state.change_job(job, set_fresh),
                None => return self.state.change_run(run, |run| run.with_fresh_data = true),
                // The rest of the run goes on without it.
                Some((_, true)) => {}
            }
        }
        if let Some(redeployment) = redeployment {
            self.deploy_again(environment, redeployment, Trigger::Reset, new_id);
        }
    }

    /// Deploys what the preview shows once more where its machine runs something else.
    fn restore(&mut self, id: PreviewId, new_id: &mut dyn FnMut() -> u128) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let (PreviewState::Live { .. }, Some(shown)) = (preview.state, preview.shown.clone())
        else {
            return;
        };
        if self.state.waiting_deployment(preview.environment).is_none() {
            self.deploy_again(preview.environment, shown.into(), Trigger::Wake, new_id);
        }
    }

    /// Deploys images that are there already, as a run of its own.
    fn deploy_again(
        &mut self,
        environment: EnvironmentId,
        redeployment: Redeployment,
        trigger: Trigger,
        new_id: &mut dyn FnMut() -> u128,
    ) {
        let Some(environment) = self.state.environments.get(&environment) else { return };
        let run = RunId::from_bits(new_id());
        let Redeployment { commit, source, mut deployment, arch, size, timeout, .. } = redeployment;
        deployment.fresh = trigger == Trigger::Reset;
        let job = JobId::from_bits(new_id());
        let kind = JobKind::Deploy { arch, deployment: Box::new(deployment) };
        let planned = PlannedJob { size, ..PlannedJob::new(job, DEPLOY_JOB, kind, timeout) };
        let run = Run {
            trigger,
            // A rebuild of this run asks for the same.
            requested_ref: Some(commit.to_string()),
            commit: Some(commit),
            branch: source.branch,
            from_fork: source.from_fork,
            github: source.github,
            state: RunState::Deploying,
            ..Run::new(run, environment, source.repository, self.now)
        };
        let run_id = run.id;
        self.state.insert_run(run);
        self.state.insert_job(Job::queued(planned, run_id, self.now));
    }
}

impl State {
    /// What `job` has deployed on `machine`, with the images of its run by digest.
    fn generation(&self, job: JobId, machine: MachineId, number: u64) -> Option<Generation> {
        let arch = self.machines.get(&machine)?.arch;
        let run = self.jobs.get(&job)?.run;
        let Redeployment { commit, source, requested_at, deployment, size, timeout, .. } =
            self.redeployment_of(job)?;
        Some(Generation {
            number,
            run,
            commit,
            source,
            requested_at,
            deployment,
            arch,
            size,
            timeout,
        })
    }

    /// What the preview shows, or what its first deployment was to show.
    fn redeployment(&self, preview: &Preview) -> Option<Redeployment> {
        match (&preview.shown, preview.state) {
            (Some(shown), _) => Some(shown.clone().into()),
            (None, PreviewState::Failed { job }) => self.redeployment_of(job),
            (None, _) => None,
        }
    }

    /// The deployment of `job`, with the images of its run by digest.
    fn redeployment_of(&self, job: JobId) -> Option<Redeployment> {
        let job = self.jobs.get(&job)?;
        let run = self.runs.get(&job.run)?;
        let JobKind::Deploy { arch, deployment } = &job.kind else { return None };
        // A run that starts the preview again has the images of the run that is shown.
        let shown = self.preview_of(run.environment).and_then(|preview| preview.shown.as_ref());
        let requested_at = match shown {
            Some(shown) if run.trigger.is_of_preview() => shown.requested_at,
            _ => run.created_at,
        };
        let mut deployment = (**deployment).clone();
        for image in deployment.used_images_mut() {
            if let UsedImage::Job { job } = image {
                *image = UsedImage::Image { image: self.image_of(*job)? };
            }
        }
        Some(Redeployment {
            commit: run.commit.clone()?,
            source: CommitSource {
                repository: run.repository.clone(),
                branch: run.branch.clone(),
                from_fork: run.from_fork,
                github: run.github.clone(),
            },
            requested_at,
            deployment,
            arch: *arch,
            size: job.size,
            timeout: job.timeout,
        })
    }
}
