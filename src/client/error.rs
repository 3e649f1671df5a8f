//! Why a request to core failed.

use thiserror::Error;
use url::Url;

/// A request that failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No server answered, or the connection broke.
    #[error("cannot reach core at {server}; is `stagely core` running there?")]
    Unreachable {
        server: Url,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Core refused the request. Its message says what to do.
    #[error("core refused: {message}")]
    Refused { status: u16, code: String, message: String },
    /// The response is not one of this version of core.
    #[error("{server} does not answer as this version of core does: {detail}")]
    UnexpectedResponse {
        server: Url,
        detail: String,
        /// The HTTP status, if it is the problem.
        status: Option<u16>,
    },
}

impl ClientError {
    /// Whether core may be away for a moment, so that the request can be repeated.
    pub(super) const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A proxy answers with such a status while core is away.
            Self::Refused { status, .. }
            | Self::UnexpectedResponse { status: Some(status), .. } => *status >= 500,
            Self::UnexpectedResponse { status: None, .. } => false,
        }
    }
}
