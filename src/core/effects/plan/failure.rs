//! Why there is no plan.

use std::fmt::Display;
use std::time::Duration;

use stagely_agent::git::CloneError;
use stagely_protocol::{CloneProblem, ErrorChain, FailureReason};
use stagely_state::{PlanFailure, Timestamp};
use tracing::warn;

use crate::core::clock::now;
use crate::core::github::GithubError;

/// The delay of planning when GitHub does not answer. Its client has repeated the request by then.
pub(super) const GITHUB_WAIT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(in crate::core::effects) enum NotPlanned {
    Failed(PlanFailure),
    /// GitHub does not answer: planning is repeated after `retry_at`, and other runs are planned meanwhile.
    Later {
        retry_at: Timestamp,
        /// For people.
        reason: String,
    },
}

impl From<PlanFailure> for NotPlanned {
    fn from(failure: PlanFailure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CloneError> for NotPlanned {
    fn from(error: CloneError) -> Self {
        failed(error.reason(), error)
    }
}

impl From<anyhow::Error> for NotPlanned {
    fn from(error: anyhow::Error) -> Self {
        failed(FailureReason::Internal, format!("{error:#}"))
    }
}

impl From<GithubError> for NotPlanned {
    fn from(error: GithubError) -> Self {
        let retry_at = now().after(GITHUB_WAIT);
        let problem = match &error {
            GithubError::Unavailable(_) => return later(retry_at, &error),
            GithubError::RateLimited { until } => return later(retry_at.max(*until), &error),
            GithubError::NotFound(_) => CloneProblem::NotFound,
            GithubError::Unusable(_) => CloneProblem::Refused,
            GithubError::TooLarge { .. } => {
                return failed(FailureReason::Manifest, error);
            }
            GithubError::Refused { .. } | GithubError::Credentials(_) => {
                CloneProblem::Authentication
            }
        };
        warn!(error = %ErrorChain(&error), "a plan cannot be made: GitHub refuses a request");
        failed(FailureReason::Clone { problem }, error.public_message())
    }
}

fn later(retry_at: Timestamp, error: &GithubError) -> NotPlanned {
    NotPlanned::Later { retry_at, reason: error.public_message() }
}

pub(super) fn failed(reason: FailureReason, message: impl Display) -> NotPlanned {
    NotPlanned::Failed(PlanFailure { reason, message: message.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_is_too_large_fails_as_the_users_mistake() {
        let error = GithubError::TooLarge { what: "stagely.yaml".to_owned(), bytes_max: 7 };
        let NotPlanned::Failed(failure) = NotPlanned::from(error) else {
            panic!("it is asked for again");
        };
        assert_eq!(failure.reason, FailureReason::Manifest);
        assert_eq!(failure.message, "stagely.yaml has more than 7 bytes");
    }
}
