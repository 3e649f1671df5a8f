//! Where the endpoints of this machine's previews listen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::WireId;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a connection waits while containers are replaced. Core's own limit is longer.
const HOLD_LIMIT: Duration = Duration::from_mins(1);

/// The addresses of the endpoints, by preview and name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(Arc<watch::Sender<Addresses>>);

type Addresses = BTreeMap<WireId, OfPreview>;

#[derive(Debug)]
struct OfPreview {
    addresses: BTreeMap<String, SocketAddr>,
    is_held: bool,
}

impl Endpoints {
    /// Replaces all endpoints of a preview. Open connections stay where they are.
    pub fn set(&self, preview: WireId, addresses: BTreeMap<String, SocketAddr>) {
        let endpoints = OfPreview { addresses, is_held: false };
        self.0.send_modify(|all| drop(all.insert(preview, endpoints)));
    }

    /// Lets new connections to a preview wait until [`set`](Self::set), because its containers are being replaced. Open
    /// connections stay where they are.
    pub fn hold(&self, preview: &WireId) {
        self.0.send_modify(|all| {
            if let Some(endpoints) = all.get_mut(preview) {
                endpoints.is_held = true;
            }
        });
    }

    /// Removes all endpoints of a preview. Open connections stay where they are.
    pub fn remove(&self, preview: &WireId) {
        self.0.send_modify(|all| drop(all.remove(preview)));
    }

    /// The address of an endpoint, once its preview is not held any more.
    pub(crate) async fn address(&self, preview: &WireId, endpoint: &str) -> Option<SocketAddr> {
        let mut changes = self.0.subscribe();
        let is_free = |all: &Addresses| all.get(preview).is_none_or(|endpoints| !endpoints.is_held);
        let all = timeout(HOLD_LIMIT, changes.wait_for(is_free)).await.ok()?;
        let all = all.expect("the sender is part of every `Endpoints`");
        all.get(preview)?.addresses.get(endpoint).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Fires after each change.
    pub(crate) fn changes(&self) -> EndpointChanges {
        EndpointChanges(self.0.subscribe())
    }
}

/// The changes of [`Endpoints`].
pub(crate) struct EndpointChanges(watch::Receiver<Addresses>);

impl EndpointChanges {
    /// Waits for the next change. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        self.0.changed().await.expect("the sender is part of every `Endpoints`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_while_containers_are_replaced() {
        let endpoints = Endpoints::default();
        let preview: WireId = "prev_1".parse().unwrap();
        let addresses =
            |port: u16| BTreeMap::from([("web".to_owned(), ([127, 0, 0, 1], port).into())]);
        assert_eq!(endpoints.address(&preview, "web").await, None);
        endpoints.hold(&preview);
        assert_eq!(endpoints.address(&preview, "web").await, None);

        endpoints.set(preview.clone(), addresses(1));
        endpoints.hold(&preview);
        let replaced = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            endpoints.set(preview.clone(), addresses(2));
        };
        let (address, ()) = tokio::join!(endpoints.address(&preview, "web"), replaced);
        assert_eq!(address.unwrap().port(), 2);

        endpoints.hold(&preview);
        assert_eq!(endpoints.address(&preview, "web").await, None);
    }
}
