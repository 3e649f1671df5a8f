//! What people request of a preview, by commands, the label and the API: to start, stop, sleep, to have fresh data, or to
//! stay for longer.

use std::time::Duration;

use super::step::Step;
use super::{
    Approval, CancelReason, Job, JobKind, PlannedJob, Preview, PreviewCommand, PreviewState, Run,
    RunState, State,
};
use crate::ids::{EnvironmentId, PreviewId, RunId};

const NO_RUN: &str = "there is no run to be deployed";

const STOPPED: &str = "it was not deployed, because somebody has stopped the preview";

const LABEL_REMOVED: &str = "it was not deployed, because the label of previews was removed";

/// An extension ends at most this long after its request.
pub const PREVIEW_EXTENSION_MAX: Duration = Duration::from_hours(30 * 24);

/// How a preview is brought to the newest commit, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewStart {
    /// Nothing is to be done; the reason is for people.
    UnderWay(&'static str),
    Wake,
    /// The newest run is not planned yet, and gets the preview.
    WithNewestRun,
    /// A further run deploys the newest commit.
    NewRun,
    /// There is no run whose commit could be deployed.
    NoRun,
}

impl PreviewStart {
    /// `preview` is that of the environment, `newest` its newest run, and `deployment` the deploy job of that run.
    pub fn of(preview: Option<&Preview>, newest: Option<&Run>, deployment: Option<&Job>) -> Self {
        let is_deployed = deployment.is_some_and(|job| !job.state.is_final());
        match preview.map(|preview| preview.state) {
            Some(
                PreviewState::Deploying { .. }
                | PreviewState::Updating { .. }
                | PreviewState::Waking { .. },
            ) => return Self::UnderWay("it is being deployed"),
            Some(PreviewState::Archiving { .. } | PreviewState::Asleep) if !is_deployed => {
                return Self::Wake;
            }
            Some(PreviewState::Live { .. }) if !is_deployed => {
                let shown = preview.and_then(|preview| preview.shown.as_ref());
                let shown = shown.map(|shown| &shown.commit);
                if shown == newest.and_then(|newest| newest.commit.as_ref()) {
                    return Self::UnderWay("it is live");
                }
            }
            _ => {}
        }
        match newest.map(|newest| &newest.state) {
            None => Self::NoRun,
            Some(RunState::AwaitingApproval | RunState::Pending | RunState::Deferred { .. }) => {
                Self::WithNewestRun
            }
            Some(_) if is_deployed => Self::UnderWay("it is deployed when its images are there"),
            Some(RunState::Planning { .. })
                if newest.is_some_and(|run| run.with_preview == Some(true)) =>
            {
                Self::UnderWay("it is deployed when its images are there")
            }
            Some(_) => Self::NewRun,
        }
    }
}

