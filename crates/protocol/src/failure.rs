//! Why a job failed, whose fault that is, and whether another attempt may succeed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a job failed. Sent in STATUS and stored in the job's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FailureReason {
    /// A step of the Dockerfile failed, or the Dockerfile itself is wrong.
    User {
        /// `BuildKit`'s name of the failed step (`[2/5] RUN npm install`); empty if none is known.
        #[serde(default)]
        step: String,
        /// The exit code of the step's command; 1 if `BuildKit` reports none.
        exit_code: i32,
    },
    /// `stagely.yaml` is missing or not valid, or lacks the requested builds.
    Manifest,
    /// The job, or the planning of its run, took longer than its limit.
    Timeout {
        limit_seconds: u64,
    },
    /// A person cancelled the run.
    Cancelled,
    /// A newer commit replaced the run.
    Superseded,
    /// A job that this one depends on did not complete.
    DependencyFailed {
        /// The name of the other job.
        job: String,
    },
    /// The cloud reclaimed the machine.
    SpotInterruption,
    /// The machine, or the contact with its agent, was lost.
    MachineLost,
    /// The machine's agent did not connect in time.
    BootTimeout,
    /// No provider had a machine available.
    NoCapacity,
    /// The provider refused the launch for a permanent reason (permission, configuration).
    Provider,
    /// The registry refused or did not answer.
    Registry {
        problem: RegistryProblem,
    },
    /// The repository or the commit could not be fetched.
    Clone {
        problem: CloneProblem,
    },
    /// The preview does not start, and the user has to change something.
    Deploy {
        problem: DeployProblem,
    },
    /// Cases of a test failed, or its command did.
    Test {
        /// How many cases failed; 0 if the test did not say so.
        #[serde(default)]
        failed: u64,
        /// The exit code of the test's command, which may be 0 although cases failed.
        exit_code: i32,
    },
    DiskFull,
    /// The Docker engine of the machine does not answer, or cannot do what the build needs.
    Engine,
    /// The settings of the machine's Docker engine are wrong: its address, its context or its certificates.
    EngineSettings,
    /// No machine builds the platform natively, and emulation is forbidden or impossible.
    Emulation,
    /// A fault of Stagely itself, or one that no other case describes.
    Internal,
}

/// The exit code of a shell whose command got SIGKILL.
const EXIT_KILLED: i32 = 137;

/// Why a registry could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryProblem {
    /// The registry refused the user name or password.
    Authentication,
    /// The registry answered with an error that another attempt does not change: a layer is too large, its certificate
    /// is not trusted.
    Refused,
    /// The registry does not have the image, or not any more.
    Missing,
    /// The registry did not answer, or answered with a server error.
    Unavailable,
}

/// Why a clone failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneProblem {
    /// The repository does not exist, or the token gives no access to it.
    NotFound,
    /// The token was refused, or a token is required.
    Authentication,
    /// The repository does not have the commit, for instance after a force push.
    CommitGone,
    /// The server did not answer, or the connection broke.
    Network,
    /// The server or the repository cannot be used: its certificate is not trusted, or it is of an unsupported kind.
    Refused,
}

/// Why a preview does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployProblem {
    /// The compose file is not valid, or lacks a service that `stagely.yaml` names.
    Compose,
    /// The compose file asks for access to the host that previews do not get.
    Forbidden,
    /// `migrate` failed.
    Migrate,
    /// `seed` failed.
    Seed,
    /// A service ended or was not healthy in time.
    Service,
    /// An endpoint did not answer its health check in time.
    Health,
    /// A secret that `stagely.yaml` names is not set.
    Secret,
}

impl FailureReason {
    /// Whether the user can fix the failure by a change to the repository.
    pub const fn is_users(&self) -> bool {
        match self {
            // Emulation: stagely.yaml says `emulation: forbid`, or has a platform that no machine can emulate.
            Self::User { .. }
            | Self::Timeout { .. }
            | Self::Manifest
            | Self::Emulation
            | Self::Deploy { .. }
            | Self::Test { .. } => true,
            Self::SpotInterruption
            | Self::MachineLost
            | Self::BootTimeout
            | Self::NoCapacity
            | Self::DiskFull
            | Self::Engine
            | Self::EngineSettings
            | Self::Internal
            | Self::Registry { .. }
            | Self::Clone { .. }
            | Self::Cancelled
            | Self::Superseded
            | Self::DependencyFailed { .. }
            | Self::Provider => false,
        }
    }

    /// Whether a deployment that fails for this reason has not touched the data of its preview.
    pub const fn precedes_deployment(&self) -> bool {
        matches!(
            self,
            Self::Registry { .. }
                | Self::Clone { .. }
                | Self::Manifest
                | Self::Deploy {
                    problem: DeployProblem::Compose
                        | DeployProblem::Forbidden
                        | DeployProblem::Secret,
                }
        )
    }

