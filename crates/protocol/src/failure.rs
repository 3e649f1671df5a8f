//! Why a job failed, and whose fault it was.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a job failed. Sent in STATUS and kept in the job's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FailureReason {
    /// A step of the Dockerfile failed, or the Dockerfile itself is wrong.
    User {
        /// The failing step, as `BuildKit` names it (`[2/5] RUN npm install`); empty if there is none.
        #[serde(default)]
        step: String,
        /// The exit code of the step's command; `1` where `BuildKit` gives none.
        exit_code: i32,
    },
    /// There is no `stagely.yaml`, it is not valid, or it lacks the builds that were asked for.
    Manifest,
    /// The job, or the planning of its run, took longer than its limit.
    Timeout {
        /// The limit.
        limit_seconds: u64,
    },
    /// Somebody cancelled the run.
    Cancelled,
    /// A newer commit took the run's place.
    Superseded,
    /// A job that this one waits for did not complete.
    DependencyFailed {
        /// The name of that job.
        job: String,
    },
    /// The cloud took the machine back.
    SpotInterruption,
    /// The machine or its agent vanished.
    MachineLost,
    /// The machine's agent did not connect in time.
    BootTimeout,
    /// No provider would start a machine.
    NoCapacity,
    /// The provider refused for a reason that trying again cannot mend (permission, configuration).
    Provider,
    /// The registry refused or did not answer.
    Registry {
        /// What went wrong.
        problem: RegistryProblem,
    },
    /// The repository or the commit could not be fetched.
    Clone {
        /// What went wrong.
        problem: CloneProblem,
    },
    /// The machine's disk is full.
    DiskFull,
    /// The Docker engine of the machine does not answer, or cannot do what the build needs.
    Engine,
    /// No machine builds the platform natively, and emulation is forbidden or impossible.
    Emulation,
    /// A fault of Stagely's own, or one that fits nowhere else.
    Internal,
}

/// What a registry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryProblem {
    /// User name or password were refused.
    Authentication,
    /// It did not answer, or answered with an error of its own.
    Unavailable,
}

/// What hindered a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneProblem {
    /// There is no such repository, or the token may not see it.
    NotFound,
    /// The token was refused, or one is needed.
    Authentication,
    /// The repository has no such commit (force-pushed away, or never there).
    CommitGone,
    /// The server did not answer or the connection broke.
    Network,
}

impl FailureReason {
    /// Whether a change to what is built would have helped.
    pub const fn is_users(&self) -> bool {
        match self {
            // Emulation: `emulation: forbid` of stagely.yaml, or a platform of it that nothing here emulates.
            Self::User { .. } | Self::Timeout { .. } | Self::Manifest | Self::Emulation => true,
            Self::SpotInterruption
            | Self::MachineLost
            | Self::BootTimeout
            | Self::NoCapacity
            | Self::DiskFull
            | Self::Engine
            | Self::Internal
            | Self::Registry { .. }
            | Self::Clone { .. }
            | Self::Cancelled
            | Self::Superseded
            | Self::DependencyFailed { .. }
            | Self::Provider => false,
        }
    }

    /// Whether another attempt on another machine may succeed.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::SpotInterruption
            | Self::MachineLost
            | Self::BootTimeout
            | Self::NoCapacity
            | Self::DiskFull
            | Self::Engine
            | Self::Internal
            | Self::Registry { problem: RegistryProblem::Unavailable }
            | Self::Clone { problem: CloneProblem::Network } => true,
            Self::User { .. }
            | Self::Manifest
            | Self::Timeout { .. }
            | Self::Cancelled
            | Self::Superseded
            | Self::DependencyFailed { .. }
            | Self::Provider
            | Self::Emulation
            | Self::Registry { problem: RegistryProblem::Authentication }
            | Self::Clone {
                problem:
                    CloneProblem::NotFound | CloneProblem::Authentication | CloneProblem::CommitGone,
            } => false,
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { step, exit_code } if step.is_empty() => {
                write!(f, "the build failed (exit code {exit_code})")
            }
            Self::User { step, exit_code } => {
                write!(f, "step `{step}` failed with exit code {exit_code}")
            }
            Self::Manifest => f.write_str("stagely.yaml is missing or not valid"),
            Self::Timeout { limit_seconds } => write!(
                f,
                "timed out after {}",
                humantime::format_duration(std::time::Duration::from_secs(*limit_seconds))
            ),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Superseded => f.write_str("superseded by a newer commit"),
            Self::DependencyFailed { job } => write!(f, "not started: {job} did not complete"),
            Self::SpotInterruption => f.write_str("the cloud took the machine back"),
            Self::MachineLost => f.write_str("the machine was lost"),
            Self::BootTimeout => f.write_str("the machine's agent did not connect in time"),
            Self::NoCapacity => f.write_str("no machine could be had"),
            Self::Provider => f.write_str("the provider refused to start a machine"),
            Self::Registry { problem: RegistryProblem::Authentication } => {
                f.write_str("the registry refused the user name or password")
            }
            Self::Registry { problem: RegistryProblem::Unavailable } => {
                f.write_str("the registry did not answer")
            }
            Self::Clone { problem: CloneProblem::NotFound } => {
                f.write_str("the repository was not found")
            }
            Self::Clone { problem: CloneProblem::Authentication } => {
                f.write_str("the repository refused the token")
            }
            Self::Clone { problem: CloneProblem::CommitGone } => {
                f.write_str("the repository has no such commit")
            }
            Self::Clone { problem: CloneProblem::Network } => {
                f.write_str("the repository's server did not answer")
            }
            Self::DiskFull => f.write_str("the machine's disk is full"),
            Self::Engine => f.write_str("the Docker engine of the machine cannot do this build"),
            Self::Emulation => f.write_str("no machine can build this platform"),
            Self::Internal => f.write_str("an internal error"),
        }
    }
}
