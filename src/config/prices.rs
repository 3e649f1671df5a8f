//! The `[prices]` table, and the prices of machines that follow from the configuration.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use stagely_protocol::Arch;
use stagely_provider::settings::{dollars, some_dollars};
use stagely_state::{Extras, Fleet, MachineSize, Prices, ProviderName, Usd};

use super::{Config, ConfigError};

/// The `[prices]` table: what the providers' lists of machine types do not say. Prices of types are in
/// `[aws.instance-types]` and `[digitalocean.instance-types]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PriceConfig {
    /// The price of the public IPv4 address of a machine at AWS for an hour, in US dollars. Default: 0.005.
    #[serde(deserialize_with = "dollars")]
    pub aws_address: Usd,
    /// The price of a GiB of disk (gp3) at AWS for a month, in US dollars. Default: 0.08.
    #[serde(deserialize_with = "dollars")]
    pub aws_disk: Usd,
    /// The price of an hour of a machine of the provider `local`, in US dollars. Default: none; it costs nothing.
    #[serde(deserialize_with = "some_dollars")]
    pub local: Option<Usd>,
    /// The same for the provider `qemu`.
    #[serde(deserialize_with = "some_dollars")]
    pub qemu: Option<Usd>,
}

impl Default for PriceConfig {
    fn default() -> Self {
        Self { aws_address: Usd(5_000), aws_disk: Usd(80_000), local: None, qemu: None }
    }
}

/// The machine types of one size, as far as the configuration names them.
type Sizes = BTreeMap<(Fleet, Arch, MachineSize), Vec<(String, Option<Usd>)>>;

impl Config {
    /// The highest prices of all machines that may be launched.
    pub(super) fn prices(&self) -> Prices {
        let mut prices = Prices::default();
        for provider in ProviderName::ALL {
            for ((fleet, arch, size), types) in self.machine_types(provider) {
                let highest = types.iter().map(|(_, price)| *price).max().flatten();
                if let Some(price) = highest {
                    prices.machines.insert((provider, fleet, arch, size), price);
                }
            }
        }
        let aws = Extras {
            address: self.prices.aws_address,
            disk_gib_month: self.prices.aws_disk,
            disk_gib: self.aws.volume_gib.get(),
        };
        prices.extras.insert(ProviderName::Aws, aws);
        prices
    }

    /// The machine types of a provider with their prices on demand.
    fn machine_types(&self, provider: ProviderName) -> Sizes {
        let own = match provider {
            ProviderName::Local => self.prices.local,
            ProviderName::Qemu => self.prices.qemu,
            ProviderName::Aws | ProviderName::DigitalOcean => {
                let catalog = self.provider_tables().catalog(provider).ok().flatten();
                let sizes = catalog.iter().flat_map(|catalog| {
                    catalog.sizes().map(move |(fleet, arch, size, names)| {
                        let price = |name: &String| {
                            catalog.instance_type(name).and_then(|known| known.price)
                        };
                        let types = names.iter().map(|name| (name.clone(), price(name)));
                        ((fleet, arch, size), types.collect())
                    })
                });
                return sizes.collect();
            }
        };
        let Some(price) = own else { return Sizes::new() };
        let arches = Fleet::ALL.into_iter().flat_map(|fleet| Arch::ALL.map(|arch| (fleet, arch)));
        let sizes =
            arches.flat_map(|(fleet, arch)| MachineSize::ALL.map(|size| (fleet, arch, size)));
        sizes.map(|size| (size, vec![(provider.to_string(), Some(price))])).collect()
    }

    /// With a budget, every machine that may be launched must have a price.
    pub(super) fn check_budget(&self) -> Result<(), ConfigError> {
        self.budget.check()?;
        if self.budget.limits() == stagely_state::Budget::default() {
            return Ok(());
        }
        for fleet in Fleet::ALL {
            let machines = self.fleet(fleet);
            for arch in Arch::ALL {
                let Some(provider) = machines.provider_of(arch) else { continue };
                let types = self.machine_types(provider);
                let own = types.iter().filter(|((of, own, _), _)| (*of, *own) == (fleet, arch));
                let mut unknown =
                    own.flat_map(|(_, types)| types).filter(|(_, price)| price.is_none());
                if let Some((name, _)) = unknown.next() {
                    let problem = format!(
                        "needs the price of every machine type, and that of {name} is not known: \
                         [{provider}] instance-types.\"{name}\" = {{ price = … }}"
                    );
                    return Err(ConfigError::Value { key: "budget", problem });
                }
            }
        }
        Ok(())
    }

    /// The machine types that `provider` may buy on the spot market.
    pub(crate) fn spot_types(&self, provider: ProviderName) -> Vec<String> {
        if !self.provider_tables().has_spot_market(provider) {
            return Vec::new();
        }
        let is_spot = |fleet: Fleet, arch: Arch| {
            let machines = self.fleet(fleet);
            machines.provider_of(arch) == Some(provider) && machines.market.may_be_spot()
        };
        let types = self.machine_types(provider).into_iter();
        let spot = types.filter(|((fleet, arch, _), _)| is_spot(*fleet, *arch));
        let names: BTreeSet<String> =
            spot.flat_map(|(_, types)| types).map(|(name, _)| name).collect();
        names.into_iter().collect()
    }
}