    /// Whether a step, or a test, was killed, as it is when memory runs out. Docker's own words do not say so.
    pub const fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Self::User { exit_code: EXIT_KILLED, .. }
                | Self::Test { failed: 0, exit_code: EXIT_KILLED }
        )
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
            | Self::Registry { problem: RegistryProblem::Unavailable }
            | Self::Clone { problem: CloneProblem::Network } => true,
            Self::User { .. }
            | Self::Manifest
            | Self::Timeout { .. }
            | Self::Cancelled
            | Self::Superseded
            | Self::DependencyFailed { .. }
            | Self::Provider
            | Self::EngineSettings
            | Self::Emulation
            | Self::Deploy { .. }
            | Self::Test { .. }
            | Self::Internal
            | Self::Registry {
                problem:
                    RegistryProblem::Authentication
                    | RegistryProblem::Refused
                    | RegistryProblem::Missing,
            }
            | Self::Clone {
                problem:
                    CloneProblem::NotFound
                    | CloneProblem::Authentication
                    | CloneProblem::CommitGone
                    | CloneProblem::Refused,
            } => false,
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { step, exit_code } if step.is_empty() && *exit_code != EXIT_KILLED => {
                write!(f, "the build failed (exit code {exit_code})")
            }
            Self::User { step, exit_code: EXIT_KILLED } => {
                if step.is_empty() {
                    f.write_str("the build")?;
                } else {
                    write!(f, "step `{step}`")?;
                }
                write!(
                    f,
                    " was killed (exit code {EXIT_KILLED}): memory probably ran out, and a larger `machine` has \
                     more"
                )
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
            Self::Registry { problem: RegistryProblem::Refused } => {
                f.write_str("the registry refused the request")
            }
            Self::Registry { problem: RegistryProblem::Missing } => {
                f.write_str("an image is not in the registry")
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
            Self::Clone { problem: CloneProblem::Refused } => {
                f.write_str("the repository cannot be cloned")
            }
            Self::Clone { problem: CloneProblem::Network } => {
                f.write_str("the repository's server did not answer")
            }
            Self::Deploy { problem } => f.write_str(match problem {
                DeployProblem::Compose => "the compose file is not valid",
                DeployProblem::Forbidden => "the compose file asks for access to the host",
                DeployProblem::Migrate => "`migrate` failed",
                DeployProblem::Seed => "`seed` failed",
                DeployProblem::Service => "a service did not start",
                DeployProblem::Health => "an endpoint was not healthy in time",
                DeployProblem::Secret => "a secret of the project is not set",
            }),
            Self::Test { failed: 0, exit_code: EXIT_KILLED } => write!(
                f,
                "the test was killed (exit code {EXIT_KILLED}): memory probably ran out, and a larger `machine` has \
                 more"
            ),
            Self::Test { failed: 0, exit_code } => {
                write!(f, "the test failed with exit code {exit_code}")
            }
            Self::Test { failed: 1, .. } => f.write_str("1 test failed"),
            Self::Test { failed, .. } => write!(f, "{failed} tests failed"),
            Self::DiskFull => f.write_str("the machine's disk is full"),
            Self::Engine => f.write_str("the Docker engine of the machine cannot do this build"),
            Self::EngineSettings => f.write_str("the settings of the Docker engine are wrong"),
            Self::Emulation => f.write_str("no machine can build this platform"),
            Self::Internal => f.write_str("an internal error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_137_says_that_memory_ran_out_and_names_the_machine() {
        for (step, what) in [("[2/3] RUN make", "step `[2/3] RUN make`"), ("", "the build")] {
            let reason = FailureReason::User { step: step.to_owned(), exit_code: 137 };
            let words = "was killed (exit code 137): memory probably ran out, and a larger `machine` has more";
            assert_eq!(reason.to_string(), format!("{what} {words}"));
            assert!(reason.is_out_of_memory());
        }
        let other = FailureReason::User { step: "[2/3] RUN make".to_owned(), exit_code: 2 };
        assert_eq!(other.to_string(), "step `[2/3] RUN make` failed with exit code 2");
        assert!(!other.is_out_of_memory());
    }

    #[test]
    fn a_failed_test_is_the_users_and_says_how_many_cases_failed() {
        let test = |failed, exit_code| FailureReason::Test { failed, exit_code };
        for (reason, expected) in [
            (test(0, 3), "the test failed with exit code 3"),
            (test(1, 1), "1 test failed"),
            (test(7, 0), "7 tests failed"),
        ] {
            assert_eq!(reason.to_string(), expected);
            assert!(reason.is_users() && !reason.is_transient() && !reason.is_out_of_memory());
        }
        assert!(test(0, 137).is_out_of_memory() && test(0, 137).to_string().contains("`machine`"));
    }
}
