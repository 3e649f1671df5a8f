//! Reuses what completed in an earlier run of the same commit: images, the deployment that the preview still shows, and
//! tests that have passed.

use std::collections::{BTreeMap, BTreeSet};

use super::step::Step;
use super::{Job, JobEvent, JobKind, JobState, PreviewState, State, UsedImage, WantedTests};
use crate::ids::{JobId, RunId};

impl Step<'_> {
    /// Completes the queued jobs of `run` that had completed in `earlier`, if both runs are of the same commit.
    pub(super) fn reuse_completed(&mut self, run: RunId, earlier: RunId) {
        let commit = |id: &RunId| self.state.runs.get(id).and_then(|run| run.commit.as_ref());
        if commit(&run).is_none() || commit(&run) != commit(&earlier) {
            return;
        }
        let reused = self.state.reused(run, earlier);
        for (id, old) in &reused {
            self.reuse_job(*id, *old);
        }
        if reused.keys().any(|id| self.state.jobs.get(id).is_some_and(|job| job.kind.is_deploy())) {
            self.adopt_preview(run);
        }
        for id in reused.into_keys() {
            self.note_image(id);
        }
    }

    fn reuse_job(&mut self, id: JobId, old: JobId) {
        let Some(old) = self.state.jobs.get(&old).cloned() else { return };
        let JobState::Completed { digest } = old.state else { return };
        if !self.close_job(id, JobEvent::Reused { digest }) {
            return;
        }
        self.state.change_job(id, |job| {
            // The image stays at the reference to which the old job pushed it.
            if let (Some(image), Some(old)) = (job.kind.image_mut(), old.kind.image()) {
                image.clone_from(old);
            }
            job.reused_from = old.reused_from.or(Some(old.id));
            job.steps = old.steps;
            job.cache_miss = old.cache_miss;
            job.emulated = old.emulated;
            job.results = old.results;
            job.artifacts = old.artifacts;
        });
    }

    /// What the preview shows counts as deployed by `run`, whose tests are for it.
    fn adopt_preview(&mut self, id: RunId) {
        let Some(run) = self.state.runs.get(&id) else { return };
        let requested_at = run.created_at;
        let preview = self.state.preview_of(run.environment).map(|preview| preview.id);
        if let Some(preview) = preview {
            self.state.change_preview(preview, |preview| {
                if let Some(shown) = &mut preview.shown {
                    shown.run = id;
                    shown.requested_at = requested_at;
                }
            });
        }
    }
}

impl State {
    /// The jobs of `run` that can reuse a job of `earlier`, each with that job. A job is reused only if everything that
    /// it needs and uses is reused as well: then a merge joins the same digests, and a build uses the same images.
    fn reused(&self, run: RunId, earlier: RunId) -> BTreeMap<JobId, JobId> {
        let earlier: BTreeMap<&str, &Job> =
            self.jobs_of(earlier).map(|job| (job.name.as_str(), job)).collect();
        let mut reused = BTreeMap::new();
        // A job may come before the jobs that it needs, so one pass is not enough.
        loop {
            let count = reused.len();
            for job in self.jobs_of(run) {
                let old = earlier.get(job.name.as_str()).filter(|old| self.is_same(old, job));
                let is_reusable =
                    |old: &&&Job| has_same_needs(old, job, &reused) && uses_same(old, job, &reused);
                if let Some(old) = old.filter(is_reusable) {
                    reused.insert(job.id, old.id);
                }
            }
            if reused.len() == count {
                return reused;
            }
        }
    }
}

impl State {
    /// Whether `old` has done what `planned` would do.
    fn is_same(&self, old: &Job, planned: &Job) -> bool {
        let has_pushed = matches!(old.state, JobState::Completed { digest: Some(_) });
        let is_reusable = match (&old.kind, &planned.kind) {
            (JobKind::Build { .. }, JobKind::Build { push, .. }) => *push && has_pushed,
            (JobKind::Merge { .. }, JobKind::Merge { .. }) => has_pushed,
            (JobKind::Deploy { .. }, JobKind::Deploy { deployment, .. }) => {
                !deployment.fresh && self.is_still_shown(old, planned.run)
            }
            (JobKind::Test { .. }, JobKind::Test { .. }) => {
                let again = self
                    .runs
                    .get(&planned.run)
                    .is_some_and(|run| run.wanted_tests == WantedTests::All);
                !again && matches!(old.state, JobState::Completed { .. })
            }
            (
                JobKind::Build { .. }
                | JobKind::Merge { .. }
                | JobKind::Deploy { .. }
                | JobKind::Test { .. },
                _,
            ) => false,
        };
        is_reusable && old.variant == planned.variant
    }

    /// Whether the preview shows what `old` has deployed, and `run` may take that over.
    fn is_still_shown(&self, old: &Job, run: RunId) -> bool {
        let Some(environment) = self.runs.get(&run).map(|run| run.environment) else {
            return false;
        };
        let newest = self.environments.get(&environment).and_then(|found| found.newest_run);
        let Some(preview) = self.preview_of(environment).filter(|_| newest == Some(run)) else {
            return false;
        };
        let deployed_at = self.runs.get(&old.run).map(|run| run.created_at);
        let shown_at = preview.shown.as_ref().map(|shown| shown.requested_at);
        let is_there = match preview.state {
            PreviewState::Live { .. } => true,
            // A preview that could not be woken is deployed again.
            PreviewState::Asleep => preview.failed_wakes.is_none(),
            PreviewState::Deploying { .. }
            | PreviewState::Updating { .. }
            | PreviewState::Archiving { .. }
            | PreviewState::Waking { .. }
            | PreviewState::Ending
            | PreviewState::Ended
            | PreviewState::Failed { .. } => false,
        };
        // Tests of the earlier run may go on, if nothing has superseded it.
        is_there
            && !self.is_under_test(preview)
            && matches!(old.state, JobState::Completed { .. })
            && shown_at.is_some()
            && shown_at == deployed_at
    }
}

fn has_same_needs(old: &Job, planned: &Job, reused: &BTreeMap<JobId, JobId>) -> bool {
    let needs = planned.needs.iter().map(|needed| reused.get(needed).copied());
    needs.collect::<Option<BTreeSet<JobId>>>() == Some(old.needs.iter().copied().collect())
}

/// Whether both use the same images. The image of a skipped build may have been replaced since.
fn uses_same(old: &Job, planned: &Job, reused: &BTreeMap<JobId, JobId>) -> bool {
    let (before, uses) = (used_images(&old.kind), used_images(&planned.kind));
    let is_same = |(name, image): (&&str, &&UsedImage)| match (image, before.get(name)) {
        (UsedImage::Job { job }, Some(UsedImage::Job { job: old })) => reused.get(job) == Some(old),
        (image, old) => old == Some(image),
    };
    uses.len() == before.len() && uses.iter().all(is_same)
}

/// The images that a job uses, by name.
fn used_images(kind: &JobKind) -> BTreeMap<&str, &UsedImage> {
    match kind {
        JobKind::Build { uses, .. } => by_name(uses).collect(),
        JobKind::Merge { .. } => BTreeMap::new(),
        JobKind::Deploy { deployment, .. } => {
            by_name(&deployment.default_images).chain(by_name(&deployment.images)).collect()
        }
        JobKind::Test { test, .. } => BTreeMap::from([("", &test.image)]),
    }
}

fn by_name(images: &BTreeMap<String, UsedImage>) -> impl Iterator<Item = (&str, &UsedImage)> {
    images.iter().map(|(name, image)| (name.as_str(), image))
}
