//! The share of a machine's tunnels that requests without a key may use at the same time.

use stagely_protocol::TUNNELS_MAX;
use stagely_state::ids::MachineId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::answers::Answer;
use super::places::Places;
use super::tunnels::{TUNNEL_LIMIT, TunnelError};

/// The rest is for those who may open the preview.
const KEYLESS_MAX: usize = TUNNELS_MAX / 2;

/// The tunnels of each machine for requests without a key. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct KeylessTunnels(Places<MachineId>);

impl Default for KeylessTunnels {
    fn default() -> Self {
        Self(Places::new(KEYLESS_MAX))
    }
}

impl KeylessTunnels {
    /// Waits for a place as long as a request waits for a tunnel.
    pub(super) async fn take(&self, machine: MachineId) -> Result<OwnedSemaphorePermit, Answer> {
        let place = timeout(TUNNEL_LIMIT, self.0.of(machine).acquire_owned()).await;
        let place = place.map_err(|_| Answer::Tunnel(TunnelError::Busy))?;
        Ok(place.expect("nothing closes the semaphore"))
    }
}
