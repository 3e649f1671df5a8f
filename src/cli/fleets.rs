//! `stagely fleets`: the machines of a configuration and their prices, without core.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use stagely_protocol::Arch;
use stagely_provider::Network;
use stagely_provider::catalog::Catalog;
use stagely_provider::settings::MarketPolicy;
use stagely_state::{Fleet, MachineSize, ProviderName, Usd};

use super::output::print;
use super::table::table;
use crate::api::dollars;
use crate::config::{Config, ConfigError, FleetConfig};

/// Shows the machines of a configuration and their prices
///
/// Lists the instance types of each size in the order in which they are tried. Checks the configuration;
/// contacts neither core nor providers.
#[derive(Args, Debug)]
pub struct FleetsArgs {
    /// Core's configuration, `stagely.toml`. Default: the default settings
    #[arg(long, value_name = "FILE", env = "STAGELY_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const ON_DEMAND: &str = "on-demand";

/// The machines of one arch in a fleet.
#[derive(Debug, Serialize)]
struct FleetView {
    fleet: Fleet,
    arch: Arch,
    /// Null if no machines are launched.
    provider: Option<ProviderName>,
    market: &'static str,
    /// The maximum price of a spot machine.
    #[serde(with = "dollars")]
    max_price_per_hour_usd: Option<Usd>,
    /// Whether such machines can be launched, as far as the configuration tells.
    is_launched: bool,
    /// The zones, regions or subnets, in the order in which they are tried. Empty: the provider chooses.
    zones: Vec<String>,
    /// Empty if there are no machines of this arch, or the provider has no sizes.
    sizes: Vec<SizeView>,
    #[serde(skip)]
    network: Option<Network>,
}

#[derive(Debug, Serialize)]
struct SizeView {
    size: MachineSize,
    /// In the order in which they are tried.
    instance_types: Vec<TypeView>,
}

#[derive(Debug, Serialize)]
struct TypeView {
    name: String,
    #[serde(with = "dollars")]
    price_per_hour_usd: Option<Usd>,
}

/// Runs `stagely fleets`.
///
/// # Errors
/// The configuration cannot be used; standard output cannot be written.
pub fn fleets(arguments: &FleetsArgs) -> anyhow::Result<ExitCode> {
    let config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.check()?;
    print(arguments.json, &views(&config)?, |fleets| text(fleets))
}

fn views(config: &Config) -> Result<Vec<FleetView>, ConfigError> {
    let mut views = Vec::new();
    for fleet in Fleet::ALL {
        let bought = config.fleet(fleet);
        for arch in Arch::ALL {
            views.push(view(config, fleet, arch, &bought)?);
        }
    }
    Ok(views)
}

fn view(
    config: &Config,
    fleet: Fleet,
    arch: Arch,
    bought: &FleetConfig,
) -> Result<FleetView, ConfigError> {
    let provider = bought.provider_of(arch);
    let tables = config.provider_tables();
    let catalog = match provider {
        Some(provider) => tables.catalog(provider)?,
        None => None,
    };
    let market = match bought.market {
        _ if !provider.is_some_and(|provider| tables.has_spot_market(provider)) => ON_DEMAND,
        MarketPolicy::OnDemand => ON_DEMAND,
        MarketPolicy::Spot => "spot",
        MarketPolicy::SpotFirst => "spot-first",
    };
    let sizes = catalog.as_ref().map(|catalog| sizes(catalog, fleet, arch)).unwrap_or_default();
    let zones = catalog.map(|catalog| catalog.zones().to_vec()).unwrap_or_default();
    let is_launched = provider.is_some_and(|provider| tables.can_launch(provider, fleet, arch));
    let max_price_per_hour_usd = bought.max_price;
    Ok(FleetView {
        fleet,
        arch,
        provider,
        market,
        max_price_per_hour_usd,
        is_launched,
        zones,
        sizes,
        network: provider.map(|provider| tables.network(provider)),
    })
}

fn sizes(catalog: &Catalog, fleet: Fleet, arch: Arch) -> Vec<SizeView> {
    let own =
        catalog.sizes().filter(|(of_fleet, of_arch, ..)| (*of_fleet, *of_arch) == (fleet, arch));
    let sizes = own.map(|(_, _, size, names)| SizeView {
        size,
        instance_types: names
            .iter()
            .map(|name| TypeView {
                name: name.clone(),
                price_per_hour_usd: catalog.instance_type(name).and_then(|known| known.price),
            })
            .collect(),
    });
    sizes.collect()
}

fn text(fleets: &[FleetView]) -> String {
    let rows = fleets.iter().flat_map(|fleet| {
        let row = move |market: &str, size: String, types: String| {
            let provider = fleet.provider.map_or("none", ProviderName::as_str).to_owned();
            let (name, arch) = (fleet.fleet.to_string(), fleet.arch.to_string());
            [name, arch, provider, market.to_owned(), size, types]
        };
        if fleet.sizes.is_empty() {
            return vec![row("", "any".to_owned(), without_sizes(fleet).to_owned())];
        }
        let sizes = fleet.sizes.iter();
        sizes.map(|size| row(fleet.market, size.size.to_string(), types(size))).collect()
    });
    let table = table(["FLEET", "ARCH", "PROVIDER", "MARKET", "SIZE", "INSTANCE TYPES"], rows);
    let caps = Fleet::ALL.into_iter().filter_map(|fleet| {
        let view = fleets.iter().find(|view| view.fleet == fleet && view.market != ON_DEMAND)?;
        let max = view.max_price_per_hour_usd?;
        Some(format!("a spot {fleet} costs at most {max} an hour"))
    });
    let prices = "prices are for an hour, on demand".to_owned();
    [table].into_iter().chain(caps).chain([prices]).collect::<Vec<_>>().join("\n")
}

/// The description of a fleet without instance types.
fn without_sizes(fleet: &FleetView) -> &'static str {
    match fleet.network {
        Some(_) if !fleet.is_launched && fleet.fleet == Fleet::Builder => {
            "no machines of this processor; builds are emulated"
        }
        Some(_) if !fleet.is_launched => "no machines of this processor",
        Some(Network::Guest { .. }) => "virtual machines on core's own host",
        Some(_) => "processes on core's own host",
        None => "none are launched; machines can be registered",
    }
}

