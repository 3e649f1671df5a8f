//! Reads the prices of the spot market every few minutes while machines may be bought there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::ErrorChain;
use stagely_provider::{Provider, Providers, SpotPrices};
use stagely_state::ids::MachineId;
use stagely_state::{Event, Machine, Market, ProviderName, Usd};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::orchestrator::Events;
use super::records::{Records, SharedRecords};
use crate::config::Config;

const INTERVAL: Duration = Duration::from_mins(5);

/// The time limit of reading all prices of a provider.
const LIMIT: Duration = Duration::from_mins(1);

/// The spot prices of all providers.
#[derive(Debug)]
pub(crate) struct SpotPriceReader {
    pub(crate) config: Arc<Config>,
    pub(crate) providers: Providers,
    pub(crate) records: SharedRecords,
    pub(crate) events: Events,
}

impl SpotPriceReader {
    /// Reads until `stop` fires.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.read_all() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(INTERVAL) => {}
            }
        }
    }

    async fn read_all(&self) {
        for (name, provider) in self.providers.iter() {
            let types = types_in_use(&self.config, &self.records.read(), name);
            if !types.is_empty() {
                self.read(name, provider.as_ref(), &types).await;
            }
        }
    }

    async fn read(&self, name: ProviderName, provider: &dyn Provider, types: &[String]) {
        let prices = match timeout(LIMIT, provider.spot_prices(types)).await {
            Ok(Ok(prices)) => prices,
            Ok(Err(error)) => {
                let error = ErrorChain(&error);
                return warn!(provider = %name, %error, "spot prices cannot be read; the last known ones count");
            }
            Err(_) => {
                return warn!(provider = %name, "spot prices cannot be read in time; the last known ones count");
            }
        };
        let changed = changed(&self.records.read(), name, &prices);
        for (machine, price) in changed {
            if self.events.store(Event::SpotPriceChanged { machine, price }).await.is_err() {
                return;
            }
        }
    }
}

/// The machine types that the configuration may buy on the spot market of a provider, and those that run.
fn types_in_use(config: &Config, records: &Records, provider: ProviderName) -> Vec<String> {
    let running = spot_machines(records, provider)
        .filter_map(|machine| Some(machine.placement.as_ref()?.instance_type.clone()));
    let types: BTreeSet<String> = running.chain(config.spot_types(provider)).collect();
    types.into_iter().collect()
}

fn spot_machines(records: &Records, provider: ProviderName) -> impl Iterator<Item = &Machine> {
    records.live_machines().filter(move |machine| {
        let market = machine.placement.as_ref().map(|placement| placement.market);
        machine.provider == provider && market == Some(Market::Spot)
    })
}

/// The live spot machines whose price is another one now.
fn changed(
    records: &Records,
    provider: ProviderName,
    prices: &SpotPrices,
) -> Vec<(MachineId, Usd)> {
    let changed = spot_machines(records, provider).filter_map(|machine| {
        let placement = machine.placement.as_ref()?;
        let key = (placement.instance_type.clone(), placement.zone.clone()?);
        let price = *prices.get(&key)?;
        let bill = machine.bill.as_ref()?;
        let last = bill.segments.last()?.price;
        (last != price + bill.extras).then_some((machine.id, price))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::{EnvironmentId, JobId, ProjectId};
    use stagely_state::{Bill, Placement, PriceSegment, Timestamp};

    use super::*;
    use crate::core::fixtures;

    fn machine(number: u128, zone: &str, market: Market) -> Machine {
        let placement = Placement {
            provider_id: "i-1".to_owned(),
            instance_type: "c5.xlarge".to_owned(),
            zone: Some(zone.to_owned()),
            market,
            price: Some(Usd(170_000)),
            spot_price: None,
        };
        let bill = Bill {
            project: ProjectId::from_bits(1),
            environment: EnvironmentId::from_bits(1),
            job: JobId::from_bits(1),
            price_max: Usd(175_000),
            extras: Usd(5_000),
            approximate: true,
            is_priced: true,
            earlier: 0,
            segments: vec![PriceSegment { from: Timestamp(0), price: Usd(65_000) }],
            settled: Usd(0),
            settled_until: Timestamp(0),
            ended_at: None,
            lease_max: None,
        };
        Machine {
            provider: ProviderName::Aws,
            placement: Some(placement),
            bill: Some(bill),
            ..fixtures::machine(number)
        }
    }

    #[test]
    fn only_spot_machines_whose_price_has_changed_get_a_new_one() {
        let mut records = Records::default();
        for machine in [
            machine(1, "a", Market::Spot),
            machine(2, "b", Market::Spot),
            machine(3, "a", Market::OnDemand),
            machine(4, "c", Market::Spot),
        ] {
            records.live.insert(machine.id, None);
            records.machines.insert(machine.id, machine);
        }
        let price = |zone: &str, price| (("c5.xlarge".to_owned(), zone.to_owned()), Usd(price));
        let prices = SpotPrices::from([price("a", 61_000), price("b", 60_000)]);

        let changed = changed(&records, ProviderName::Aws, &prices);

        assert_eq!(changed, [(MachineId::from_bits(1), Usd(61_000))]);
    }

    #[test]
    fn the_types_of_fleets_on_the_spot_market_are_read_and_no_others() {
        let records = Records::default();
        let config = |text: &str| toml::from_str::<Config>(text).unwrap();
        let spot = config("[builders]\nprovider = \"aws\"\nmarket = \"spot-first\"");
        let types = types_in_use(&spot, &records, ProviderName::Aws);
        assert!(types.contains(&"c5.xlarge".to_owned()), "{types:?}");
        assert!(
            !types.contains(&"r5.xlarge".to_owned()),
            "testers are bought on demand: {types:?}"
        );
        assert_eq!(types_in_use(&spot, &records, ProviderName::Local), Vec::<String>::new());
        let text = "[builders]\nprovider = \"aws\"\n[previews]\nmarket = \"on-demand\"";
        assert_eq!(types_in_use(&config(text), &records, ProviderName::Aws), Vec::<String>::new());
    }
}
