//! The registry: the image that each run-independent reference names, and the layer caches.

use std::collections::{BTreeMap, BTreeSet};

use stagely_protocol::{Digest, ImageRef};
use stagely_state::ids::{EnvironmentId, JobId, RunId};
use stagely_state::{
    Attempt, Event, FingerprintChange, GoodImage, Job, JobState, Run, State, VariantName,
    tag_not_moved_warning,
};

use crate::world::World;

#[derive(Default)]
pub(crate) struct Registry {
    tags: BTreeMap<ImageRef, (RunId, Digest)>,
    pub(crate) caches: BTreeSet<ImageRef>,
    /// Images that the registry refused to tag.
    refused: BTreeSet<(ImageRef, Digest)>,
}

impl Registry {
    pub(crate) fn refuse(&mut self, image: &GoodImage) {
        self.refused.insert((image.tag.clone(), image.digest.clone()));
    }

    /// Moves the reference. It must not go back to an image of an older run, or of a rebuild of an older run. `order`
    /// has the run that each run repeats.
    pub(crate) fn tag(&mut self, image: &GoodImage, order: &[(RunId, RunId)]) {
        let position = |run: RunId| {
            let at = order.iter().position(|(other, _)| *other == run)?;
            let original = order.iter().position(|(other, _)| *other == order[at].1)?;
            Some((original, at))
        };
        if let Some((older, _)) = self.tags.get(&image.tag) {
            assert!(position(*older) <= position(image.run), "{} is moved back", image.tag);
        }
        self.refused.retain(|(tag, _)| *tag != image.tag);
        self.tags.insert(image.tag.clone(), (image.run, image.digest.clone()));
    }

    /// Deletes the environment's images.
    pub(crate) fn delete_images(&mut self, environment: EnvironmentId) {
        let path = format!("registry/{environment}/");
        let (gone, rest) = std::mem::take(&mut self.tags)
            .into_iter()
            .partition(|(tag, _)| tag.to_string().starts_with(&path));
        self.tags = rest;
        let gone: BTreeMap<ImageRef, (RunId, Digest)> = gone;
        self.refused.extend(gone.into_iter().map(|(tag, (_, digest))| (tag, digest)));
    }

    fn check(&self, image: &GoodImage) {
        let is_refused = self.refused.contains(&(image.tag.clone(), image.digest.clone()));
        let named = self.tags.get(&image.tag).map(|(_, digest)| digest);
        assert!(is_refused || named == Some(&image.digest), "{} names {named:?}", image.tag);
    }
}

/// The attempt whose fingerprint is stored for each cache.
#[derive(Clone, Default)]
pub(crate) struct Fingerprints(BTreeMap<ImageRef, Attempt>);

impl Fingerprints {
    /// Applies the changes of the step. No fingerprint is replaced by one of an older attempt.
    pub(crate) fn change(&mut self, event: &Event, changes: &[FingerprintChange]) {
        for change in changes {
            match (change, event) {
                (FingerprintChange::Store(cache), Event::JobReported { attempt, .. }) => {
                    let older = self.0.insert(cache.clone(), *attempt);
                    let older = older.filter(|older| older.job == attempt.job);
                    assert!(older.is_none_or(|older| older <= *attempt), "{older:?} is newer");
                }
                (FingerprintChange::Store(cache), _) => panic!("{event:?} describes {cache}"),
                (FingerprintChange::Delete(cache), _) => {
                    self.0.remove(cache);
                }
            }
        }
    }
}

/// The newest images, computed from the events alone.
#[derive(Clone, Default)]
pub(crate) struct Expected {
    newest: BTreeMap<EnvironmentId, RunId>,
    images: BTreeMap<(EnvironmentId, VariantName), (RunId, Digest)>,
}

impl Expected {
    pub(crate) fn note_request(&mut self, core: &State, run: &Run) {
        let newest = self.newest.get(&run.environment);
        let is_older = run.rebuilds.is_some()
            && newest.is_some_and(|id| {
                run.rebuilds != Some(*id)
                    && core.runs.get(id).is_none_or(|newest| newest.rebuilds != run.rebuilds)
            });
        if run.trigger.builds() && !is_older {
            self.newest.insert(run.environment, run.id);
        }
    }

    pub(crate) fn forget(&mut self, cleaned: EnvironmentId) {
        self.images.retain(|(environment, _), _| *environment != cleaned);
    }

    /// Notes the jobs that a step has completed, and compares the images with the records.
    pub(crate) fn check(&mut self, core: &State, were_completed: &BTreeSet<JobId>) {
        for job in core.jobs.values().filter(|job| !were_completed.contains(&job.id)) {
            self.note_completed(core, job);
        }
        self.images.retain(|(environment, _), _| core.environments.contains_key(environment));
        self.newest.retain(|environment, _| core.environments.contains_key(environment));
        let recorded = core.environments.values().flat_map(|environment| {
            environment.images.iter().map(|(variant, image)| {
                ((environment.id, variant.clone()), (image.run, image.digest.clone()))
            })
        });
        assert!(recorded.eq(self.images.clone()), "other images count as the newest");
    }

    fn note_completed(&mut self, core: &State, job: &Job) {
        let environment = core.runs[&job.run].environment;
        let is_newest = self.newest.get(&environment) == Some(&job.run);
        if let JobState::Completed { digest: Some(digest) } = &job.state
            && let Some(tag) = &job.tag
        {
            let has_warning = job.warnings.contains(&tag_not_moved_warning(tag));
            assert_eq!(has_warning, !is_newest, "{}: wrong warnings about its reference", job.id);
            if is_newest {
                let image = (job.run, digest.clone());
                self.images.insert((environment, job.variant.clone()), image);
            }
        }
    }
}

pub(crate) fn completed(core: &State) -> BTreeSet<JobId> {
    let jobs = core.jobs.values();
    let completed = jobs.filter(|job| matches!(job.state, JobState::Completed { .. }));
    completed.map(|job| job.id).collect()
}

/// The path of all caches that only this environment writes.
pub(crate) fn caches_of(environment: EnvironmentId) -> String {
    format!("registry/{environment}/cache")
}

/// At rest each reference names the newest image, nothing is left of closed environments, and each environment has a
/// run.
pub(crate) fn check_at_rest(world: &World) {
    for environment in world.core.environments.values() {
        let mut runs = world.core.runs.values();
        let has_run = runs.any(|run| run.environment == environment.id);
        let mut previews = world.core.previews.values();
        let has_preview =
            previews.any(|preview| preview.environment == environment.id && !preview.has_ended());
        assert!(has_run || has_preview, "{} outlives its runs", environment.id);
        environment.images.values().for_each(|image| world.registry.check(image));
    }
    for cache in &world.registry.caches {
        let mut open =
            world.core.environments.values().filter(|environment| !environment.state.is_closed());
        let is_open =
            open.any(|environment| cache.to_string().starts_with(&caches_of(environment.id)));
        assert!(is_open, "{cache} is left");
    }
    for cache in world.model.fingerprints.0.keys() {
        assert!(world.registry.caches.contains(cache), "{cache} is described and not there");
    }
}
