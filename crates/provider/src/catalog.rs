//! The machine types that stand for each size, their prices, and the order in which they are tried.

use std::collections::BTreeMap;

use stagely_protocol::Arch;
use stagely_state::{Fleet, MachineSize, Market, Usd};

use crate::MachineSpec;
use crate::settings::{FleetTypes, InstanceTypeSettings, MarketPolicy, SettingError};

/// A built-in instance type: its name, its arch, and its price of an hour on demand, in millionths of a US dollar.
pub(crate) type KnownType = (&'static str, Arch, u64);

/// The instance types of small, medium, large and xlarge machines.
pub(crate) type DefaultTypes = (Fleet, Arch, [&'static str; 4]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceType {
    pub arch: Arch,
    /// The price of an hour on demand, if it is known.
    pub price: Option<Usd>,
}

/// One way to get a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) instance_type: String,
    /// A zone, region or subnet; `None` where the provider chooses.
    pub(crate) zone: Option<String>,
    pub(crate) market: Market,
    /// The price of an hour on demand, if it is known.
    pub(crate) price: Option<Usd>,
    /// The highest price of an hour on the spot market.
    pub(crate) max_price: Option<Usd>,
}

/// The inputs of a catalog: the built-in types, and the settings with their keys.
#[derive(Debug)]
pub(crate) struct CatalogSettings<'a> {
    pub(crate) known: &'static [KnownType],
    pub(crate) defaults: &'static [DefaultTypes],
    pub(crate) fleets: [(Fleet, &'static str, &'a FleetTypes); 3],
    /// Further instance types, and prices that replace the built-in ones.
    pub(crate) instance_types: (&'static str, &'a BTreeMap<String, InstanceTypeSettings>),
    /// The zones, regions or subnets of machines, in the order in which they are tried.
    pub(crate) zones: &'a [String],
}

/// The machine types of one provider.
#[derive(Clone, Debug)]
pub struct Catalog {
    types: BTreeMap<String, InstanceType>,
    /// In the order in which they are tried. No list is empty.
    sizes: BTreeMap<(Fleet, Arch, MachineSize), Vec<String>>,
    zones: Vec<String>,
}

impl Catalog {
    /// Merges the built-in types with the settings.
    ///
    /// # Errors
    /// [`SettingError`] for an unknown instance type, and for a type of another arch than its setting.
    pub(crate) fn new(settings: &CatalogSettings<'_>) -> Result<Self, SettingError> {
        let known = settings.known.iter().map(|(name, arch, price)| {
            ((*name).to_owned(), InstanceType { arch: *arch, price: Some(Usd(*price)) })
        });
        let mut types: BTreeMap<String, InstanceType> = known.collect();
        let (key, described) = settings.instance_types;
        for (name, description) in described {
            let known = types.get(name);
            let Some(arch) = description.arch.or(known.map(|known| known.arch)) else {
                let problem = format!("{name} needs `arch`, \"amd64\" or \"arm64\"");
                return Err(SettingError { key, problem });
            };
            let price = description.price.or(known.and_then(|known| known.price));
            types.insert(name.clone(), InstanceType { arch, price });
        }
        let mut sizes = BTreeMap::new();
        for (fleet, arch, names) in settings.defaults {
            for (size, name) in MachineSize::ALL.into_iter().zip(names) {
                sizes.insert((*fleet, *arch, size), vec![(*name).to_owned()]);
            }
        }
        let mut catalog = Self { types, sizes, zones: settings.zones.to_vec() };
        for (fleet, key, fleet_types) in settings.fleets {
            for arch in Arch::ALL {
                for (size, names) in fleet_types.of(arch) {
                    catalog
                        .check(arch, *size, names, settings)
                        .map_err(|problem| SettingError { key, problem })?;
                    catalog.sizes.insert((fleet, arch, *size), names.clone());
                }
            }
        }
        Ok(catalog)
    }

