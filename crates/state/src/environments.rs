//! The life of an environment: its newest run, its opening and closing, and the clean-up of a closed one.

use std::collections::BTreeSet;

use stagely_protocol::ImageRef;

use super::step::Step;
use super::{
    CancelReason, ClosedBy, Effect, Environment, EnvironmentEvent, FingerprintChange, Machine, Run,
    State,
};
use crate::ids::{EnvironmentId, JobId, MachineId, RunId};

impl Step<'_> {
    /// Opens the environment for `run`, and makes `run` its newest and reported run if it is.
    pub(super) fn open_environment(&mut self, run: &Run, environment: Environment) {
        let (id, pull_request) = (environment.id, environment.pull_request);
        self.state.insert_new_environment(environment);
        let is_newest = self.state.is_newest(run);
        let reported =
            self.state.environments.get(&id).and_then(|environment| environment.report.run);
        let is_reported = run.is_of_github(pull_request) && self.state.comes_after(run, reported);
        let is_cleaning_up = self.state.is_in_outbox(&Effect::CleanUp { environment: id });
        self.move_environment(id, EnvironmentEvent::Opened { is_cleaning_up });
        self.state.change_environment(id, |environment| {
            environment.pull_request = pull_request;
            if is_newest {
                environment.newest_run = Some(run.id);
            }
            if is_reported {
                environment.report.run = Some(run.id);
            }
        });
    }

    pub(super) fn close_environment(&mut self, id: EnvironmentId, by: ClosedBy) {
        self.move_environment(id, EnvironmentEvent::Closed { by });
        for run in self.state.open_runs_of(id) {
            self.cancel_run(run, CancelReason::EnvironmentClosed);
        }
        self.end_preview_of(id);
    }

    /// Starts the clean-up of closed environments that no machine can write to any more.
    pub(super) fn clean_up(&mut self) {
        let closing = self.state.index.closing.iter().copied();
        let unused: Vec<EnvironmentId> =
            closing.filter(|id| !self.state.may_be_written(*id)).collect();
        for environment in unused {
            let delete = Effect::CleanUp { environment };
            if !self.state.is_in_outbox(&delete) {
                self.emit(delete);
            }
        }
    }

    /// Marks clean-ups as outdated, because the machine, which counted as terminated, exists and may have written to a
    /// cache since the clean-up began.
    pub(super) fn invalidate_cleanup(&mut self, machine: MachineId) {
        self.repeat_cleanup(machine);
        let closing = self.state.index.closing.iter().copied();
        let is_written = |id: &EnvironmentId| {
            self.state.is_in_outbox(&Effect::CleanUp { environment: *id })
                && self.state.may_be_written(*id)
        };
        let written: Vec<EnvironmentId> = closing.filter(is_written).collect();
        for environment in written {
            self.move_environment(environment, EnvironmentEvent::CleanupInvalidated);
        }
    }

    /// Has the environments that the machine has worked for cleaned up again when they are closed.
    fn repeat_cleanup(&mut self, machine: MachineId) {
        let Some(machine) = self.state.machines.get(&machine) else { return };
        let jobs = machine.jobs().filter_map(|job| self.state.jobs.get(&job));
        let runs = jobs.filter_map(|job| self.state.runs.get(&job.run));
        let environments: BTreeSet<EnvironmentId> = runs.map(|run| run.environment).collect();
        for id in environments {
            self.state.change_environment(id, |environment| {
                environment.cache_refs.append(&mut environment.deleted_cache_refs);
                environment.has_images |= environment.pull_request.is_some();
            });
        }
    }

    pub(super) fn cleaned_up(&mut self, id: EnvironmentId, refs: &BTreeSet<ImageRef>) {
        // The caches are deleted in any case, also if the effect is not in the outbox any more.
        let mut deleted = refs.clone();
        let outdated =
            self.state.environments.get(&id).filter(|record| record.state.has_outdated_cleanup());
        // A core that was killed during the deletion has deleted caches as well. The next one found the
        // environment open, so `refs` does not name them.
        deleted.extend(outdated.iter().flat_map(|record| record.cache_refs.iter().cloned()));
        for cache in deleted {
            self.change_fingerprint(FingerprintChange::Delete(cache));
        }
        if !self.state.remove_from_outbox(&Effect::CleanUp { environment: id }) {
            return;
        }
        let Some(environment) = self.state.environments.get(&id) else { return };
        let is_outdated = environment.state.has_outdated_cleanup();
        self.move_environment(id, EnvironmentEvent::CleanedUp);
        if is_outdated {
            // A ref may have been written since it was deleted, so the record keeps all refs for the next clean-up.
            return;
        }
        self.state.change_environment(id, |environment| {
            environment.cache_refs.retain(|cache| !refs.contains(cache));
            environment.deleted_cache_refs.extend(refs.iter().cloned());
            // Images of a branch stay.
            if environment.has_images {
                environment.has_images = false;
                environment.images.clear();
            }
        });
        self.forget_empty_environments(BTreeSet::from([id]));
    }

    /// Closes environments that have no run and no preview any more, so that their cache refs are deleted, and removes them once
    /// nothing in the registry is to be deleted and no effect is under way. The project stays: its name is part of
    /// its images and caches in the registry, and another repository must not get it.
    pub(super) fn forget_empty_environments(&mut self, ids: BTreeSet<EnvironmentId>) {
        for id in ids {
            let has_preview = self.state.preview_of(id).is_some_and(|preview| !preview.has_ended());
            if self.state.has_runs(id) || has_preview {
                continue;
            }
            let index = &self.state.index;
            let environment = self.state.environments.get(&id);
            let has_leftovers = environment.is_some_and(Environment::has_leftovers);
            if has_leftovers || index.environment_effects.contains_key(&id) {
                self.move_environment(id, EnvironmentEvent::Closed { by: ClosedBy::Request });
            } else {
                self.state.remove_environment(id);
            }
        }
    }
}

