//! Asks the Docker engine what it is and what it can do.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use stagely_protocol::Arch;
use tokio::time::timeout;

use super::emulation::{BINFMT, handler_name, own_handler_name};

/// An engine that answers later than this is of no use to a build.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What an engine can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its version.
    pub version: String,
    /// Whether it exports caches and keeps images of other platforms.
    pub containerd_store: bool,
    /// The arch of its machine.
    pub arch: Arch,
}

impl Engine {
    /// Asks the engine at `host` (`None`: Docker's own default).
    ///
    /// # Errors
    /// When there is none, or it does not answer within 20 s.
    pub async fn probe(host: Option<&str>) -> Result<Self, bollard::errors::Error> {
        let docker = connect(host)?;
        let too_late = |_| bollard::errors::Error::RequestTimeoutError;
        let info = timeout(ANSWER_LIMIT, docker.info()).await.map_err(too_late)??;
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

/// The engine's version, or nothing if it does not answer within `limit`.
pub async fn version_within(host: Option<&str>, limit: Duration) -> String {
    let ask = async { connect(host).ok()?.version().await.ok()?.version };
    timeout(limit, ask).await.ok().flatten().unwrap_or_default()
}

pub(super) fn connect(host: Option<&str>) -> Result<Docker, bollard::errors::Error> {
    match host {
        Some(host) => Docker::connect_with_host(host),
        None => Docker::connect_with_defaults(),
    }
}

/// The platforms that this machine runs by emulation, from the kernel's own list.
pub fn emulated_platforms() -> Vec<String> {
    let own = Arch::of_this_program();
    let registered = |arch: Arch| {
        [handler_name(arch), own_handler_name(arch)].iter().any(|name| {
            let entry = fs::read_to_string(Path::new(BINFMT).join(name));
            entry.is_ok_and(|entry| is_usable(&entry))
        })
    };
    let foreign = Arch::ALL.into_iter().filter(|arch| *arch != own && registered(*arch));
    foreign.map(|arch| format!("linux/{arch}")).collect()
}

/// A container does not see the emulator's file, so the kernel must hold it open (flag `F`).
fn is_usable(entry: &str) -> bool {
    entry.lines().next() == Some("enabled")
        && entry.lines().any(|line| line.strip_prefix("flags:").is_some_and(|it| it.contains('F')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_counts_if_containers_can_use_it() {
        let entry = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n";
        assert!(is_usable(entry));
        assert!(!is_usable(&entry.replace("OCF", "OC")));
        assert!(!is_usable(&entry.replace("enabled", "disabled")));
    }

    #[tokio::test]
    async fn without_an_engine_the_version_is_empty() {
        let host = Some("unix:///nowhere/docker.sock");
        assert_eq!(version_within(host, Duration::from_millis(30)).await, "");
        assert!(Engine::probe(host).await.is_err());
    }
}
