//! The prices of the spot market, from a proxy with a price history: moto has one fixed price.

use stagely_protocol::Arch;
use stagely_provider::Provider as _;
use stagely_provider::settings::MarketPolicy;
use stagely_state::{Market, Usd};

use crate::launches::{provider, request, spec};
use crate::moto::Cloud;
use crate::proxy::Fate;

const ZONES: &str = r#"zones = ["us-east-1a", "us-east-1b", "us-east-1c"]"#;

fn types() -> Vec<String> {
    vec!["c5.xlarge".to_owned(), "t3.medium".to_owned()]
}

#[tokio::test]
async fn the_newest_price_of_each_type_and_zone_counts_over_all_pages() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, ZONES);
    cloud.proxy.set_spot_prices(&[
        ("c5.xlarge", "us-east-1a", "0.070000", 1),
        ("c5.xlarge", "us-east-1a", "0.090000", 7),
        ("c5.xlarge", "us-east-1b", "0.0612345", 2),
        ("t3.medium", "us-east-1a", "0.012500", 3),
        ("r5.large", "us-east-1a", "0.030000", 3),
    ]);

    let prices = provider.spot_prices(&types()).await.unwrap();

    let price = |name: &str, zone: &str| prices.get(&(name.to_owned(), zone.to_owned())).copied();
    assert_eq!(price("c5.xlarge", "us-east-1a"), Some(Usd(70_000)));
    assert_eq!(price("c5.xlarge", "us-east-1b"), Some(Usd(61_235)), "it is rounded up");
    assert_eq!(price("t3.medium", "us-east-1a"), Some(Usd(12_500)));
    assert_eq!(prices.len(), 3, "{prices:?}");
    let seen = cloud.proxy.seen("DescribeSpotPriceHistory");
    assert_eq!(seen.len(), 4, "one price a page");
    assert_eq!(seen[0]["ProductDescription.1"], "Linux/UNIX");
    assert!(seen[0].contains_key("StartTime"), "the prices in force, and not those of 90 days");
}

#[tokio::test]
async fn the_cheapest_zone_is_tried_first_and_its_price_is_that_of_the_machine() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, ZONES);
    cloud.proxy.set_spot_prices(&[
        ("c5.xlarge", "us-east-1a", "0.049", 1),
        ("c5.xlarge", "us-east-1b", "0.031", 1),
        ("c5.xlarge", "us-east-1c", "0.04", 1),
    ]);
    provider.spot_prices(&types()).await.unwrap();
    cloud.proxy.next(1, "RunInstances", Fate::Refused("InsufficientInstanceCapacity", 500));

    let request = request(spec(Arch::Amd64, MarketPolicy::SpotFirst));
    let placement = provider.launch(&request).await.unwrap();

    let zones: Vec<String> = cloud
        .proxy
        .seen("RunInstances")
        .iter()
        .map(|request| request["Placement.AvailabilityZone"].clone())
        .collect();
    assert_eq!(zones, ["us-east-1b", "us-east-1c"]);
    assert_eq!((placement.market, placement.zone.as_deref()), (Market::Spot, Some("us-east-1c")));
    assert_eq!(placement.spot_price, Some(Usd(40_000)));
    assert_eq!(placement.price, Some(Usd(50_000)), "the highest price");
}

#[tokio::test]
async fn prices_that_cannot_be_read_leave_the_last_known_ones() {
    let cloud = Cloud::start().await;
    let provider = provider(&cloud, ZONES);
    cloud.proxy.set_spot_prices(&[("c5.xlarge", "us-east-1b", "0.031", 1)]);
    provider.spot_prices(&types()).await.unwrap();
    cloud.proxy.next(9, "DescribeSpotPriceHistory", Fate::Refused("UnauthorizedOperation", 403));
    assert!(provider.spot_prices(&types()).await.is_err());

    let request = request(spec(Arch::Amd64, MarketPolicy::Spot));
    let placement = provider.launch(&request).await.unwrap();

    assert_eq!(placement.spot_price, Some(Usd(31_000)));
}
