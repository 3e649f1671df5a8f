//! Where the endpoints of this machine's previews listen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use stagely_protocol::WireId;
use tokio::sync::watch;

/// The addresses of the endpoints, by preview and name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(Arc<watch::Sender<Addresses>>);

type Addresses = BTreeMap<WireId, BTreeMap<String, SocketAddr>>;

impl Endpoints {
    /// Replaces all endpoints of a preview. Open connections stay where they are.
    pub fn set(&self, preview: WireId, addresses: BTreeMap<String, SocketAddr>) {
        self.0.send_modify(|all| drop(all.insert(preview, addresses)));
    }

    /// Removes all endpoints of a preview. Open connections stay where they are.
    pub fn remove(&self, preview: &WireId) {
        self.0.send_modify(|all| drop(all.remove(preview)));
    }

    pub(crate) fn address(&self, preview: &WireId, endpoint: &str) -> Option<SocketAddr> {
        self.0.borrow().get(preview)?.get(endpoint).copied()
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
