//! The run-independent reference of each build. It names the image of the environment's newest run, and never goes back
//! to an older run's image.

use stagely_protocol::{Digest, ImageRef};

use super::step::Step;
use super::{Effect, GoodImage, Job, JobState, Run, VariantName};
use crate::ids::{EnvironmentId, JobId, RunId};

/// The warning of a completed job whose reference stays at the image of a newer run.
pub fn tag_not_moved_warning(tag: &ImageRef) -> String {
    format!("a newer run of this environment is there, so {tag} was not moved")
}

impl Step<'_> {
    /// Records the image of a completed job if its run is the environment's newest. Otherwise the job gets a warning
    /// that its reference was not moved. The step that completes the job decides this, because an ended job does not
    /// change.
    pub(super) fn note_image(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(run) = self.state.runs.get(&job.run) else { return };
        let (JobState::Completed { digest: Some(digest) }, Some(image), Some(tag), Some(commit)) =
            (&job.state, job.kind.image(), &job.tag, &run.commit)
        else {
            return;
        };
        let environment = run.environment;
        let Some(record) = self.state.environments.get(&environment) else { return };
        if record.newest_run != Some(run.id) {
            if run.trigger.builds() {
                let warning = tag_not_moved_warning(tag);
                self.state.change_job(id, |job| job.warnings.push(warning));
            }
            return;
        }
        let replaced = record.images.get(&job.variant).map(|image| image.run);
        let image = GoodImage {
            run: run.id,
            commit: commit.clone(),
            image: image.clone(),
            digest: digest.clone(),
            tag: tag.clone(),
            with_set: !run.set_names.is_empty(),
        };
        let (run, variant) = (run.id, job.variant.clone());
        self.state.change_environment(environment, |environment| {
            environment.images.insert(variant.clone(), image);
        });
        self.request_tag(environment, variant);
        // The run whose image was replaced does not wait for its tag any more.
        if let Some(replaced) = replaced.filter(|replaced| *replaced != run) {
            self.settle_run(replaced);
        }
    }

    /// Requests that the reference is moved, unless a move is under way. If that move's outcome names another digest,
    /// the reference is moved again.
    fn request_tag(&mut self, environment: EnvironmentId, variant: VariantName) {
        let tag = Effect::Tag { environment, variant };
        if !self.state.is_in_outbox(&tag) {
            self.emit(tag);
        }
    }

    pub(super) fn image_tagged(
        &mut self,
        environment: EnvironmentId,
        variant: VariantName,
        digest: &Digest,
        result: Result<(), String>,
    ) {
        let tag = Effect::Tag { environment, variant: variant.clone() };
        if !self.state.remove_from_outbox(&tag) {
            return;
        }
        let record = self.state.environments.get(&environment);
        let Some(image) = record.and_then(|record| record.images.get(&variant)) else { return };
        if image.digest != *digest {
            return self.request_tag(environment, variant);
        }
        let run = image.run;
        if let Err(why) = result {
            let warning = format!("{} does not name this image: {why}", image.tag);
            self.warn_of_tag(image.run, &variant, &warning);
        }
        self.settle_run(run);
    }

    /// Adds a warning to the last job of the variant. The run does not fail, because its image is pushed.
    fn warn_of_tag(&mut self, run: RunId, variant: &VariantName, warning: &str) {
        if self.state.runs.get(&run).is_none_or(|run| run.state.is_final()) {
            return;
        }
        let is_last = |job: &&Job| job.tag.is_some() && job.variant == *variant;
        let job = self.state.jobs_of(run).find(is_last).map(|job| job.id);
        if let Some(job) = job {
            self.state.change_job(job, |job| job.warnings.push(warning.to_owned()));
        }
    }

    /// Whether a reference is yet to be moved to an image of `run`.
    pub(super) fn waits_for_tag(&self, run: &Run) -> bool {
        let Some(environment) = self.state.environments.get(&run.environment) else { return false };
        environment.images.iter().any(|(variant, image)| {
            let tag = || Effect::Tag { environment: environment.id, variant: variant.clone() };
            image.run == run.id && self.state.is_in_outbox(&tag())
        })
    }
}
