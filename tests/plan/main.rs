//! From `stagely.yaml` to the jobs of a run.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod fixtures;

mod jobs;
mod preview;
mod references;
mod skipped;
mod test_jobs;
