//! What a run keeps of an earlier one: jobs that had completed there are not done again.

use std::collections::{BTreeMap, BTreeSet};

use super::step::Step;
use super::{Job, JobEvent, JobKind, JobState, State, UsedImage};
use crate::ids::{JobId, RunId};

impl Step<'_> {
    /// Completes the queued jobs of `run` that had completed in `earlier`. Nothing is kept from another
    /// commit.
    pub(super) fn keep_completed(&mut self, run: RunId, earlier: RunId) {
        let commit = |id: &RunId| self.state.runs.get(id).and_then(|run| run.commit.as_ref());
        if commit(&run).is_none() || commit(&run) != commit(&earlier) {
            return;
        }
        let kept = self.state.kept(run, earlier);
        for (id, old) in &kept {
            self.keep_job(*id, *old);
        }
        for id in kept.into_keys() {
            self.note_image(id);
        }
    }

    fn keep_job(&mut self, id: JobId, old: JobId) {
        let Some(old) = self.state.jobs.get(&old).cloned() else { return };
        let JobState::Completed { digest } = old.state else { return };
        if !self.close_job(id, JobEvent::Reused { digest }) {
            return;
        }
        self.state.change_job(id, |job| {
            // Whoever asks for the image finds it where it was pushed.
            *job.kind.image_mut() = old.kind.image().clone();
            job.kept_from = old.kept_from.or(Some(old.id));
            job.steps = old.steps;
            job.cache_miss = old.cache_miss;
            job.emulated = old.emulated;
        });
    }
}

impl State {
    /// The jobs of `run` that are kept, each with the job of `earlier` that it is. A job stands on what
    /// it needs and uses: it is kept only if all of that is the same, so that a merge joins the same
    /// digests, and a build stands on the same images.
    fn kept(&self, run: RunId, earlier: RunId) -> BTreeMap<JobId, JobId> {
        let earlier: BTreeMap<&str, &Job> =
            self.jobs_of(earlier).map(|job| (job.name.as_str(), job)).collect();
        let mut kept = BTreeMap::new();
        // A job may come before those that it needs, so once over all is not enough.
        loop {
            let count = kept.len();
            for job in self.jobs_of(run) {
                let old = earlier.get(job.name.as_str()).filter(|old| is_same(old, job));
                let stands =
                    |old: &&&Job| has_same_needs(old, job, &kept) && uses_same(old, job, &kept);
                if let Some(old) = old.filter(stands) {
                    kept.insert(job.id, old.id);
                }
            }
            if kept.len() == count {
                return kept;
            }
        }
    }
}

fn has_same_needs(old: &Job, planned: &Job, kept: &BTreeMap<JobId, JobId>) -> bool {
    let needs = planned.needs.iter().map(|needed| kept.get(needed).copied());
    needs.collect::<Option<BTreeSet<JobId>>>() == Some(old.needs.iter().copied().collect())
}

/// Whether both use the same images. Those that were there already may have been built anew since.
fn uses_same(old: &Job, planned: &Job, kept: &BTreeMap<JobId, JobId>) -> bool {
    let (JobKind::Build { uses: before, .. }, JobKind::Build { uses, .. }) =
        (&old.kind, &planned.kind)
    else {
        return true;
    };
    let is_same = |(name, image): (&String, &UsedImage)| match (image, before.get(name)) {
        (UsedImage::Job { job }, Some(UsedImage::Job { job: old })) => kept.get(job) == Some(old),
        (image, old) => old == Some(image),
    };
    uses.len() == before.len() && uses.iter().all(is_same)
}

/// Whether `old` made the very image that `planned` is to make.
fn is_same(old: &Job, planned: &Job) -> bool {
    let has_same_kind = match (&old.kind, &planned.kind) {
        (JobKind::Build { .. }, JobKind::Build { push, .. }) => *push,
        (JobKind::Merge { .. }, JobKind::Merge { .. }) => true,
        (JobKind::Build { .. }, JobKind::Merge { .. })
        | (JobKind::Merge { .. }, JobKind::Build { .. }) => false,
    };
    has_same_kind
        && old.variant == planned.variant
        && matches!(old.state, JobState::Completed { digest: Some(_) })
}
