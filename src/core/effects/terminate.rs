//! Terminates a machine, and repeats the request until the provider has agreed.

use std::time::Duration;

use stagely_protocol::{CoreMessage, Terminate};
use stagely_provider::TERMINATE_LIMIT;
use stagely_state::Event;
use stagely_state::ids::MachineId;
use tracing::info;

use super::Effects;
use crate::core::retry::{Retry, RetryPolicy};
use crate::core::sweep::within;

/// A machine that is not terminated costs money, so the provider is asked until it agrees.
const RETRIES: RetryPolicy = RetryPolicy::new(Duration::from_secs(1), Duration::from_mins(1));

/// What an agent may use to end its work, in seconds. It may be cut short: the provider is asked at
/// once, and how long that takes is its own affair.
const GRACE_SECONDS: u64 = 10;

impl Effects {
    /// Ends `machine`. Asks the provider again until it has agreed.
    pub(super) async fn terminate(&self, machine: MachineId) -> Event {
        let reason = "its work is done or not wanted any more".to_owned();
        let message = CoreMessage::Terminate(Terminate { reason, grace: GRACE_SECONDS });
        self.sessions.send(machine, message);
        let provider = self.records.read().machines.get(&machine).map(|record| record.provider);
        if let Some(provider) = provider.and_then(|name| self.providers.get(name)) {
            let what = format!("the termination of {machine}");
            let terminate = || within(TERMINATE_LIMIT, provider.terminate(machine));
            // Without a limit it ends with success only.
            let _ = RETRIES.run(what, |_| Retry::Soon, terminate).await;
        }
        self.sessions.end(machine);
        info!(%machine, "terminated");
        Event::MachineGone { machine, taken_back: false }
    }
}
