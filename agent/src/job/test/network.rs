//! The networks of a test's container, in which it reaches the preview.

use bollard::Docker;
use stagely_protocol::{FailureReason, TestedPreview, WireId};
use tokio::net::lookup_host;
use url::{Host, Url};

use super::{JobError, Testing, engine_error};
use crate::core_client::CoreClient;
use crate::preview::containers;

/// The network of the machine itself, in which its loopback addresses are.
const HOST_NETWORK: &str = "host";

/// Networks of a container, and names that it resolves by itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TestNetwork {
    /// The engine's usual network if there is none.
    pub(super) first: Option<String>,
    pub(super) others: Vec<String>,
    /// `NAME:ADDRESS`.
    pub(super) extra_hosts: Vec<String>,
}

impl TestNetwork {
    /// # Errors
    /// The engine does not answer, or the preview is on the machine of the test and does not run there.
    pub(super) async fn of(testing: &Testing<'_>) -> Result<Self, JobError> {
        let Some(preview) = &testing.test.preview else { return Ok(Self::default()) };
        let settings = testing.settings;
        match &preview.preview_id {
            Some(id) => Self::of_preview(&testing.engine, &settings.machine, id).await,
            None => {
                Ok(Self::through_core(preview, settings.previews.core().map(CoreClient::url)).await)
            }
        }
    }

    /// The networks of a preview of this machine.
    async fn of_preview(
        engine: &Docker,
        machine: &WireId,
        preview: &WireId,
    ) -> Result<Self, JobError> {
        let networks = containers::networks(engine, machine, preview).await;
        let mut networks = networks.map_err(|error| engine_error(&error))?.into_iter();
        let Some(first) = networks.next() else {
            let message = format!("the preview {preview} does not run on this machine");
            return Err(JobError::with_message(FailureReason::Engine, message));
        };
        Ok(Self { first: Some(first), others: networks.collect(), extra_hosts: Vec::new() })
    }

    /// The preview is reached through core, whose loopback addresses may be in the preview's address: those of this machine
    /// if core is on it, and otherwise core's own address stands for the names among them.
    async fn through_core(preview: &TestedPreview, core: Option<&Url>) -> Self {
        let Some(host) = loopback_host(&preview.url) else { return Self::default() };
        let is_name = host.ends_with("localhost");
        let core = core.filter(|core| loopback_host(core.as_str()).is_none());
        let Some(core) = core.filter(|_| is_name) else {
            // Not every image resolves `*.localhost`.
            let extra_hosts = is_name.then(|| format!("{host}:127.0.0.1")).into_iter().collect();
            return Self { first: Some(HOST_NETWORK.to_owned()), extra_hosts, ..Self::default() };
        };
        let core_host = core.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let found = lookup_host((core_host, core.port_or_known_default().unwrap_or(0))).await;
        // A core whose name is not resolved at the moment: the test itself says that it does not find the preview.
        let address = found.ok().and_then(|mut found| found.next());
        let extra_hosts = address.map(|address| format!("{host}:{}", address.ip()));
        Self { extra_hosts: extra_hosts.into_iter().collect(), ..Self::default() }
    }
}

/// The host of an address that is a machine's own.
fn loopback_host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let is_loopback = match url.host()? {
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    url.host_str().filter(|_| is_loopback).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stagely_protocol::Secrets;

    use super::*;

    /// The first network and the names of a container for a preview at `url`.
    async fn network(url: &str, core: Option<&str>) -> (Option<String>, Vec<String>) {
        let headers = Secrets(BTreeMap::new());
        let preview = TestedPreview { url: url.to_owned(), headers, preview_id: None };
        let core = core.map(|core| core.parse().unwrap());
        let network = TestNetwork::through_core(&preview, core.as_ref()).await;
        assert!(network.others.is_empty());
        (network.first, network.extra_hosts)
    }

    #[tokio::test]
    async fn loopback_addresses_of_a_core_on_this_machine_need_the_machines_network() {
        let host = Some("host".to_owned());
        for core in [None, Some("http://127.0.0.1:7780"), Some("http://localhost:7780")] {
            for (url, name) in [
                ("http://pr-7-app.localhost:7780", Some("pr-7-app.localhost:127.0.0.1")),
                ("http://localhost", Some("localhost:127.0.0.1")),
                ("http://127.0.0.1:80/x", None),
                ("http://[::1]:80/x", None),
            ] {
                let names = name.map(str::to_owned).into_iter().collect();
                assert_eq!(network(url, core).await, (host.clone(), names), "{url} {core:?}");
            }
        }
    }

    #[tokio::test]
    async fn previews_of_a_core_elsewhere_have_its_address() {
        for (core, address) in
            [("http://10.0.2.2:7780", "10.0.2.2"), ("http://[fd00::2]:7780", "fd00::2")]
        {
            let found = network("http://pr-7-app.localhost:7780", Some(core)).await;
            assert_eq!(found, (None, vec![format!("pr-7-app.localhost:{address}")]));
        }
    }

    #[tokio::test]
    async fn other_addresses_need_nothing() {
        for url in
            ["https://pr-7.example.com", "http://10.0.0.1", "http://localhost.example.com", "x"]
        {
            for core in [None, Some("http://10.0.2.2:7780"), Some("http://127.0.0.1:7780")] {
                assert_eq!(network(url, core).await, (None, Vec::new()), "{url} {core:?}");
            }
        }
    }
}
