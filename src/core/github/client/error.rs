//! The failures of a request to GitHub that callers distinguish.

use stagely_state::Timestamp;
use thiserror::Error;

use crate::core::clock::now;
use crate::core::retry::Retry;

/// A request to GitHub has failed.
#[derive(Debug, Error)]
pub enum GithubError {
    /// No response, or one of a server that is overloaded or restarting.
    #[error("GitHub does not answer: {0}")]
    Unavailable(String),
    /// No connection can be made: a wrong certificate, a name without an address.
    #[error("GitHub cannot be reached: {0}")]
    Unusable(String),
    /// A rate limit is used up until this moment.
    #[error("GitHub allows no more requests until {}", display(*until))]
    RateLimited { until: Timestamp },
    /// The resource does not exist, or the credentials do not show it.
    #[error("GitHub has no {0}, or does not show it to these credentials")]
    NotFound(String),
    #[error("{what} has more than {bytes_max} bytes")]
    TooLarge { what: String, bytes_max: usize },
    /// Any other status, or a response that cannot be used.
    #[error("GitHub refuses ({status}): {message}")]
    Refused { status: u16, message: String },
    /// Core's credentials are missing, unreadable or refused.
    #[error("{0}")]
    Credentials(String),
}

impl GithubError {
    /// The message for strangers. The state of core's credentials is for its log alone.
    pub fn public_message(&self) -> String {
        match self {
            Self::Credentials(_) => {
                "core's credentials for this repository cannot be used; core's log \
                                     says why"
                    .to_owned()
            }
            Self::Unavailable(_)
            | Self::Unusable(_)
            | Self::RateLimited { .. }
            | Self::NotFound(_)
            | Self::TooLarge { .. }
            | Self::Refused { .. } => self.to_string(),
        }
    }

    /// Whether the same request may succeed later although nobody has changed anything.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::RateLimited { .. } => true,
            Self::Unusable(_)
            | Self::NotFound(_)
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::Credentials(_) => false,
        }
    }

    /// Whether to repeat the request: after a rate limit not before its end.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::RateLimited { until } => Retry::After(until.since(now())),
            _ => Retry::if_transient(self.is_transient()),
        }
    }
}

fn display(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "a far day".to_owned(), |at| at.to_string())
}
