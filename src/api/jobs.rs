//! `/jobs`: jobs as the API shows them.

use serde::{Deserialize, Serialize};
use stagely_protocol::{
    CacheMiss, Digest, FailureReason, ImageRef, Platform, Shard, Step, StoredArtifacts, TestResults,
};
use stagely_state::Timestamp;
use stagely_state::ids::{JobId, MachineId, RunId};
use utoipa::ToSchema;

use super::cost::CostView;
use super::queue::QueuePosition;
use super::wait::WaitView;

/// The status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// The job waits for other jobs or for a machine.
    Queued,
    /// The job's machine is starting.
    Provisioning,
    /// The machine's agent runs the job.
    Running,
    /// The image is pushed, the preview serves, or the test has passed.
    Completed,
    /// The job failed.
    Failed,
    /// The job was stopped.
    Cancelled,
}

impl JobStatus {
    /// Whether the status can no longer change.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Provisioning | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The status as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The kind of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKindView {
    /// Builds the image of one platform.
    Build,
    /// Joins the images of several platforms into an image index.
    Merge,
    /// Runs the images as the preview of the environment.
    Deploy,
    /// Runs a command in an image, against the preview or by itself.
    Test,
}

/// An attempt that failed because of its machine or the infrastructure, not because of the build.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LostAttempt {
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The cause.
    #[schema(value_type = Object)]
    pub reason: FailureReason,
    /// A description, for people.
    pub message: String,
}

/// A job of a run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// The job's id.
    #[schema(value_type = String, example = "job_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: JobId,
    /// The job's run.
    #[schema(value_type = String)]
    pub run_id: RunId,
    /// The job's name, unique within the run.
    pub name: String,
    /// The name of the build in `stagely.yaml`.
    pub build: String,
    /// The build's name with its combination of the matrix. Equal to `build` without a matrix.
    pub variant: String,
    /// The job's kind.
    pub kind: JobKindView,
    /// The platforms of the image: one for a build, several for a merge.
    #[schema(value_type = Vec<String>)]
    pub platforms: Vec<Platform>,
    /// The job's status.
    pub status: JobStatus,
    /// The number of the newest attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// Attempts that failed because of their machine or the infrastructure.
    pub lost_attempts: Vec<LostAttempt>,
    /// The machine that runs the job.
    #[schema(value_type = Option<String>)]
    pub machine_id: Option<MachineId>,
    /// The image reference that the job pushes. A deployment pushes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub image: Option<ImageRef>,
    /// The image's digest, once it is pushed.
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// The cause of a failure.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<FailureReason>,
    /// A description of a failure, for people.
    pub error: Option<String>,
    /// The exit code of the build.
    pub exit_code: Option<i32>,
    /// Problems that did not stop the job.
    pub warnings: Vec<String>,
    /// The steps of the build. `FROM` is not a step: a layer cache does not hold base images.
    #[schema(value_type = Vec<Object>)]
    pub steps: Vec<Step>,
    /// The number of steps that came from the cache.
    pub cached_steps: usize,
    /// The first step that did not come from the cache, and the reason.
    #[schema(value_type = Option<Object>)]
    pub cache_miss: Option<CacheMiss>,
    /// The image reference that stays the same from run to run. The newest run of the environment
    /// moves it.
    #[schema(value_type = Option<String>)]
    pub tag: Option<ImageRef>,
    /// Whether the job runs or ran under emulation.
    pub emulated: bool,
    /// The duration of its steps relative to a native build. Null if no native duration is known.
    pub slow_down: Option<f64>,
    /// The job whose machine this job continued to use, without launching another machine.
    #[schema(value_type = Option<String>)]
    pub took_over: Option<JobId>,
    /// The job of an earlier run whose image this job reuses.
    #[schema(value_type = Option<String>)]
    #[serde(rename = "kept_from")]
    pub reused_from: Option<JobId>,
    /// What the machines have cost that were launched for the job; null if that is nothing or no price is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostView>,
    /// What a test job runs, and its results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestView>,
    /// What the job waits for outside of core: capacity at a provider, or a provider that does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<WaitView>,
    /// The job's position in the queue, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePosition>,
    /// The time at which the job was queued.
    #[schema(value_type = u64)]
    pub queued_at: Timestamp,
    /// The time at which the newest attempt started on its machine.
    #[schema(value_type = Option<u64>)]
    pub started_at: Option<Timestamp>,
    /// The time at which the job ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Timestamp>,
}

/// A test job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TestView {
    /// The part of the test that the job runs: `index` counts from 1, `total` is the number of parts.
    #[schema(value_type = Object)]
    pub shard: Shard,
    /// Whether it tests the preview of the environment.
    pub of_preview: bool,
    /// The number of cases that passed, failed, were skipped, and passed only when they were tried again (flaky), with a
    /// description of those that did not pass at once. Null before the end, and for a test without `JUnit` files.
    #[schema(value_type = Option<Object>)]
    pub results: Option<TestResults>,
    /// The files that the test has left: the digest and the size of their tar archive, their number, and the pictures
    /// among them that the pull request shows.
    #[schema(value_type = Option<Object>)]
    pub artifacts: Option<StoredArtifacts>,
}

impl JobView {
    /// The digest as text; empty before the image is pushed.
    pub fn digest_text(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).unwrap_or_default()
    }
}
