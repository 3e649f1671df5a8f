//! The prices of EC2's spot market: read every few minutes, and used to try the cheapest zone first.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::InstanceType;
use stagely_state::{Market, Usd};
use tokio::sync::OnceCell;
use tracing::warn;

use super::AwsProvider;
use super::error::Ec2Error;
use crate::catalog::Candidate;
use crate::{ProviderError, SpotPrices};

/// EC2's limit for the types in one request.
const TYPES_MAX: usize = 100;

/// The most prices that are kept: 100 types in 100 zones. No region has as many zones.
const PRICES_MAX: usize = 10_000;

/// The platform whose prices count. Images of Debian and Ubuntu have no price of their own.
const PLATFORM: &str = "Linux/UNIX";

/// The last known prices, and the zone of each configured subnet.
#[derive(Debug, Default)]
pub(super) struct Spot {
    prices: Mutex<SpotPrices>,
    zones: OnceCell<BTreeMap<String, String>>,
}

impl Spot {
    fn prices(&self) -> MutexGuard<'_, SpotPrices> {
        self.prices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The price of an hour.
    pub(super) fn price(&self, instance_type: &str, zone: &str) -> Option<Usd> {
        self.prices().get(&(instance_type.to_owned(), zone.to_owned())).copied()
    }

    /// The candidates in another order: of each type, the zone with the lowest spot price comes first, and zones without
    /// a price come last. Types and markets stay in their order.
    pub(super) fn cheapest_first(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        let is_same = |one: &Candidate, other: &Candidate| {
            (one.market, &one.instance_type) == (other.market, &other.instance_type)
        };
        for of_type in candidates.chunk_by_mut(is_same) {
            if of_type.first().is_some_and(|first| first.market == Market::Spot) {
                of_type.sort_by_key(|candidate| {
                    let price = candidate
                        .zone
                        .as_deref()
                        .and_then(|zone| self.price(&candidate.instance_type, self.zone_of(zone)));
                    price.map_or(u64::MAX, |Usd(millionths)| millionths)
                });
            }
        }
        candidates
    }

    /// The zone of a subnet. A zone is its own.
    fn zone_of<'a>(&'a self, zone_or_subnet: &'a str) -> &'a str {
        let known = self.zones.get().and_then(|zones| zones.get(zone_or_subnet));
        known.map_or(zone_or_subnet, String::as_str)
    }
}

impl AwsProvider {
    pub(super) async fn read_spot_prices(
        &self,
        types: &[String],
    ) -> Result<SpotPrices, ProviderError> {
        if let Err(error) = self.spot.zones.get_or_try_init(|| self.zones_of_subnets()).await {
            // The prices are known all the same; only the order of the subnets is not.
            warn!(%error, "the zones of the subnets cannot be read");
        }
        let mut prices = SpotPrices::new();
        for types in types.chunks(TYPES_MAX) {
            self.read_prices_of(types, &mut prices).await?;
        }
        self.spot.prices().clone_from(&prices);
        Ok(prices)
    }

    async fn read_prices_of(
        &self,
        types: &[String],
        prices: &mut SpotPrices,
    ) -> Result<(), Ec2Error> {
        let types = types.iter().map(|name| InstanceType::from(name.as_str())).collect();
        // Without a time in the past, EC2 tells the price in force of each type and zone. Source: EC2 API reference,
        // DescribeSpotPriceHistory, StartTime.
        let request = self
            .client
            .describe_spot_price_history()
            .start_time(DateTime::from(SystemTime::now()))
            .product_descriptions(PLATFORM)
            .set_instance_types(Some(types));
        let mut newest: BTreeMap<(String, String), DateTime> = BTreeMap::new();
        let mut pages = request.into_paginator().send();
        while let Some(page) = pages.next().await {
            for found in page?.spot_price_history.unwrap_or_default() {
                let (Some(name), Some(zone)) = (found.instance_type(), found.availability_zone())
                else {
                    continue;
                };
                let key = (name.as_str().to_owned(), zone.to_owned());
                let at = found.timestamp().copied().unwrap_or(DateTime::from_secs(0));
                let is_older = newest.get(&key).is_some_and(|known| *known > at);
                let price = found.spot_price().and_then(parse_price);
                if let Some(price) = price.filter(|_| !is_older && newest.len() < PRICES_MAX) {
                    newest.insert(key.clone(), at);
                    prices.insert(key, price);
                }
            }
        }
        Ok(())
    }

    async fn zones_of_subnets(&self) -> Result<BTreeMap<String, String>, Ec2Error> {
        let subnets = &self.config.subnets;
        if subnets.is_empty() {
            return Ok(BTreeMap::new());
        }
        let request = self.client.describe_subnets().set_subnet_ids(Some(subnets.clone()));
        let mut zones = BTreeMap::new();
        let mut pages = request.into_paginator().send();
        while let Some(page) = pages.next().await {
            for subnet in page?.subnets.unwrap_or_default() {
                zones.extend(subnet.subnet_id.zip(subnet.availability_zone));
            }
        }
        Ok(zones)
    }
}

/// A price as EC2 writes it, `0.062300`, in millionths of a dollar, rounded up.
fn parse_price(text: &str) -> Option<Usd> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 9 || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let padded = format!("{fraction:0<6}");
    let (millionths, rest) = padded.split_at(6);
    let rest = u64::from(rest.bytes().any(|digit| digit != b'0'));
    Some(Usd(whole.parse::<u64>().ok()? * 1_000_000 + millionths.parse::<u64>().ok()? + rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_as_ec2_writes_them() {
        let read = ["0.062300", "0.1", "1", "12.3456789", "0.0000001", "000.5"].map(parse_price);
        let expected = [62_300, 100_000, 1_000_000, 12_345_679, 1, 500_000];
        assert_eq!(read, expected.map(|price| Some(Usd(price))));
        for text in ["", ".", "-0.1", "0,1", "1e9", "NaN", "9999999999.0"] {
            assert_eq!(parse_price(text), None, "{text}");
        }
    }

    #[test]
    fn the_cheapest_zone_of_each_type_comes_first_on_the_spot_market_alone() {
        let candidate = |name: &str, zone: &str, market| Candidate {
            instance_type: name.to_owned(),
            zone: Some(zone.to_owned()),
            market,
            price: None,
            max_price: None,
        };
        let spot = Spot::default();
        let price =
            |name: &str, zone: &str, price| ((name.to_owned(), zone.to_owned()), Usd(price));
        *spot.prices() =
            SpotPrices::from([price("c5", "a", 70), price("c5", "c", 60), price("c6", "a", 1)]);
        let subnet = BTreeMap::from([("subnet-1".to_owned(), "c".to_owned())]);
        spot.zones.set(subnet).unwrap();
        let in_order = vec![
            candidate("c5", "b", Market::Spot),
            candidate("c5", "a", Market::Spot),
            candidate("c5", "subnet-1", Market::Spot),
            candidate("c6", "b", Market::Spot),
            candidate("c6", "a", Market::Spot),
            candidate("c5", "b", Market::OnDemand),
            candidate("c5", "a", Market::OnDemand),
        ];

        let sorted = spot.cheapest_first(in_order);

        let names: Vec<String> = sorted
            .iter()
            .map(|found| format!("{} {}", found.instance_type, found.zone.as_deref().unwrap()))
            .collect();
        assert_eq!(names, ["c5 subnet-1", "c5 a", "c5 b", "c6 a", "c6 b", "c5 b", "c5 a"]);
    }
}
