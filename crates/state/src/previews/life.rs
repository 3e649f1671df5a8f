//! The life of a preview: use, sleep, loss, and end.

use std::collections::BTreeSet;
use std::time::Duration;

use stagely_protocol::FailureReason;

use super::placement::DeployTarget;
use crate::ids::{EnvironmentId, MachineId, PreviewId, RunId, SessionId};
use crate::step::Step;
use crate::{
    Archive, CancelReason, Effect, Interruption, JobFailure, JobKind, PreviewEvent, PreviewState,
    Timestamp,
};

const MACHINE_LOST: &str = "its machine was lost";

/// The pause after an archive that failed: the containers stop for each try.
const ARCHIVE_RETRY_DELAY: Duration = Duration::from_mins(15);

const ENDED: &str = "it was not deployed, because the preview was ended";

impl Step<'_> {
    /// Somebody has used the preview, or asks for it while it sleeps.
    pub(crate) fn preview_requested(&mut self, id: PreviewId, at: Timestamp) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        match preview.state {
            PreviewState::Asleep => {
                let retry_at = preview.failed_wakes.map(|failed| failed.retry_at);
                if retry_at.is_none_or(|at| at <= self.now) {
                    self.preview_requests.wake.push(id);
                }
            }
            PreviewState::Ending | PreviewState::Ended | PreviewState::Failed { .. } => return,
            PreviewState::Archiving { .. } => {
                self.move_preview(id, PreviewEvent::Requested);
            }
            PreviewState::Deploying { .. }
            | PreviewState::Live { .. }
            | PreviewState::Updating { .. }
            | PreviewState::Waking { .. } => {}
        }
        // A request cannot be later than now, whatever its clock says.
        let at = at.min(self.now);
        self.state.note_activity(id, at);
    }

    /// A person wakes the preview, also one that failed to wake a moment ago.
    pub(crate) fn preview_wake_requested(&mut self, id: PreviewId) {
        let now = self.now;
        self.state.change_preview(id, |preview| {
            if let Some(failed) = &mut preview.failed_wakes {
                failed.retry_at = now;
            }
        });
        self.preview_requested(id, now);
    }

    /// Has a live preview archived and its machine given back.
    /// Returns false if nothing serves that could be archived.
    pub(crate) fn send_to_sleep(&mut self, id: PreviewId, wakes: bool) -> bool {
        let Some(preview) = self.state.previews.get(&id) else { return false };
        let PreviewState::Live { machine } = preview.state else { return false };
        let lease = self.state.machines.get(&machine).and_then(|machine| machine.lease_until);
        // Its agent has ended, or is about to.
        if lease.is_some_and(|lease| lease <= self.now) {
            return false;
        }
        // Further tries must not let the machine live for ever.
        let is_first_try = preview.archive_retry_at.is_none();
        if !self.move_preview(id, PreviewEvent::SleepRequested { at: self.now, wakes }) {
            return false;
        }
        if is_first_try {
            let end = self.now.after(self.state.limits.previews.archive);
            self.extend_lease(machine, end);
        }
        self.emit(Effect::Sleep { machine, preview: id });
        true
    }

    /// The agent cannot archive the preview, and has started its containers again. They go on, unless the machine is taken
    /// back. A deployment that waits for the archive fails, unless it needs no data.
    pub(crate) fn archive_failed(&mut self, machine: MachineId, id: PreviewId, problem: String) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let PreviewState::Archiving { machine: archiving, .. } = preview.state else { return };
        let is_taken_back = self.state.machines.get(&machine).is_none_or(|machine| {
            matches!(machine.interruption, Some(Interruption::Certain { .. }))
        });
        if archiving != machine || is_taken_back {
            return;
        }
        let environment = preview.environment;
        let waiting = self.state.waiting_deployment(environment);
        let waiting = waiting.and_then(|job| self.state.jobs.get(&job));
        if let Some(JobKind::Deploy { deployment, .. }) = waiting.map(|job| &job.kind)
            && deployment.fresh
        {
            return self.preview_archived(machine, id, None, Some(problem));
        }
        if !self.move_preview(id, PreviewEvent::ArchiveFailed) {
            return;
        }
        let now = self.now;
        self.state.change_preview(id, |preview| {
            preview.problem = Some(problem.clone());
            preview.archive_retry_at = Some(now.after(ARCHIVE_RETRY_DELAY));
        });
        self.fail_move(environment, &problem);
    }

    /// Fails a deployment that needs another machine, because the data cannot move there.
    fn fail_move(&mut self, environment: EnvironmentId, problem: &str) {
        let Some(id) = self.state.waiting_deployment(environment) else { return };
        let Some(job) = self.state.jobs.get(&id) else { return };
        if matches!(self.state.deploy_target(job), DeployTarget::AfterSleep) {
            let message = format!(
                "the preview cannot move to another machine, because its data was not archived: \
                 {problem}; `/stagely preview reset` or `stagely previews reset` does without the data"
            );
            self.fail_job(id, JobFailure::new(FailureReason::Internal, message));
        }
    }

    pub(crate) fn preview_archived(
        &mut self,
        machine: MachineId,
        id: PreviewId,
        archive: Option<Archive>,
        problem: Option<String>,
    ) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let PreviewState::Archiving { machine: archiving, wakes, .. } = preview.state else {
            return;
        };
        if archiving != machine || !self.move_preview(id, PreviewEvent::Archived) {
            return;
        }
        let now = self.now;
        self.state.change_preview(id, |preview| {
            if archive.is_some() {
                preview.archive = archive;
                preview.data_loss = None;
            }
            if let Some(reason) = &problem {
                preview.note_loss(now, reason.clone());
            }
            preview.problem = problem;
            preview.archive_retry_at = None;
        });
        self.retire(machine);
        if wakes {
            self.preview_requests.wake.push(id);
        }
    }

    /// The machine that served a preview is gone or about to go, with the data since the last archive.
    pub(crate) fn lose_preview(&mut self, machine: MachineId) {
        let Some(preview) = self.state.preview_on(machine) else { return };
        let (id, state) = (preview.id, preview.state);
        self.stop_serving(machine, id);
        match state {
            PreviewState::Live { machine: serving }
            | PreviewState::Updating { machine: serving, .. }
            | PreviewState::Archiving { machine: serving, .. }
                if serving == machine => {}
            _ => return,
        }
        if !self.move_preview(id, PreviewEvent::MachineLost) {
            return;
        }
        let now = self.now;
        self.state.change_preview(id, |preview| {
            preview.note_loss(now, MACHINE_LOST.to_owned());
            preview.archive_retry_at = None;
            preview.problem = Some(MACHINE_LOST.to_owned());
        });
        let sleeps = matches!(state, PreviewState::Archiving { wakes: false, .. });
        // An app that takes its machine down again and again must not be bought for ever.
        let is_idle = self.state.previews.get(&id).is_some_and(|preview| preview.is_idle(now));
        if !sleeps && !is_idle {
            self.preview_requests.wake.push(id);
        }
    }

    /// Compares the previews that an agent runs with the records, after its HELLO.
    pub(crate) fn resume_preview(
        &mut self,
        id: MachineId,
        session: SessionId,
        held: Option<&BTreeSet<PreviewId>>,
    ) {
        // An agent of another make does not say what it runs.
        let (Some(held), true) = (held, self.state.sessions.get(&id) == Some(&session)) else {
            return;
        };
        let Some(machine) = self.state.machines.get(&id) else { return };
        let serves = machine.serves;
        let deploys =
            self.attempt_on(id).and_then(|attempt| self.state.preview_of_job(attempt.job));
        let deploys = deploys.map(|preview| preview.id);
        for stray in held {
            if serves != Some(*stray) && deploys != Some(*stray) {
                self.emit(Effect::Retire { machine: id, preview: *stray });
            }
        }
        let Some(preview) = serves else { return };
        let state = self.state.previews.get(&preview).map(|preview| preview.state);
        match state {
            Some(PreviewState::Archiving { machine, .. }) if machine == id => {
                // The agent may have removed it, and core may have lost the report.
                self.move_preview(preview, PreviewEvent::ArchiverReturned { at: self.now });
                self.emit(Effect::Sleep { machine: id, preview });
            }
            _ if !held.contains(&preview) => {
                self.lose_preview(id);
                if !self.is_registered(id) && self.attempt_on(id).is_none() {
                    self.terminate(id);
                }
            }
            _ => {}
        }
    }

    /// Frees a machine of the preview that it served.
    pub(super) fn retire(&mut self, id: MachineId) {
        let Some(preview) = self.state.machines.get(&id).and_then(|machine| machine.serves) else {
            return;
        };
        self.stop_serving(id, preview);
        if self.is_registered(id) {
            self.emit(Effect::Retire { machine: id, preview });
        } else {
            self.terminate(id);
        }
    }

    /// A launched machine ends with that, and the preview does not end before it.
    fn stop_serving(&mut self, id: MachineId, preview: PreviewId) {
        let served = (!self.is_registered(id)).then_some(preview);
        self.state.change_machine(id, |machine| (machine.serves, machine.served) = (None, served));
    }

    /// Ends the preview: its deployment is cancelled, and its machines and its archive are deleted.
    pub(crate) fn end_preview(&mut self, id: PreviewId, reason: CancelReason) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        if matches!(preview.state, PreviewState::Ending | PreviewState::Ended) {
            return;
        }
        let (job, environment) = (preview.state.job(), preview.environment);
        self.move_preview(id, PreviewEvent::EndRequested);
        // Runs that would start it again, and still wait for a machine.
        let is_restart =
            |run: &RunId| self.state.runs.get(run).is_some_and(|run| run.trigger.is_of_preview());
        let restarts = self.state.open_runs_of(environment).into_iter().filter(is_restart);
        for run in restarts.collect::<Vec<_>>() {
            self.cancel_run(run, reason);
        }
        if let Some(job) = job {
            self.cancel_deployment(job, ENDED);
        }
        let serving = self.state.live_machines().filter(|machine| machine.serves == Some(id));
        let serving: Vec<MachineId> = serving.map(|machine| machine.id).collect();
        for machine in serving {
            self.retire(machine);
        }
        self.state.change_preview(id, |preview| {
            preview.shown = None;
            preview.archive = None;
            preview.data_loss = None;
            preview.attempted_commits.clear();
            preview.rebuilt_by = None;
            preview.archive_retry_at = None;
            preview.extended_until = None;
        });
    }

    pub(crate) fn end_preview_of(&mut self, environment: EnvironmentId) {
        if let Some(preview) = self.state.preview_of(environment).map(|preview| preview.id) {
            self.end_preview(preview, CancelReason::EnvironmentClosed);
        }
    }

    /// Ends the previews that have no machine any more.
    pub(super) fn end_unused_previews(&mut self) {
        let active = self.state.index.active_previews.iter();
        let active = active.filter_map(|id| self.state.previews.get(id));
        let ending = active.filter(|preview| preview.state == PreviewState::Ending);
        let unused = ending.filter(|preview| !self.state.has_preview_machine(preview));
        let unused: Vec<_> = unused.map(|preview| (preview.id, preview.environment)).collect();
        for (preview, environment) in unused {
            self.move_preview(preview, PreviewEvent::MachinesGone);
            self.forget_empty_environments(BTreeSet::from([environment]));
        }
    }

    /// Returns whether one was due.
    pub(crate) fn fire_preview_timeouts(&mut self) -> bool {
        let due = self.state.index.due_previews.iter();
        let due = due.take_while(|(due, _)| *due <= self.now);
        let due: Vec<PreviewId> = due.map(|(_, id)| *id).collect();
        for id in &due {
            self.fire_preview_timeout(*id);
        }
        !due.is_empty()
    }

    fn fire_preview_timeout(&mut self, id: PreviewId) {
        let Some(preview) = self.state.previews.get(&id) else { return };
        let (state, ends_at) = (preview.state, preview.ends_at());
        let is_tested =
            matches!(state, PreviewState::Live { .. }) && self.state.is_under_test(preview);
        let is_idle = preview.is_idle(self.now) && !is_tested;
        if let PreviewState::Archiving { machine, .. } = state {
            let problem = "its data was not archived within previews.archive-limit".to_owned();
            return self.preview_archived(machine, id, None, Some(problem));
        }
        if ends_at.is_some_and(|end| end <= self.now) && !is_tested {
            return self.end_preview(id, CancelReason::Requested);
        }
        let PreviewState::Live { machine } = state else { return };
        if !is_idle && self.renew_lease(machine) {
            return;
        }
        // Before the end of its machine's lease, one that is in use moves. Without money for that it sleeps.
        let wakes = !is_idle && !self.state.has_short_lease(machine);
        if !self.send_to_sleep(id, wakes) {
            self.terminate(machine);
        }
    }
}
