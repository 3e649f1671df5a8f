//! Which instance types stand for which size of machine, what they cost, and in which order they are tried.

use std::collections::BTreeMap;

use stagely_protocol::Arch;
use stagely_state::{Fleet, MachineSize, Market, ProviderName, Usd};

use super::{Candidate, Want};
use crate::settings::FleetTypes;
use crate::settings::InstanceTypeSettings;
use crate::settings::MarketPolicy;
use crate::settings::SettingError;
use Arch::{Amd64, Arm64};

/// An instance type that we know: processor, and US dollars for an hour on demand, in millionths.
type Known = (&'static str, Arch, u64);

/// Prices of us-east-1, Linux, November 2026. Source: Amazon EC2 on-demand pricing.
const AWS_TYPES: &[Known] = &[
    ("t3.small", Amd64, 20_800),
    ("t3.medium", Amd64, 41_600),
    ("t3.large", Amd64, 83_200),
    ("t3.xlarge", Amd64, 166_400),
    ("t3.2xlarge", Amd64, 332_800),
    ("c5.xlarge", Amd64, 170_000),
    ("c5.2xlarge", Amd64, 340_000),
    ("c5.4xlarge", Amd64, 680_000),
    ("c5a.xlarge", Amd64, 154_000),
    ("c5a.2xlarge", Amd64, 308_000),
    ("c5a.4xlarge", Amd64, 616_000),
    ("c6i.xlarge", Amd64, 170_000),
    ("c6i.2xlarge", Amd64, 340_000),
    ("c6i.4xlarge", Amd64, 680_000),
    ("c6a.xlarge", Amd64, 153_000),
    ("c6a.2xlarge", Amd64, 306_000),
    ("c6a.4xlarge", Amd64, 612_000),
    ("c7i.xlarge", Amd64, 178_500),
    ("c7i.2xlarge", Amd64, 357_000),
    ("c7i.4xlarge", Amd64, 714_000),
    ("r5.large", Amd64, 126_000),
    ("r5.xlarge", Amd64, 252_000),
    ("r5.2xlarge", Amd64, 504_000),
    ("r5.4xlarge", Amd64, 1_008_000),
    ("t4g.small", Arm64, 16_800),
    ("t4g.medium", Arm64, 33_600),
    ("t4g.large", Arm64, 67_200),
    ("t4g.xlarge", Arm64, 134_400),
    ("t4g.2xlarge", Arm64, 268_800),
    ("c6g.xlarge", Arm64, 136_000),
    ("c6g.2xlarge", Arm64, 272_000),
    ("c6g.4xlarge", Arm64, 544_000),
    ("c7g.xlarge", Arm64, 145_000),
    ("c7g.2xlarge", Arm64, 290_000),
    ("c7g.4xlarge", Arm64, 580_000),
    ("r6g.large", Arm64, 100_800),
    ("r6g.xlarge", Arm64, 201_600),
    ("r6g.2xlarge", Arm64, 403_200),
    ("r6g.4xlarge", Arm64, 806_400),
];

/// Source: the price list of `DigitalOcean`, November 2026. Those with 16 GiB a processor pair are memory-optimized.
const DIGITALOCEAN_TYPES: &[Known] = &[
    ("s-2vcpu-4gb", Amd64, 35_710),
    ("s-4vcpu-8gb", Amd64, 71_430),
    ("s-8vcpu-16gb", Amd64, 142_860),
    ("c-4", Amd64, 125_000),
    ("c-8", Amd64, 250_000),
    ("c-16", Amd64, 500_000),
    ("c2-4vcpu-8gb", Amd64, 139_880),
    ("m-2vcpu-16gb", Amd64, 125_000),
    ("m-4vcpu-32gb", Amd64, 250_000),
    ("m-8vcpu-64gb", Amd64, 500_000),
    ("m-16vcpu-128gb", Amd64, 1_000_000),
];

/// The instance types of small, medium, large and xlarge.
type Defaults = (Fleet, Arch, [&'static str; 4]);

const AWS_DEFAULTS: &[Defaults] = &[
    (Fleet::Builder, Amd64, ["t3.small", "c5.xlarge", "c5.2xlarge", "c5.4xlarge"]),
    (Fleet::Builder, Arm64, ["t4g.small", "c6g.xlarge", "c6g.2xlarge", "c6g.4xlarge"]),
    (Fleet::Preview, Amd64, ["t3.small", "t3.medium", "t3.large", "t3.xlarge"]),
    (Fleet::Preview, Arm64, ["t4g.small", "t4g.medium", "t4g.large", "t4g.xlarge"]),
    (Fleet::Tester, Amd64, ["r5.large", "r5.xlarge", "r5.2xlarge", "r5.4xlarge"]),
    (Fleet::Tester, Arm64, ["r6g.large", "r6g.xlarge", "r6g.2xlarge", "r6g.4xlarge"]),
];

const DIGITALOCEAN_DEFAULTS: &[Defaults] = &[
    (Fleet::Builder, Amd64, ["s-2vcpu-4gb", "c-4", "c-8", "c-16"]),
    (Fleet::Preview, Amd64, ["s-2vcpu-4gb", "s-2vcpu-4gb", "s-4vcpu-8gb", "s-8vcpu-16gb"]),
    (Fleet::Tester, Amd64, ["m-2vcpu-16gb", "m-4vcpu-32gb", "m-8vcpu-64gb", "m-16vcpu-128gb"]),
];

/// An instance type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceType {
    /// Its processor.
    pub arch: Arch,
    /// What an hour costs on demand; `None` where nobody has said.
    pub price: Option<Usd>,
}

/// What the configuration says about a provider's machines, and the names of these settings.
#[derive(Debug)]
pub struct CatalogSettings<'a> {
    /// The provider.
    pub provider: ProviderName,
    /// The instance types of each fleet.
    pub fleets: [(Fleet, &'static str, &'a FleetTypes); 3],
    /// Instance types that we do not know, and prices.
    pub instance_types: (&'static str, &'a BTreeMap<String, InstanceTypeSettings>),
    /// Where machines are put.
    pub zones: &'a [String],
}

/// What can be launched at one provider.
#[derive(Clone, Debug)]
pub struct Catalog {
    types: BTreeMap<String, InstanceType>,
    /// The best first; none is empty.
    sizes: BTreeMap<(Fleet, Arch, MachineSize), Vec<String>>,
    zones: Vec<String>,
}

impl Catalog {
    /// Joins what we know with what the configuration says.
    ///
    /// # Errors
    /// [`SettingError`] for an instance type that nobody knows, or of another arch than it is named for.
    pub fn new(config: &CatalogSettings<'_>) -> Result<Self, SettingError> {
        let (known, defaults) = match config.provider {
            ProviderName::Aws => (AWS_TYPES, AWS_DEFAULTS),
            ProviderName::DigitalOcean => (DIGITALOCEAN_TYPES, DIGITALOCEAN_DEFAULTS),
            ProviderName::Local | ProviderName::Qemu => (&[][..], &[][..]),
        };
        let known = known.iter().map(|(name, arch, price)| {
            ((*name).to_owned(), InstanceType { arch: *arch, price: Some(Usd(*price)) })
        });
        let mut types: BTreeMap<String, InstanceType> = known.collect();
        let (key, named) = config.instance_types;
        for (name, settings) in named {
            let known = types.get(name);
            let Some(arch) = settings.arch.or(known.map(|known| known.arch)) else {
                let problem = format!("{name} needs `arch`, \"amd64\" or \"arm64\"");
                return Err(SettingError { key, problem });
            };
            let price = settings.price.or(known.and_then(|known| known.price));
            types.insert(name.clone(), InstanceType { arch, price });
        }
        let mut sizes = BTreeMap::new();
        for (fleet, arch, names) in defaults {
            for (size, name) in MachineSize::ALL.into_iter().zip(names) {
                sizes.insert((*fleet, *arch, size), vec![(*name).to_owned()]);
            }
        }
        let mut catalog = Self { types, sizes, zones: config.zones.to_vec() };
        for (fleet, key, settings) in config.fleets {
            for arch in Arch::ALL {
                for (size, names) in settings.of(arch) {
                    catalog
                        .check(arch, *size, names, config)
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
        config: &CatalogSettings<'_>,
    ) -> Result<(), String> {
        if names.is_empty() {
            return Err(format!("{arch}.{size} is empty; name an instance type"));
        }
        for name in names {
            match self.types.get(name) {
                None => {
                    let table = config.instance_types.0;
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

    /// What to try, one after the other; empty where there is nothing of the arch.
    pub fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let markets: &[Market] = match want.market {
            _ if want.on_demand => &[Market::OnDemand],
            MarketPolicy::OnDemand => &[Market::OnDemand],
            MarketPolicy::Spot => &[Market::Spot],
            MarketPolicy::SpotFirst => &[Market::Spot, Market::OnDemand],
        };
        let types = self.sizes.get(&(want.fleet, want.arch, want.size)).into_iter().flatten();
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
                        max_price: want.max_price.filter(|_| *market == Market::Spot),
                    });
                }
            }
        }
        candidates
    }

    /// Whether there is any machine of `arch` for `fleet`.
    pub fn has(&self, fleet: Fleet, arch: Arch) -> bool {
        self.sizes.keys().any(|(of, its, _)| (*of, *its) == (fleet, arch))
    }

    /// The instance types of each fleet, arch and size.
    pub fn sizes(&self) -> impl Iterator<Item = (Fleet, Arch, MachineSize, &[String])> {
        self.sizes.iter().map(|((fleet, arch, size), names)| (*fleet, *arch, *size, &names[..]))
    }

    /// An instance type, if it is known.
    pub fn instance_type(&self, name: &str) -> Option<InstanceType> {
        self.types.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use MachineSize::{Large, Medium, Small, Xlarge};

    use super::*;
    use crate::aws::AwsSettings;
    use crate::digitalocean::DigitalOceanSettings;

    fn want(arch: Arch, size: MachineSize, market: MarketPolicy) -> Want {
        Want { fleet: Fleet::Builder, arch, size, market, on_demand: false, max_price: None }
    }

    fn aws(text: &str) -> Result<Catalog, String> {
        let config: AwsSettings = toml::from_str(text).map_err(|error| error.to_string())?;
        config.catalog().map_err(|error| error.to_string())
    }

    fn names(candidates: &[Candidate]) -> Vec<String> {
        let name = |it: &Candidate| {
            let zone = it.zone.as_deref().unwrap_or("any");
            format!("{} {zone} {}", it.instance_type, it.market)
        };
        candidates.iter().map(name).collect()
    }

    #[test]
    fn every_default_is_known_and_of_its_arch() {
        for (types, defaults) in
            [(AWS_TYPES, AWS_DEFAULTS), (DIGITALOCEAN_TYPES, DIGITALOCEAN_DEFAULTS)]
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
            aws(text).unwrap().candidates(&want(Amd64, Medium, MarketPolicy::SpotFirst));
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
    fn the_last_attempt_is_on_demand_and_has_no_highest_price() {
        let catalog = aws("").unwrap();
        let spot = Want { max_price: Some(Usd(50_000)), ..want(Arm64, Large, MarketPolicy::Spot) };
        assert_eq!(names(&catalog.candidates(&spot)), ["c6g.2xlarge any spot"]);
        assert_eq!(catalog.candidates(&spot)[0].max_price, Some(Usd(50_000)));
        let last = Want { on_demand: true, ..spot };
        assert_eq!(names(&catalog.candidates(&last)), ["c6g.2xlarge any on-demand"]);
        assert_eq!(catalog.candidates(&last)[0].max_price, None);
    }

    #[test]
    fn what_nobody_knows_or_has_another_arch_is_named_with_what_to_do() {
        let error = aws(r#"builders.amd64.medium = ["c5.xlagre"]"#).unwrap_err();
        assert!(error.starts_with("aws.builders: amd64.medium names c5.xlagre"), "{error}");
        assert!(error.contains("[aws.instance-types]"), "{error}");
        let error = aws(r#"testers.amd64.small = ["c6g.xlarge"]"#).unwrap_err();
        assert_eq!(error, "aws.testers: amd64.small names c6g.xlarge, which is arm64");
        let error = aws(r#"builders.amd64.huge = ["c5.xlarge"]"#).unwrap_err();
        assert!(error.contains("unknown variant `huge`"), "{error}");
        let error = aws("builders.arm64.small = []").unwrap_err();
        assert!(error.contains("arm64.small is empty"), "{error}");
        let error = aws(r#"instance-types."c9.xlarge" = { price = 0.2 }"#).unwrap_err();
        assert!(error.contains("c9.xlarge needs `arch`"), "{error}");
    }

    #[test]
    fn an_instance_type_of_the_configuration_is_as_good_as_one_that_is_known() {
        let text = r#"
            builders.amd64.medium = ["c9.xlarge"]
            [instance-types]
            "c9.xlarge" = { arch = "amd64", price = 0.2 }
            "t3.small" = { price = 0.0228 }
        "#;
        let catalog = aws(text).unwrap();
        let on_demand = |size| want(Amd64, size, MarketPolicy::OnDemand);
        assert_eq!(catalog.candidates(&on_demand(Medium))[0].price, Some(Usd(200_000)));
        assert_eq!(catalog.candidates(&on_demand(Small))[0].price, Some(Usd(22_800)));
    }

    #[test]
    fn digitalocean_has_no_arm64() {
        let catalog = DigitalOceanSettings::default().catalog().unwrap();
        assert_eq!(catalog.candidates(&want(Arm64, Medium, MarketPolicy::OnDemand)), []);
        let amd64 = catalog.candidates(&want(Amd64, Xlarge, MarketPolicy::OnDemand));
        assert_eq!(names(&amd64), ["c-16 any on-demand"]);
    }
}
