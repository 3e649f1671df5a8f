//! The errors of all providers, by what core does about them. The causes are the providers' own errors.

use std::error::Error;
use std::time::Duration;

use stagely_protocol::ErrorChain;
use stagely_state::LaunchFailure;
use thiserror::Error;

/// An error of one provider, for people.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A provider's answer to a launch that started no machine, as far as it knows.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No machine type is free at the moment, in any zone.
    #[error("no capacity: {0}")]
    NoCapacity(#[source] BoxError),
    /// The provider will refuse again until somebody changes something.
    #[error(transparent)]
    Permanent(BoxError),
    /// The provider limits the rate of requests. Nothing was started.
    #[error("{cause}")]
    Throttled {
        #[source]
        cause: BoxError,
        /// How long the provider refuses requests, if it says so.
        wait: Option<Duration>,
    },
    /// The provider gave no clear answer: a machine may have been started. Repeating the request is harmless.
    #[error(transparent)]
    Unclear(BoxError),
}

impl LaunchError {
    /// The provider's own error.
    pub fn cause(&self) -> &(dyn Error + 'static) {
        match self {
            Self::NoCapacity(cause)
            | Self::Permanent(cause)
            | Self::Throttled { cause, .. }
            | Self::Unclear(cause) => &**cause,
        }
    }
}

impl From<LaunchError> for LaunchFailure {
    fn from(error: LaunchError) -> Self {
        let message = ErrorChain(error.cause()).to_string();
        match error {
            LaunchError::NoCapacity(_) | LaunchError::Throttled { .. } => Self::NoCapacity(message),
            LaunchError::Permanent(_) => Self::Permanent(message),
            LaunchError::Unclear(_) => Self::Unclear(message),
        }
    }
}

/// A provider did not do what it was asked. Repeating the request is harmless.
#[derive(Debug, Error)]
pub enum ProviderError {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error(transparent)]
    Failed(BoxError),
}
