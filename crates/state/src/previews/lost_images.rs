//! Images of a preview that are gone from the registry: they are built again, once.

use crate::ids::{JobId, RunId};
use crate::step::Step;
use crate::{Preview, Run, State, Timestamp, Trigger};

impl Step<'_> {
    /// Starts a run for each deployment that failed for want of an image, which builds the images of its commit and
    /// deploys them.
    pub(crate) fn build_lost_images(&mut self, new_id: &mut dyn FnMut() -> u128) {
        for job in std::mem::take(&mut self.preview_requests.lost_images) {
            let Some((preview, run)) = self.state.deployed_by(job) else { continue };
            let (preview, environment) = (preview.id, run.environment);
            let what_follows =
                match self.state.run_that_rebuilds(job, RunId::from_bits(new_id()), self.now) {
                    Ok(run) => {
                        let Some(environment) = self.state.environments.get(&environment).cloned()
                        else {
                            continue;
                        };
                        let id = run.id;
                        self.start_run(run, environment);
                        self.state.change_preview(preview, |preview| preview.rebuilt_by = Some(id));
                        format!("its images are built again in {id}")
                    }
                    Err(reason) => reason,
                };
            self.state.change_preview(preview, |preview| {
                preview.problem =
                    preview.problem.take().map(|why| format!("{why}; {what_follows}"));
            });
        }
    }
}

impl State {
    /// The open run that builds the preview's images again.
    pub(super) fn run_of_lost_images(&self, preview: &Preview) -> Option<RunId> {
        let run = self.runs.get(&preview.rebuilt_by?)?;
        (!run.state.is_final()).then_some(run.id)
    }

    fn deployed_by(&self, job: JobId) -> Option<(&Preview, &Run)> {
        let run = self.runs.get(&self.jobs.get(&job)?.run)?;
        let preview = self.preview_of(run.environment)?;
        (!preview.state.is_over()).then_some((preview, run))
    }

    /// The run that builds the images of `job` again, or why there is none, for people.
    fn run_that_rebuilds(&self, job: JobId, id: RunId, now: Timestamp) -> Result<Run, String> {
        let unknown = || "its images cannot be built again".to_owned();
        let (preview, deployed) = self.deployed_by(job).ok_or_else(unknown)?;
        let environment = self.environments.get(&deployed.environment).ok_or_else(unknown)?;
        if let Some(earlier) = preview.rebuilt_by {
            return Err(format!(
                "they were built again in {earlier} already: look whether the registry deletes images, and push or \
                 rebuild then"
            ));
        }
        let newest = environment.newest_run.and_then(|newest| self.runs.get(&newest));
        // The run itself may still wait for a tag.
        let is_other = |newest: &&Run| newest.id != deployed.id && !newest.state.is_final();
        if let Some(newest) = newest.filter(is_other) {
            return Err(format!("{} deploys newer ones", newest.id));
        }
        // A wake has not built the images, and the run that did may be forgotten.
        let is_of_commit = |newest: &&Run| newest.commit == deployed.commit;
        let built = newest.filter(|newest| !deployed.trigger.builds() && is_of_commit(newest));
        let built = built.unwrap_or(deployed);
        if !built.set_names.is_empty() {
            return Err(format!(
                "{id} had build arguments that core does not keep: give them again with `stagely rebuild --preview --set \
                 NAME=VALUE {id}`",
                id = built.id
            ));
        }
        let run = Run {
            trigger: Trigger::ImagesGone,
            requested_ref: deployed.commit.as_ref().map(ToString::to_string),
            branch: built.branch.clone(),
            base: built.base.clone(),
            from_fork: built.from_fork,
            github: built.github.clone(),
            with_preview: Some(true),
            with_fresh_data: deployed.trigger == Trigger::Reset,
            rebuilds: Some(built.original()),
            ..Run::new(id, environment, built.repository.clone(), now)
        };
        Ok(run.with_approval(deployed.approval.clone()))
    }
}