    fn check(
        &self,
        arch: Arch,
        size: MachineSize,
        names: &[String],
        settings: &CatalogSettings<'_>,
    ) -> Result<(), String> {
        if names.is_empty() {
            return Err(format!("{arch}.{size} is empty; name an instance type"));
        }
        for name in names {
            match self.types.get(name) {
                None => {
                    let table = settings.instance_types.0;
                    return Err(format!(
                        "{arch}.{size} names {name}, which this version does not know; if it is right, \
                         describe it: [{table}] \"{name}\" = {{ arch = \"{arch}\", price = … }}"
                    ));
                }
                Some(known) if known.arch != arch => {
                    return Err(format!("{arch}.{size} names {name}, which is {}", known.arch));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The candidates for `spec` in the order in which they are tried. There are none where the provider has no
    /// type of the arch.
    pub(crate) fn candidates(&self, spec: &MachineSpec) -> Vec<Candidate> {
        let markets: &[Market] = match spec.market {
            _ if spec.on_demand => &[Market::OnDemand],
            MarketPolicy::OnDemand => &[Market::OnDemand],
            MarketPolicy::Spot => &[Market::Spot],
            MarketPolicy::SpotFirst => &[Market::Spot, Market::OnDemand],
        };
        let types = self.sizes.get(&(spec.fleet, spec.arch, spec.size)).into_iter().flatten();
        let zones: Vec<Option<&String>> = match &self.zones[..] {
            [] => vec![None],
            zones => zones.iter().map(Some).collect(),
        };
        let mut candidates = Vec::new();
        for market in markets {
            for instance_type in types.clone() {
                let price = self.types.get(instance_type).and_then(|known| known.price);
                for zone in &zones {
                    candidates.push(Candidate {
                        instance_type: instance_type.clone(),
                        zone: zone.cloned(),
                        market: *market,
                        price,
                        max_price: spec.max_price.filter(|_| *market == Market::Spot),
                    });
                }
            }
        }
        candidates
    }

    /// Whether there is any type of `arch` for `fleet`.
    pub fn has(&self, fleet: Fleet, arch: Arch) -> bool {
        self.sizes.keys().any(|(of_fleet, of_arch, _)| (*of_fleet, *of_arch) == (fleet, arch))
    }

    /// The instance types of each fleet, arch and size, in the order in which they are tried.
    pub fn sizes(&self) -> impl Iterator<Item = (Fleet, Arch, MachineSize, &[String])> {
        self.sizes.iter().map(|((fleet, arch, size), names)| (*fleet, *arch, *size, &names[..]))
    }

    /// The zones, regions or subnets in the order in which they are tried. Where there are none, the provider
    /// chooses.
    pub fn zones(&self) -> &[String] {
        &self.zones
    }

    pub fn instance_type(&self, name: &str) -> Option<InstanceType> {
        self.types.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use Arch::{Amd64, Arm64};
    use MachineSize::{Large, Medium, Small, Xlarge};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::digitalocean::DigitalOceanSettings;
    use crate::fixtures::spec;
    use crate::{aws, digitalocean};

    fn builder(arch: Arch, size: MachineSize, market: MarketPolicy) -> MachineSpec {
        MachineSpec { market, ..spec(arch, size) }
    }

    fn aws_catalog(text: &str) -> Result<Catalog, String> {
        let settings: AwsSettings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.catalog().map_err(|error| error.to_string())
    }

    fn names(candidates: &[Candidate]) -> Vec<String> {
        let name = |candidate: &Candidate| {
            let zone = candidate.zone.as_deref().unwrap_or("any");
            format!("{} {zone} {}", candidate.instance_type, candidate.market)
        };
        candidates.iter().map(name).collect()
    }

    #[test]
    fn every_default_is_known_and_of_its_arch() {
        for (types, defaults) in
            [(aws::KNOWN, aws::DEFAULTS), (digitalocean::KNOWN, digitalocean::DEFAULTS)]
        {
            for (_, arch, names) in defaults {
                for name in names {
                    let known = types.iter().find(|(known, ..)| known == name);
                    assert_eq!(known.map(|(_, arch, _)| arch), Some(arch), "{name}");
                }
            }
        }
    }

    #[test]
    fn candidates_are_tried_by_market_then_type_then_zone() {
        let text = r#"
            subnets = ["subnet-a", "subnet-b"]
            builders.amd64.medium = ["c5.xlarge", "c6i.xlarge"]
        "#;
        let candidates =
            aws_catalog(text).unwrap().candidates(&builder(Amd64, Medium, MarketPolicy::SpotFirst));
        let expected = [
            "c5.xlarge subnet-a spot",
            "c5.xlarge subnet-b spot",
            "c6i.xlarge subnet-a spot",
            "c6i.xlarge subnet-b spot",
            "c5.xlarge subnet-a on-demand",
            "c5.xlarge subnet-b on-demand",
            "c6i.xlarge subnet-a on-demand",
            "c6i.xlarge subnet-b on-demand",
        ];
        assert_eq!(names(&candidates), expected);
        assert_eq!(candidates[0].price, Some(Usd(170_000)));
    }

    #[test]
    fn the_last_attempt_is_on_demand_without_a_highest_price() {
        let catalog = aws_catalog("").unwrap();
        let spot = MachineSpec {
            max_price: Some(Usd(50_000)),
            ..builder(Arm64, Large, MarketPolicy::Spot)
        };
        assert_eq!(names(&catalog.candidates(&spot)), ["c6g.2xlarge any spot"]);
        assert_eq!(catalog.candidates(&spot)[0].max_price, Some(Usd(50_000)));
        let last = MachineSpec { on_demand: true, ..spot };
        assert_eq!(names(&catalog.candidates(&last)), ["c6g.2xlarge any on-demand"]);
        assert_eq!(catalog.candidates(&last)[0].max_price, None);
    }

    #[test]
    fn the_error_names_an_unknown_type_and_one_of_another_arch_with_advice() {
        let error = aws_catalog(r#"builders.amd64.medium = ["c5.xlagre"]"#).unwrap_err();
        assert!(error.starts_with("aws.builders: amd64.medium names c5.xlagre"), "{error}");
        assert!(error.contains("[aws.instance-types]"), "{error}");
        let error = aws_catalog(r#"testers.amd64.small = ["c6g.xlarge"]"#).unwrap_err();
        assert_eq!(error, "aws.testers: amd64.small names c6g.xlarge, which is arm64");
        let error = aws_catalog(r#"builders.amd64.huge = ["c5.xlarge"]"#).unwrap_err();
        assert!(error.contains("unknown variant `huge`"), "{error}");
        let error = aws_catalog("builders.arm64.small = []").unwrap_err();
        assert!(error.contains("arm64.small is empty"), "{error}");
        let error = aws_catalog(r#"instance-types."c9.xlarge" = { price = 0.2 }"#).unwrap_err();
        assert!(error.contains("c9.xlarge needs `arch`"), "{error}");
    }

    #[test]
    fn the_settings_add_instance_types_and_change_prices() {
        let text = r#"
            builders.amd64.medium = ["c9.xlarge"]
            [instance-types]
            "c9.xlarge" = { arch = "amd64", price = 0.2 }
            "t3.small" = { price = 0.0228 }
        "#;
        let catalog = aws_catalog(text).unwrap();
        let on_demand = |size| builder(Amd64, size, MarketPolicy::OnDemand);
        assert_eq!(catalog.candidates(&on_demand(Medium))[0].price, Some(Usd(200_000)));
        assert_eq!(catalog.candidates(&on_demand(Small))[0].price, Some(Usd(22_800)));
    }

    #[test]
    fn digitalocean_has_no_arm64() {
        let catalog = DigitalOceanSettings::default().catalog().unwrap();
        assert_eq!(catalog.candidates(&builder(Arm64, Medium, MarketPolicy::OnDemand)), []);
        let amd64 = catalog.candidates(&builder(Amd64, Xlarge, MarketPolicy::OnDemand));
        assert_eq!(names(&amd64), ["c-16 any on-demand"]);
    }
}