fn types(size: &SizeView) -> String {
    let types = size.instance_types.iter().map(|known| match known.price_per_hour_usd {
        Some(price) => format!("{} {price}", known.name),
        None => format!("{} (no price)", known.name),
    });
    types.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let mut config: Config = toml::from_str(text).unwrap();
        config.core.public_url = Some("https://core.example.com".parse().unwrap());
        config.registry.url = Some("registry.example.com".to_owned());
        config.check().unwrap();
        config
    }

    #[test]
    fn fleets_are_shown_with_their_instance_types_and_prices() {
        let config = config(
            r#"
            builders = { provider = "digitalocean", arm64 = "aws", market = "spot-first", max-price = 0.2 }
            testers.provider = "none"
            aws.builders.arm64.medium = ["c7g.xlarge", "c6g.xlarge"]
            "#,
        );
        let shown = text(&views(&config).unwrap());
        let has = |row: &str| {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(shown.lines().any(|line| words(line) == row), "{row}\n{shown}");
        };
        has("builder amd64 digitalocean on-demand medium c-4 $0.125");
        has("builder arm64 aws spot-first medium c7g.xlarge $0.145, c6g.xlarge $0.136");
        has("preview amd64 digitalocean on-demand large s-4vcpu-8gb $0.071");
        has("tester amd64 none any none are launched; machines can be registered");
        has("a spot builder costs at most $0.200 an hour");
    }

    #[test]
    fn a_processor_that_a_provider_lacks_is_shown_as_emulated() {
        let shown = text(&views(&config(r#"builders.provider = "digitalocean""#)).unwrap());
        let emulated = "no machines of this processor; builds are emulated";
        assert_eq!(shown.matches(emulated).count(), 1, "{shown}");
        assert_eq!(shown.matches("no machines of this processor").count(), 3, "{shown}");
        let shown = text(&views(&Config::default()).unwrap());
        assert_eq!(shown.matches("processes on core's own host").count(), 3, "{shown}");
    }

    #[test]
    fn json_contains_prices_as_numbers() {
        let views = views(&config(r#"builders.provider = "aws""#)).unwrap();
        let json = serde_json::to_value(&views).unwrap();
        assert_eq!(json[0]["sizes"][1]["size"], "medium");
        assert_eq!(json[0]["sizes"][1]["instance_types"][0]["name"], "c5.xlarge");
        assert_eq!(json[0]["sizes"][1]["instance_types"][0]["price_per_hour_usd"], 0.17);
    }
}
