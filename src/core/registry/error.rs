//! Why a request to the registry failed.

use stagely_protocol::ImageRef;
use thiserror::Error;

use crate::config::ConfigError;

#[derive(Debug, Error)]
pub enum RegistryError {
    /// The connection failed or broke.
    #[error("the registry does not answer")]
    Unreachable(#[source] reqwest::Error),
    #[error("the registry took longer than 5 minutes")]
    TimedOut,
    /// The registry cannot respond at the moment.
    #[error("the registry cannot answer (status {status}): {detail}")]
    Unavailable { status: u16, detail: String },
    /// The registry does not accept the credentials, or they do not allow this request.
    #[error(
        "the registry refuses access (status {status}): {detail}; see registry.username and \
         registry.password-file"
    )]
    AccessDenied { status: u16, detail: String },
    /// The registry asks for the credentials in a way that would disclose them, or that is not understood.
    #[error("the registry's way of login cannot be used: {0}")]
    Login(String),
    /// The password cannot be read.
    #[error(transparent)]
    Password(#[from] ConfigError),
    /// The registry has no such manifest.
    #[error("the registry does not have {0}")]
    Missing(ImageRef),
    #[error("{image} does not lie in {registry}, which core is configured for")]
    OtherRegistry { image: ImageRef, registry: String },
    #[error("the registry's answer cannot be used: {0}")]
    InvalidResponse(String),
}

impl RegistryError {
    /// Whether the same request may soon succeed.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut | Self::Unavailable { .. } => true,
            Self::AccessDenied { .. }
            | Self::Login(_)
            | Self::Password(_)
            | Self::Missing(_)
            | Self::OtherRegistry { .. }
            | Self::InvalidResponse(_) => false,
        }
    }
}

impl From<reqwest::Error> for RegistryError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(error.without_url())
    }
}
