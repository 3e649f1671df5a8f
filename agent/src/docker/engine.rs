//! Asks the Docker engine for its version and its features.

use std::time::Duration;

use bollard::Docker;
use stagely_protocol::Arch;
use tokio::time::timeout;

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
    /// Asks the engine at `host` (`None`: Docker's own default).
    ///
    /// # Errors
    /// If no engine is there, or it does not answer within 20 s.
    pub async fn probe(host: Option<&str>) -> Result<Self, bollard::errors::Error> {
        let docker = connect(host)?;
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

/// The engine's version; empty if the engine does not answer within `limit`.
pub async fn version_within(host: Option<&str>, limit: Duration) -> String {
    let version = async { connect(host).ok()?.version().await.ok()?.version };
    timeout(limit, version).await.ok().flatten().unwrap_or_default()
}

pub(super) fn connect(host: Option<&str>) -> Result<Docker, bollard::errors::Error> {
    match host {
        Some(host) => Docker::connect_with_host(host),
        None => Docker::connect_with_defaults(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_engine_the_version_is_empty() {
        let host = Some("unix:///nowhere/docker.sock");
        assert_eq!(version_within(host, Duration::from_millis(30)).await, "");
        assert!(Engine::probe(host).await.is_err());
    }
}
