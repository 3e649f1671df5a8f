//! Why a request to the registry failed.

use stagely_agent::transient::is_transient_error;
use stagely_protocol::ImageRef;
use thiserror::Error;

use crate::config::ConfigError;

#[derive(Debug, Error)]
pub enum RegistryError {
    /// The connection failed or broke.
    #[error("the registry does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// No connection can be made, or the response is not HTTP: a wrong certificate, a name without an address.
    #[error("the registry cannot be used")]
    Unusable(#[source] reqwest::Error),
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
            Self::Unusable(_)
            | Self::AccessDenied { .. }
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
        let error = error.without_url();
        if is_transient_error(&error) { Self::Unreachable(error) } else { Self::Unusable(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn a_registry_that_is_away_is_asked_again_and_one_without_tls_is_not() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let plain = thread::spawn(move || {
            let (mut connection, _) = server.accept().unwrap();
            std::io::Write::write_all(&mut connection, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .unwrap();
            std::io::Read::read_to_end(&mut connection, &mut Vec::new()).ok();
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let failed =
            async |url: String| RegistryError::from(client.get(url).send().await.unwrap_err());

        let error = failed(format!("https://{address}/v2/")).await;
        assert!(matches!(error, RegistryError::Unusable(_)) && !error.is_transient(), "{error:?}");
        plain.join().unwrap();
        let error = failed(format!("http://{address}/v2/")).await;
        assert!(
            matches!(error, RegistryError::Unreachable(_)) && error.is_transient(),
            "{error:?}"
        );
    }
}
