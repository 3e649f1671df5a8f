//! Compares what the provider has with the records, both ways, again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::orchestrator::{Events, ShuttingDown};
use super::records::SharedRecords;
use super::state::{Event, Machine, MachineKind, MachineState};
use crate::ids::MachineId;
use crate::provider::{Provider, ProviderError};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks in a row in which a machine must be missing before it counts as gone: a list and the records
/// are not of the same moment.
const LOOKS_MISSING: u32 = 2;

/// The sweeping task.
pub(super) struct Sweep {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) records: SharedRecords,
    pub(super) events: Events,
}

impl Sweep {
    /// Sweeps until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missing = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.look(&mut missing).await {
                warn!(%error, "the provider cannot be compared with the records");
            }
        }
    }

    async fn look(&self, missing: &mut HashMap<MachineId, u32>) -> Result<(), ProviderError> {
        let listed = self.provider.list().await?;
        for machine in &listed {
            self.check_listed(*machine).await?;
        }
        let expected = self.expected();
        missing.retain(|machine, _| expected.contains(machine) && !listed.contains(machine));
        for machine in expected.into_iter().filter(|machine| !listed.contains(machine)) {
            let looks = missing.entry(machine).or_default();
            *looks += 1;
            if *looks >= LOOKS_MISSING {
                info!(%machine, "a machine has vanished");
                // What is left of it, processes or a folder, goes too.
                self.provider.terminate(machine).await?;
                let told = self.events.store(Event::MachineGone { machine }).await;
                if matches!(told, Err(ShuttingDown)) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Ends a machine only on positive evidence: a record that says it is gone, or no record at all.
    /// A record is written before the provider is asked, so a machine without one is not one that is
    /// starting.
    async fn check_listed(&self, machine: MachineId) -> Result<(), ProviderError> {
        let is_gone = {
            let records = self.records.read();
            records.machines.get(&machine).map(|record| record.state.is_terminated())
        };
        match is_gone {
            Some(false) => {}
            Some(true) => {
                info!(%machine, "a machine that was taken for gone is there");
                // The state ends it; at shutdown the next core does.
                let _ = self.events.store(Event::MachineLaunched { machine }).await;
            }
            None => {
                info!(%machine, "a machine that nobody knows is ended");
                self.provider.terminate(machine).await?;
            }
        }
        Ok(())
    }

    /// Machines that the provider has confirmed and nobody has asked it to end.
    fn expected(&self) -> Vec<MachineId> {
        let is_expected = |machine: &&Machine| {
            machine.kind == MachineKind::Launched
                && matches!(
                    machine.state,
                    MachineState::Booting | MachineState::Ready | MachineState::Busy { .. }
                )
        };
        self.records.read().live_machines().filter(is_expected).map(|machine| machine.id).collect()
    }
}
