//! Asks the Docker engine for its version and its features.

use std::time::Duration;

use stagely_protocol::Arch;
use tokio::time::timeout;

use super::endpoint::Endpoint;

/// A build needs an engine that answers within this time.
const RESPONSE_LIMIT: Duration = Duration::from_secs(20);

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
    /// If no engine is there, or it does not answer within 20 s.
    pub async fn probe(endpoint: &Endpoint) -> Result<Self, bollard::errors::Error> {
        let docker = endpoint.connect()?;
        let too_late = |_| bollard::errors::Error::RequestTimeoutError;
        let info = timeout(RESPONSE_LIMIT, docker.info()).await.map_err(too_late)??;
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
    use super::*;

    #[tokio::test]
    async fn without_an_engine_the_version_is_empty() {
        let host = Some("unix:///nowhere/docker.sock");
        assert_eq!(version_within(host, Duration::from_millis(30)).await, "");
        assert!(Engine::probe(&Endpoint::find(host).unwrap()).await.is_err());
    }
}