impl State {
    /// Whether the new run `run` becomes the newest of its environment. A warm-up does not, because it pushes no
    /// images. The rebuild of an older run does not, because it must not move tags back.
    pub(super) fn is_newest(&self, run: &Run) -> bool {
        if !run.trigger.builds() {
            return false;
        }
        let newest =
            self.environments.get(&run.environment).and_then(|environment| environment.newest_run);
        self.comes_after(run, newest)
    }

    /// Whether `run` is newer than `newest`. A rebuild is newer only than the run that it repeats.
    fn comes_after(&self, run: &Run, newest: Option<RunId>) -> bool {
        let original = |id: RunId| self.runs.get(&id).map_or(id, Run::original);
        run.rebuilds.is_none_or(|repeated| newest.is_none_or(|newest| original(newest) == repeated))
    }

    /// Whether a machine may still write to the environment's caches, or a tag of it may be moved.
    fn may_be_written(&self, environment: EnvironmentId) -> bool {
        if self.effects_of(environment).any(|effect| matches!(effect, Effect::Tag { .. })) {
            return true;
        }
        // A forgotten job may belong to any environment.
        let may_be_its_own = |job: JobId| {
            let run = self.jobs.get(&job).and_then(|job| self.runs.get(&job.run));
            run.is_none_or(|run| run.environment == environment)
        };
        self.live_machines().flat_map(Machine::jobs).any(may_be_its_own)
    }
}

impl Environment {
    /// Whether the registry has something of it that is deleted when it is closed.
    pub(super) fn has_leftovers(&self) -> bool {
        self.has_images || !self.cache_refs.is_empty()
    }
}

impl Machine {
    /// All jobs that its agent may work on.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        let exporting = self.exporting.map(|export| export.attempt.job);
        let stopping = self.stopping.iter().map(|attempt| attempt.job);
        self.job().into_iter().chain(exporting).chain(stopping)
    }
}
