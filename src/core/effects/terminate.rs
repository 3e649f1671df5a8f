//! Terminates a machine, and repeats the request until it succeeds.

use std::time::Duration;

use stagely_protocol::{CoreMessage, Terminate};
use stagely_provider::{Providers, TERMINATE_LIMIT};
use stagely_state::Event;
use stagely_state::ids::MachineId;
use tracing::info;

use crate::core::records::SharedRecords;
use crate::core::retry::{Retry, RetryPolicy};
use crate::core::sessions::Sessions;
use crate::core::sweep::within;

/// A machine that is not terminated costs money, so the request is repeated without limit.
const RETRIES: RetryPolicy = RetryPolicy::new(Duration::from_secs(1), Duration::from_mins(1));

/// The time for an agent to end its work, in seconds. The machine may be gone earlier, because the provider gets its
/// request at the same time.
const GRACE_SECONDS: u64 = 10;

#[derive(Debug)]
pub(crate) struct Terminator {
    pub(crate) records: SharedRecords,
    pub(crate) sessions: Sessions,
    pub(crate) providers: Providers,
}

impl Terminator {
    /// Terminates `machine`. Repeats the request until it succeeds.
    pub(super) async fn terminate(&self, machine: MachineId) -> Event {
        let reason = "its work is done or not wanted any more".to_owned();
        let message = CoreMessage::Terminate(Terminate { reason, grace: GRACE_SECONDS });
        self.sessions.send(machine, message);
        let provider = self.records.read().machines.get(&machine).map(|record| record.provider);
        if let Some(provider) = provider.and_then(|name| self.providers.get(name)) {
            let what = format!("the termination of {machine}");
            let terminate = || within(TERMINATE_LIMIT, provider.terminate(machine));
            // Without a limit it ends only with success.
            let _ = RETRIES.run(what, |_| Retry::Soon, terminate).await;
        }
        self.sessions.end(machine);
        info!(%machine, "terminated");
        Event::MachineGone { machine, taken_back: false }
    }
}
