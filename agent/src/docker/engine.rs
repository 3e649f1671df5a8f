//! Asks the Docker engine for its version and its features.

use std::time::Duration;

use bollard::errors::Error as EngineError;
use stagely_protocol::{Arch, ErrorChain};
use thiserror::Error;
use tokio::time::timeout;

use super::classify::is_engine_starting;
use super::endpoint::Endpoint;

/// A build needs an engine that answers within this time.
const RESPONSE_LIMIT: Duration = Duration::from_secs(20);

/// Why an engine does not say what it can do.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No engine is there yet, or it does not answer within 20 s.
    #[error("the Docker engine does not answer")]
    Unavailable(#[source] EngineError),
    /// Another attempt changes nothing.
    #[error("the Docker engine cannot be used: {advice}")]
    Unusable {
        /// What the user can do.
        advice: &'static str,
        #[source]
        source: EngineError,
    },
}

/// What a user can do who cannot use the engine at `host`, because of `error`.
fn advice(host: &str, error: &str) -> &'static str {
    let error = error.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    match host.split_once("://") {
        Some(("unix", _)) if has(&["permission denied"]) => {
            "add the user to the group of its socket (`sudo usermod -aG docker $USER`) and log in again, or choose \
             another engine with `docker context use`"
        }
        Some(("ssh", _)) => {
            "make `ssh` to this host work without a question (its host key is known, and it accepts a key of this \
             user, who may use Docker there)"
        }
        Some((scheme, _)) if scheme != "unix" && has(&["x509", "tls", "https", ".pem", "403"]) => {
            "its certificates must match those of the context or of DOCKER_CERT_PATH, with DOCKER_TLS_VERIFY=1"
        }
        _ => "its address must be that of a Docker engine (DOCKER_HOST, or `docker context ls`)",
    }
}

/// The properties of an engine that a build depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    pub version: String,
    /// Whether the engine has the containerd image store: it exports caches and keeps images of other
    /// platforms.
    pub containerd_store: bool,
    pub arch: Arch,
}

impl Engine {
    /// Asks the engine at `endpoint`.
    ///
    /// # Errors
    /// [`ProbeError`]
    pub async fn probe(endpoint: &Endpoint) -> Result<Self, ProbeError> {
        let asked = async { endpoint.connect()?.info().await };
        let info = match timeout(RESPONSE_LIMIT, asked).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => {
                let words = ErrorChain(&error).to_string();
                return Err(if is_engine_starting(&words) {
                    ProbeError::Unavailable(error)
                } else {
                    ProbeError::Unusable { advice: advice(endpoint.host(), &words), source: error }
                });
            }
            Err(_) => return Err(ProbeError::Unavailable(EngineError::RequestTimeoutError)),
        };
        let containerd_store = info.driver_status.unwrap_or_default().iter().any(|pair| {
            matches!(&pair[..], [name, value]
                if name == "driver-type" && value.starts_with("io.containerd.snapshotter"))
        });
        let arch = info.architecture.and_then(|arch| arch.parse().ok());
        Ok(Self {
            version: info.server_version.unwrap_or_default(),
            containerd_store,
            arch: arch.unwrap_or(Arch::of_this_program()),
        })
    }
}

/// The version of the engine at `setting`, or else of the user's own; empty if it does not answer within `limit`.
pub async fn version_within(setting: Option<&str>, limit: Duration) -> String {
    let version =
        async { Endpoint::find(setting).ok()?.connect().ok()?.version().await.ok()?.version };
    timeout(limit, version).await.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn without_an_engine_the_version_is_empty() {
        let host = Some("unix:///nowhere/docker.sock");
        assert_eq!(version_within(host, Duration::from_millis(30)).await, "");
        let probed = Engine::probe(&Endpoint::find(host).unwrap()).await;
        assert!(matches!(probed, Err(ProbeError::Unavailable(_))), "{probed:?}");
    }

    /// The error of a probe of an engine that answers with `head` and `text`.
    async fn error_of(head: &str, text: &str) -> ProbeError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://{}", listener.local_addr().unwrap());
        let answered = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let bytes = stream.read(&mut [0; 4096]).await.unwrap();
            assert!(bytes > 0);
            let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", text.len());
            stream.write_all(format!("{head}{text}").as_bytes()).await.unwrap();
            stream
        };
        let endpoint = Endpoint::find(Some(&host)).unwrap();
        let (probed, _) = tokio::join!(Engine::probe(&endpoint), answered);
        probed.unwrap_err()
    }

    #[tokio::test]
    async fn an_engine_behind_tls_is_not_asked_again() {
        let error =
            error_of("400 Bad Request", "Client sent an HTTP request to an HTTPS server.\n").await;
        assert!(matches!(error, ProbeError::Unusable { .. }), "{error:?}");
        let error = ErrorChain(&error).to_string();
        assert!(error.contains("DOCKER_TLS_VERIFY") && error.contains("HTTPS server"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_is_no_engine_is_not_asked_again() {
        for (head, text) in
            [("404 Not Found", "<html>nope</html>"), ("200 OK", "<html>hello</html>")]
        {
            let error = error_of(head, text).await;
            assert!(matches!(error, ProbeError::Unusable { .. }), "{error:?}");
            let error = ErrorChain(&error).to_string();
            assert!(error.contains("its address must be that of a Docker engine"), "{error}");
        }
        let error = error_of("503 Service Unavailable", "starting").await;
        assert!(matches!(error, ProbeError::Unavailable(_)), "{error:?}");
    }
}