impl Step<'_> {
    /// Follows a command about the preview. Returns what it did, or why it had no effect, for people.
    pub(super) fn follow_preview(
        &mut self,
        id: EnvironmentId,
        action: PreviewCommand,
        run: Option<Box<Run>>,
    ) -> Result<String, String> {
        match action {
            PreviewCommand::Start => self.start_preview(id, run),
            PreviewCommand::Stop => {
                let open = self.state.open_preview(id);
                match (self.stop_preview(id), open) {
                    (_, Ok(_)) => Ok("ended".to_owned()),
                    (true, Err(_)) => Ok("it is not deployed".to_owned()),
                    (false, Err(none)) => Err(none),
                }
            }
            PreviewCommand::Sleep => match self.state.open_preview(id)? {
                (preview, PreviewState::Live { .. }) if self.state.is_tested(preview) => {
                    Err("it is being tested; write it again when that has ended".to_owned())
                }
                (preview, PreviewState::Live { .. }) => {
                    self.send_to_sleep(preview, false);
                    Ok("it goes to sleep".to_owned())
                }
                (_, PreviewState::Asleep | PreviewState::Archiving { .. }) => {
                    Err("it sleeps already".to_owned())
                }
                (_, _) => Err("only a preview that is live can sleep".to_owned()),
            },
            PreviewCommand::Reset => match self.state.open_preview(id)? {
                (_, state) if state.job().is_some() => {
                    Err("it is being deployed; write it again when that has ended".to_owned())
                }
                (preview, _) => {
                    self.preview_requests.reset.push(preview);
                    Ok("it is deployed again with fresh data".to_owned())
                }
            },
            PreviewCommand::Extend { by } => {
                let (preview, _) = self.state.open_preview(id)?;
                let is_extended = self.extend_preview(preview, by);
                is_extended
                    .then(|| "extended".to_owned())
                    .ok_or("it is not deployed yet".to_owned())
            }
        }
    }

    fn start_preview(
        &mut self,
        id: EnvironmentId,
        run: Option<Box<Run>>,
    ) -> Result<String, String> {
        let newest = self.state.environments.get(&id).and_then(|found| found.newest_run);
        match self.state.preview_start(id) {
            PreviewStart::UnderWay(what) => Ok(what.to_owned()),
            PreviewStart::Wake => {
                if let Some(preview) = self.state.preview_of(id).map(|preview| preview.id) {
                    self.preview_wake_requested(preview);
                }
                Ok("it wakes".to_owned())
            }
            PreviewStart::WithNewestRun => {
                let Some(newest) = newest else { return Err(NO_RUN.to_owned()) };
                self.state.change_run(newest, |run| run.with_preview = Some(true));
                let run = self.state.runs.get(&newest);
                let is_awaited = run.is_some_and(|run| run.approval == Approval::Awaited);
                let when =
                    if is_awaited { "the commit is approved" } else { "its images are there" };
                Ok(format!("it is deployed when {when}"))
            }
            PreviewStart::NewRun => {
                let run = run.filter(|run| {
                    self.state.is_newest(run) && !self.state.runs.contains_key(&run.id)
                });
                let run = run.ok_or("something newer came meanwhile; write it again")?;
                let environment = self.state.environments.get(&id).cloned();
                let environment = environment.ok_or("its environment is gone")?;
                let started = format!("{} was started", run.id);
                self.start_run(*run, environment);
                Ok(started)
            }
            PreviewStart::NoRun => Err(NO_RUN.to_owned()),
        }
    }

    /// Has the preview stay for longer. Returns false if it shows nothing.
    pub(super) fn extend_preview(&mut self, id: PreviewId, by: Duration) -> bool {
        let end = self.state.previews.get(&id).and_then(Preview::ends_at);
        let Some(end) = end else { return false };
        let latest = self.now.after(PREVIEW_EXTENSION_MAX);
        let until = end.max(self.now).after(by).min(latest).max(end);
        self.state.change_preview(id, |preview| preview.extended_until = Some(until));
        true
    }

    /// Ends the preview, and keeps the runs that are under way from starting it again. Returns whether there were such runs.
    pub(super) fn stop_preview(&mut self, id: EnvironmentId) -> bool {
        if let Some(preview) = self.state.preview_of(id).map(|preview| preview.id) {
            self.end_preview(preview, CancelReason::Requested);
        }
        let may_deploy = |run: &RunId| {
            self.state.runs.get(run).is_some_and(|run| {
                let is_planned = matches!(
                    run.state,
                    RunState::Building | RunState::Deploying | RunState::Testing
                );
                run.trigger.builds()
                    && (!is_planned || self.state.open_deployment_of(run.id).is_some())
            })
        };
        let runs: Vec<RunId> = self.state.open_runs_of(id).into_iter().filter(may_deploy).collect();
        for run in &runs {
            self.state.change_run(*run, |run| run.with_preview = Some(false));
            self.cancel_deployment_of(*run, STOPPED);
        }
        !runs.is_empty()
    }

    /// Ends a preview that the pull request has for its label, and keeps the runs that are under way from making one.
    pub(super) fn remove_preview_label(&mut self, id: EnvironmentId) {
        let now = self.now;
        self.state.change_environment(id, |environment| environment.label_removed_at = Some(now));
        if let Some(preview) = self.state.preview_by_label(id) {
            self.end_preview(preview, CancelReason::Requested);
        }
        for id in self.state.open_runs_of(id) {
            let is_labeled =
                self.state.runs.get(&id).is_some_and(|run| run.with_preview == Some(true));
            if is_labeled {
                self.state.change_run(id, |run| run.with_preview = None);
            }
            if self.state.open_deployment_of(id).is_some_and(Job::is_on_request) {
                self.cancel_deployment_of(id, LABEL_REMOVED);
            }
        }
    }

    fn cancel_deployment_of(&mut self, run: RunId, reason: &str) {
        if let Some(job) = self.state.open_deployment_of(run).map(|job| job.id) {
            self.cancel_deployment(job, reason);
        }
    }
}

impl Job {
    /// Whether it deploys what a pull request gets only with the label or by a request.
    fn is_on_request(&self) -> bool {
        match &self.kind {
            JobKind::Deploy { deployment, .. } => deployment.settings.on_request,
            JobKind::Build { .. } | JobKind::Merge { .. } | JobKind::Test { .. } => false,
        }
    }
}

impl State {
    /// The environment's preview if it has not ended.
    fn open_preview(&self, id: EnvironmentId) -> Result<(PreviewId, PreviewState), String> {
        let preview = self.preview_of(id).filter(|preview| !preview.state.is_over());
        let preview = preview.ok_or("there is no preview")?;
        Ok((preview.id, preview.state))
    }

    fn preview_start(&self, id: EnvironmentId) -> PreviewStart {
        let newest = self.environments.get(&id).and_then(|found| found.newest_run);
        let newest = newest.and_then(|run| self.runs.get(&run));
        let deployment =
            newest.and_then(|run| self.jobs_of(run.id).find(|job| job.kind.is_deploy()));
        PreviewStart::of(self.preview_of(id), newest, deployment)
    }

    /// The deployment of a run that has not ended, and only deploys images that it has built.
    fn open_deployment_of(&self, id: RunId) -> Option<&Job> {
        let run = self.runs.get(&id).filter(|run| run.trigger.builds())?;
        self.jobs_of(run.id).find(|job| job.kind.is_deploy() && !job.state.is_final())
    }

    /// Whether a planned job is a deployment that was not wanted any more when its run had been planned.
    pub(super) fn is_unwanted(&self, run: RunId, job: &PlannedJob) -> bool {
        let JobKind::Deploy { deployment, .. } = &job.kind else { return false };
        let Some(run) = self.runs.get(&run) else { return false };
        let environment = self.environments.get(&run.environment);
        let is_of_pull_request = environment.is_some_and(|found| found.pull_request.is_some());
        match run.with_preview {
            Some(is_wanted) => !is_wanted,
            // An open preview gets the next commit, too.
            None => {
                deployment.settings.on_request
                    && is_of_pull_request
                    && self.open_preview(run.environment).is_err()
            }
        }
    }

    /// The preview of a pull request that has one only with the label or by a request.
    fn preview_by_label(&self, id: EnvironmentId) -> Option<PreviewId> {
        let preview = self.preview_of(id)?;
        let job = match preview.state {
            PreviewState::Failed { job } => Some(job),
            state => state.job(),
        };
        let is_on_request = match preview.settings() {
            Some(settings) => settings.on_request,
            None => job.and_then(|job| self.jobs.get(&job)).is_some_and(Job::is_on_request),
        };
        is_on_request.then_some(preview.id)
    }
}
