//! Ends a machine, and does not rest before it is gone.

use std::time::Duration;

use stagely_protocol::{CoreMessage, Terminate};
use stagely_provider::TERMINATE_LIMIT;
use stagely_state::Event;
use stagely_state::ids::MachineId;
use tracing::{info, warn};

use super::Effects;
use crate::core::sweep::within;

/// The wait after a failed termination doubles up to this.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// What an agent may use to end its work, in seconds. It may be cut short: the provider is asked at
/// once, and how long that takes is its own affair.
const GRACE_SECONDS: u64 = 10;

impl Effects {
    /// Ends `machine`. Asks the provider again until it has agreed.
    pub(super) async fn terminate(&self, machine: MachineId) -> Event {
        let reason = "its work is done or not wanted any more".to_owned();
        let message = CoreMessage::Terminate(Terminate { reason, grace: GRACE_SECONDS });
        self.sessions.send(machine, message);
        let mut wait = Duration::from_secs(1);
        let provider = self.records.read().machines.get(&machine).map(|record| record.provider);
        if let Some(provider) = provider.and_then(|name| self.providers.get(name)) {
            while let Err(error) = within(TERMINATE_LIMIT, provider.terminate(machine)).await {
                warn!(%machine, %error, "not terminated; trying again in {wait:?}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
        self.sessions.end(machine);
        info!(%machine, "terminated");
        Event::MachineGone { machine, taken_back: false }
    }
}
