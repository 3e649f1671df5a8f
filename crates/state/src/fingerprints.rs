//! Which reports may change the stored fingerprints of layer caches.
//!
//! A fingerprint describes the inputs of a build. It is large, so it is not part of the state. The orchestrator
//! receives it with the report, and stores it if the step's outcome contains [`FingerprintChange::Store`].

use stagely_protocol::ImageRef;

use super::step::Step;
use super::{Attempt, JobKind, JobOutcome, JobReport, State};
use crate::ids::MachineId;

/// A change of the fingerprint that is stored for a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FingerprintChange {
    /// The fingerprint that came with the event describes the layers of this cache.
    Store(ImageRef),
    /// The cache is deleted, so its fingerprint is deleted as well.
    Delete(ImageRef),
}

impl Step<'_> {
    /// Stores the fingerprint of a reported build, unless the report is of an attempt that the machine does
    /// not have any more. Must be called before the report changes the records.
    pub(super) fn store_fingerprint(
        &mut self,
        machine: MachineId,
        attempt: Attempt,
        report: &JobReport,
    ) {
        if let Some(cache) = self.state.written_cache(machine, attempt, report) {
            self.change_fingerprint(FingerprintChange::Store(cache));
        }
    }
}

impl State {
    /// The cache that this report completes.
    fn written_cache(
        &self,
        id: MachineId,
        attempt: Attempt,
        report: &JobReport,
    ) -> Option<ImageRef> {
        let JobOutcome::Completed { .. } = report.outcome else { return None };
        // The cache is not complete before its export ends, and another report follows then.
        if report.exporting_cache {
            return None;
        }
        let job = self.jobs.get(&attempt.job)?;
        let is_exporting = self.machines.get(&id).is_some_and(|machine| machine.exports(attempt));
        let is_current = job.state.attempt_on(id) == Some(attempt.number);
        match &job.kind {
            JobKind::Build { cache_to, .. } if is_current || is_exporting => cache_to.clone(),
            _ => None,
        }
    }
}
