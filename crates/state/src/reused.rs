//! Reuses the images of jobs that completed in an earlier run of the same commit.

use std::collections::{BTreeMap, BTreeSet};

use super::step::Step;
use super::{Job, JobEvent, JobKind, JobState, State, UsedImage};
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
        });
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
                let old = earlier.get(job.name.as_str()).filter(|old| is_same(old, job));
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

fn has_same_needs(old: &Job, planned: &Job, reused: &BTreeMap<JobId, JobId>) -> bool {
    let needs = planned.needs.iter().map(|needed| reused.get(needed).copied());
    needs.collect::<Option<BTreeSet<JobId>>>() == Some(old.needs.iter().copied().collect())
}

/// Whether both use the same images. The image of a skipped build may have been replaced since.
fn uses_same(old: &Job, planned: &Job, reused: &BTreeMap<JobId, JobId>) -> bool {
    let (JobKind::Build { uses: before, .. }, JobKind::Build { uses, .. }) =
        (&old.kind, &planned.kind)
    else {
        return true;
    };
    let is_same = |(name, image): (&String, &UsedImage)| match (image, before.get(name)) {
        (UsedImage::Job { job }, Some(UsedImage::Job { job: old })) => reused.get(job) == Some(old),
        (image, old) => old == Some(image),
    };
    uses.len() == before.len() && uses.iter().all(is_same)
}

/// Whether `old` made the image that `planned` would make.
fn is_same(old: &Job, planned: &Job) -> bool {
    let has_same_kind = match (&old.kind, &planned.kind) {
        (JobKind::Build { .. }, JobKind::Build { push, .. }) => *push,
        (JobKind::Merge { .. }, JobKind::Merge { .. }) => true,
        // A deployment runs again, since it makes no image.
        (JobKind::Build { .. }, JobKind::Merge { .. } | JobKind::Deploy { .. })
        | (JobKind::Merge { .. }, JobKind::Build { .. } | JobKind::Deploy { .. })
        | (JobKind::Deploy { .. }, _) => false,
    };
    has_same_kind
        && old.variant == planned.variant
        && matches!(old.state, JobState::Completed { digest: Some(_) })
}
