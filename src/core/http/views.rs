//! Converts records into the JSON of the API.

mod environments;
mod jobs;
mod machines;
mod previews;
mod projects;
mod runs;
mod waits;

pub(super) use environments::environment;
pub(super) use jobs::{job, job_status};
pub(super) use machines::{machine, queue};
pub(super) use previews::Previews;
pub(super) use projects::project;
pub(super) use runs::{run, run_summary};
