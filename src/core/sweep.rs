//! Compares what a provider has with the records, both ways, again and again, and decides only on positive
//! evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::orchestrator::{Events, ShuttingDown, now};
use super::records::{Records, SharedRecords};
use super::state::{Event, Machine, MachineKind, MachineState, ProviderName, Timestamp};
use crate::ids::MachineId;
use crate::provider::{Listed, ListedState, Listing, Provider, ProviderError};

/// Looks in a row in which a machine must be missing before it counts as gone: a list and the records
/// are not of the same moment.
const LOOKS_MISSING: u32 = 2;

/// Between two questions what a provider has.
const DESCRIBE_INTERVAL: Duration = Duration::from_hours(1);

/// What is to be done about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has no record. A record is made before the provider is asked, so it is not one that is starting.
    EndUnknown,
    /// Its record says that it is gone, and it is there: the state ends it.
    Returned,
    /// It is gone.
    Gone {
        /// Whether the cloud took it back.
        taken_back: bool,
    },
    /// It is not in the list, which need not mean anything yet.
    Missing,
}

/// What the records of one provider's machines say against its list.
pub(super) struct Comparison<'a> {
    pub(super) provider: ProviderName,
    pub(super) listing: Listing,
    pub(super) listed: &'a [Listed],
    pub(super) records: &'a Records,
    /// When this core started: what an earlier one has launched may be missing from the list for as long as
    /// what this one has.
    pub(super) started_at: Timestamp,
    pub(super) now: Timestamp,
}

impl Comparison<'_> {
    /// What is to be done, machine by machine. About those that are not named, nothing is.
    pub(super) fn verdicts(&self) -> BTreeMap<MachineId, Verdict> {
        let mut verdicts = BTreeMap::new();
        for listed in self.listed {
            if let Some(verdict) = self.of_listed(listed) {
                verdicts.insert(listed.machine, verdict);
            }
        }
        let listed: BTreeSet<MachineId> = self.listed.iter().map(|listed| listed.machine).collect();
        let expected = self.records.live_machines().filter(|machine| self.is_expected(machine));
        for machine in expected.filter(|machine| !listed.contains(&machine.id)) {
            verdicts.insert(machine.id, Verdict::Missing);
        }
        verdicts
    }

    fn of_listed(&self, listed: &Listed) -> Option<Verdict> {
        let record = self.records.machines.get(&listed.machine);
        match (listed.state, record) {
            (ListedState::Live, None) => Some(Verdict::EndUnknown),
            (ListedState::Live, Some(record)) => {
                record.state.is_terminated().then_some(Verdict::Returned)
            }
            (ListedState::Gone { taken_back }, Some(record)) if is_confirmed(record) => {
                Some(Verdict::Gone { taken_back })
            }
            (ListedState::Gone { .. }, _) => None,
        }
    }

    /// Whether the provider has confirmed the machine, nobody has asked for its end, and nobody has heard of it
    /// for so long that it should be in the list, if it is there.
    fn is_expected(&self, machine: &Machine) -> bool {
        let since = machine.contact_at.max(self.started_at);
        machine.provider == self.provider
            && is_confirmed(machine)
            && !machine.connected
            && self.now.since(since) >= self.listing.grace
    }
}

/// Whether the provider has confirmed the machine and nobody has asked for its end.
fn is_confirmed(machine: &Machine) -> bool {
    use MachineState::{Booting, Busy, Ready};
    machine.kind == MachineKind::Launched && matches!(machine.state, Booting | Ready | Busy { .. })
}

/// The sweeping task of one provider.
pub(super) struct Sweep {
    pub(super) name: ProviderName,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) records: SharedRecords,
    pub(super) events: Events,
    pub(super) started_at: Timestamp,
}

impl Sweep {
    /// Sweeps until `stop` fires.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(self.provider.listing().interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missing = BTreeMap::new();
        let mut describe_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if Instant::now() >= describe_at && self.describe().await {
                describe_at = Instant::now() + DESCRIBE_INTERVAL;
            }
            if let Err(error) = self.look(&mut missing).await {
                warn!(provider = %self.name, %error, "it cannot be compared with the records");
            }
        }
    }

    /// Asks the provider which arches it has; false if it does not say.
    async fn describe(&self) -> bool {
        let offers = match self.provider.describe().await {
            Ok(offers) => offers,
            Err(error) => {
                warn!(provider = %self.name, %error, "it does not say what it has");
                return false;
            }
        };
        for offer in &offers {
            if let Some(problem) = &offer.problem {
                let (fleet, arch, size) = (offer.fleet, offer.arch, offer.size);
                warn!(provider = %self.name, %fleet, %arch, %size, problem, "cannot be launched");
            }
        }
        let arches = offers.iter().filter(|offer| offer.problem.is_none()).map(|offer| offer.arch);
        let arches = arches.collect();
        let told = Event::ProviderDescribed { provider: self.name, arches };
        self.events.store(told).await.is_ok()
    }

    async fn look(&self, missing: &mut BTreeMap<MachineId, u32>) -> Result<(), ProviderError> {
        let listed = self.provider.list().await?;
        let verdicts = {
            let records = self.records.read();
            Comparison {
                provider: self.name,
                listing: self.provider.listing(),
                listed: &listed,
                records: &records,
                started_at: self.started_at,
                now: now(),
            }
            .verdicts()
        };
        missing.retain(|machine, _| verdicts.get(machine) == Some(&Verdict::Missing));
        for (machine, verdict) in verdicts {
            let told = match verdict {
                Verdict::EndUnknown => {
                    info!(%machine, "a machine that nobody knows is ended");
                    self.provider.terminate(machine).await?;
                    continue;
                }
                Verdict::Returned => {
                    info!(%machine, "a machine that was taken for gone is there");
                    self.events.store(Event::MachineLaunched { machine, placement: None }).await
                }
                Verdict::Gone { taken_back } => self.forget(machine, taken_back).await?,
                Verdict::Missing => {
                    let looks = missing.entry(machine).or_default();
                    *looks += 1;
                    if *looks < LOOKS_MISSING {
                        continue;
                    }
                    self.forget(machine, false).await?
                }
            };
            // At shutdown the next core does it.
            if matches!(told, Err(ShuttingDown)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Tells the state that a machine is gone.
    async fn forget(
        &self,
        machine: MachineId,
        taken_back: bool,
    ) -> Result<Result<(), ShuttingDown>, ProviderError> {
        info!(%machine, taken_back, "a machine has vanished");
        // What is left of it, processes or a folder, goes too.
        self.provider.terminate(machine).await?;
        Ok(self.events.store(Event::MachineGone { machine, taken_back }).await)
    }
}
