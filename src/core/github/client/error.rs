//! What GitHub did not do, as callers tell it apart.

use stagely_state::Timestamp;
use thiserror::Error;

/// What GitHub did not do.
#[derive(Debug, Error)]
pub enum GithubError {
    /// It did not answer, or with a 5xx: it may later.
    #[error("GitHub does not answer: {0}")]
    Unavailable(String),
    /// It answers again after a moment.
    #[error("GitHub allows no more requests until {}", shown(*until))]
    RateLimited {
        /// The moment.
        until: Timestamp,
    },
    /// It is not there, or not for these credentials.
    #[error("GitHub has no {0}, or does not show it to these credentials")]
    NotFound(String),
    /// Its answer is larger than core reads.
    #[error("{what} has more than {bytes_max} bytes")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// How much core reads.
        bytes_max: usize,
    },
    /// It refuses.
    #[error("GitHub refuses ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// Core lacks what it takes, or it cannot be read.
    #[error("{0}")]
    Credentials(String),
}

impl GithubError {
    /// What strangers may read of it: what core itself lacks is for its log.
    pub fn in_public(&self) -> String {
        match self {
            Self::Credentials(_) => {
                "core's credentials for this repository cannot be used; core's log \
                                     says why"
                    .to_owned()
            }
            Self::Unavailable(_)
            | Self::RateLimited { .. }
            | Self::NotFound(_)
            | Self::TooLarge { .. }
            | Self::Refused { .. } => self.to_string(),
        }
    }

    /// Whether the same request may succeed later without anybody doing something.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::RateLimited { .. } => true,
            Self::NotFound(_)
            | Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::Credentials(_) => false,
        }
    }
}

fn shown(at: Timestamp) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| "a far day".to_owned(), |at| at.to_string())
}
