//! `/queue`: the jobs that wait for a machine.

use serde::{Deserialize, Serialize};
use stagely_state::ids::{JobId, RunId};
use utoipa::ToSchema;

/// The position of a job in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuePosition {
    /// The position, from 1.
    pub position: usize,
    /// The reason for waiting, for people: `waiting for 1 of 50 builders`.
    pub reason: String,
}

/// A waiting job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueuedJobView {
    /// The position, from 1.
    pub position: usize,
    /// The job's id.
    #[schema(value_type = String)]
    pub job_id: JobId,
    /// The job's name.
    pub name: String,
    /// The job's run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// The name of the project.
    pub project: String,
    /// The reason for waiting, for people: `waiting for 1 of 50 builders`.
    pub reason: String,
}

/// `GET /queue`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QueueView {
    /// The most launched machines at once.
    pub max_concurrent: u32,
    /// The number of launched machines that exist now.
    pub live_machines: usize,
    /// The waiting jobs, in the order in which they will get machines.
    pub jobs: Vec<QueuedJobView>,
}
