//! Moves a build's run-independent reference to its newest image.

use std::sync::Arc;

use stagely_protocol::ErrorChain;
use stagely_state::ids::EnvironmentId;
use stagely_state::{CancelReason, Event, RunState, VariantName};
use tracing::{info, warn};

use crate::core::records::{Records, SharedRecords};
use crate::core::registry::Registry;

#[derive(Debug)]
pub(crate) struct Tagger {
    pub(crate) records: SharedRecords,
    pub(crate) registry: Arc<Registry>,
}

impl Tagger {
    /// Moves the tag to the digest that the environment's record has for `variant`, unless its run is
    /// superseded first. Repeats the requests while the registry does not respond. `None` if the record is gone
    /// meanwhile.
    pub(super) async fn tag(
        &self,
        environment: EnvironmentId,
        variant: VariantName,
    ) -> Option<Event> {
        let good = {
            let records = self.records.read();
            records.environments.get(&environment)?.images.get(&variant)?.clone()
        };
        let (tag, digest) = (good.tag, good.digest);
        let superseded = RunState::Cancelled { reason: CancelReason::Superseded };
        let is_superseded = |records: &Records| {
            records.runs.get(&good.run).is_some_and(|run| run.state == superseded)
        };
        let result = tokio::select! {
            biased;
            () = self.records.wait_until(is_superseded) => {
                Err("a newer run took the place of its own".to_owned())
            }
            moved = self.registry.tag(&tag, &digest) => moved.map_err(|error| ErrorChain(&error).to_string()),
        };
        match &result {
            Ok(()) => info!(%tag, %digest, "tagged"),
            Err(error) => warn!(%tag, %digest, error, "not tagged"),
        }
        Some(Event::ImageTagged { environment, variant, digest, result })
    }
}
