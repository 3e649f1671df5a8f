//! What `stagely.toml` says of fleets and of the providers that launch their machines.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use serde::{Deserialize, Deserializer};
use stagely_agent::protocol::Arch;
use url::Url;

use super::ConfigError;
use super::addresses::check_cloud_url;
use crate::core::state::{Fleet, MachineSize, ProviderName, Usd};
use crate::provider::catalog::{Catalog, CatalogConfig};

/// Which market machines are bought on. The last attempt of a job is always on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarketPolicy {
    /// On demand alone.
    #[default]
    OnDemand,
    /// Spot alone: where there is none, another attempt follows.
    Spot,
    /// Spot, and on demand at once where there is none.
    SpotFirst,
}

/// The `[previews]` and `[testers]` tables, and what `[builders]` says of the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FleetConfig {
    /// Who launches machines of this fleet. Default: who launches builders.
    #[serde(deserialize_with = "some_provider")]
    pub provider: Option<Option<ProviderName>>,
    /// Who launches its AMD64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub amd64: Option<Option<ProviderName>>,
    /// Who launches its ARM64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub arm64: Option<Option<ProviderName>>,
    /// `on-demand`, `spot` or `spot-first`. Default: `on-demand`.
    pub market: MarketPolicy,
    /// The most that a spot machine may cost in an hour, in US dollars. Default: the price on demand.
    #[serde(deserialize_with = "some_dollars")]
    pub max_price: Option<Usd>,
}

impl FleetConfig {
    /// Who launches its machines of `arch`, if anybody does.
    pub fn provider_of(&self, arch: Arch) -> Option<ProviderName> {
        let of_arch = match arch {
            Arch::Amd64 => self.amd64,
            Arch::Arm64 => self.arm64,
        };
        of_arch.or(self.provider).flatten()
    }

    /// With the providers of `other` where it names none itself.
    pub(super) fn or(&self, other: &Self) -> Self {
        if self.provider.is_some() {
            return self.clone();
        }
        let (amd64, arm64) = (self.amd64.or(other.amd64), self.arm64.or(other.arm64));
        Self { provider: other.provider, amd64, arm64, ..self.clone() }
    }
}

/// Reads the name of a provider, or `none`.
pub(super) fn provider<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<ProviderName>, D::Error> {
    let text = String::deserialize(from)?;
    if text == "none" {
        return Ok(None);
    }
    ProviderName::from_str(&text).map(Some).map_err(serde::de::Error::custom)
}

/// As [`provider`], for a setting that may be absent.
#[expect(clippy::option_option, reason = "absent, `none`, and a name are three things")]
pub(super) fn some_provider<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<ProviderName>>, D::Error> {
    provider(from).map(Some)
}

/// Reads an amount of US dollars.
pub(super) fn dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Usd, D::Error> {
    let amount = f64::deserialize(from)?;
    if !(0.0..=1_000_000.0).contains(&amount) {
        return Err(serde::de::Error::custom("must be an amount of US dollars, such as 0.17"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(Usd((amount * 1e6).round() as u64))
}

/// As [`dollars`], for a setting that may be absent.
pub(super) fn some_dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Usd>, D::Error> {
    dollars(from).map(Some)
}

/// What the instance types of each size are, the best first: `[aws.builders.amd64]`, `medium = ["c5.xlarge"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FleetTypes {
    /// Of AMD64 machines. Default: of each size what the catalog says.
    pub amd64: BTreeMap<MachineSize, Vec<String>>,
    /// Of ARM64 machines. Default: of each size what the catalog says.
    pub arm64: BTreeMap<MachineSize, Vec<String>>,
}

impl FleetTypes {
    /// Of one arch.
    pub const fn of(&self, arch: Arch) -> &BTreeMap<MachineSize, Vec<String>> {
        match arch {
            Arch::Amd64 => &self.amd64,
            Arch::Arm64 => &self.arm64,
        }
    }
}

/// One of `[aws.instance-types]`: an instance type that the catalog does not know, or another price of one
/// that it does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceTypeConfig {
    /// Its processor. Default: what the catalog says.
    #[serde(default)]
    pub arch: Option<Arch>,
    /// What an hour costs on demand, in US dollars. Default: what the catalog says.
    #[serde(default, deserialize_with = "some_dollars")]
    pub price: Option<Usd>,
}

/// What a machine boots from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// A golden image, made by `packer/`: all is there.
    #[default]
    Golden,
    /// A stock image of Debian or Ubuntu: the machine installs Docker and the agent when it boots.
    Stock,
}

/// The `[aws]` table. Credentials are found as by the AWS command line: environment, `~/.aws`, SSO, or the
/// role of the machine that core runs on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AwsConfig {
    /// The region. Default: `AWS_REGION`, or that of the profile.
    pub region: Option<String>,
    /// The profile of `~/.aws`. Default: `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// The address of EC2's API. Default: that of the region.
    pub endpoint: Option<Url>,
    /// The subnets that machines are put in, tried in this order. Default: those of the default VPC.
    pub subnets: Vec<String>,
    /// The availability zones of the default VPC that machines are put in, tried in this order, where no
    /// subnets are named. Default: EC2 chooses.
    pub zones: Vec<String>,
    /// The security groups of all machines, by id. They need no way in. Default: the VPC's own.
    pub security_groups: Vec<String>,
    /// The instance profile of all machines: what runs on them may do what it may. Default: none.
    pub instance_profile: Option<String>,
    /// The image of AMD64 machines. Default: the newest golden image of this account.
    pub image_amd64: Option<String>,
    /// The image of ARM64 machines. Default: the newest golden image of this account.
    pub image_arm64: Option<String>,
    /// Whether the images are `golden` or `stock`. Default: `golden`.
    pub image_kind: ImageKind,
    /// The size of the root volume, gp3, in GiB. Default: 50.
    pub volume_gib: NonZeroU32,
    /// The instance types of builders.
    pub builders: FleetTypes,
    /// The instance types of previews.
    pub previews: FleetTypes,
    /// The instance types of testers.
    pub testers: FleetTypes,
    /// Instance types that the catalog does not know, and prices.
    pub instance_types: BTreeMap<String, InstanceTypeConfig>,
}

impl Default for AwsConfig {
    fn default() -> Self {
        Self {
            region: None,
            profile: None,
            endpoint: None,
            subnets: Vec::new(),
            zones: Vec::new(),
            security_groups: Vec::new(),
            instance_profile: None,
            image_amd64: None,
            image_arm64: None,
            image_kind: ImageKind::Golden,
            volume_gib: NonZeroU32::new(50).expect("50 is not zero"),
            builders: FleetTypes::default(),
            previews: FleetTypes::default(),
            testers: FleetTypes::default(),
            instance_types: BTreeMap::new(),
        }
    }
}

/// The largest gp3 volume, in GiB. Source: Amazon EBS user guide, "General Purpose SSD volumes".
const VOLUME_GIB_MAX: u32 = 65_536;

impl AwsConfig {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(endpoint) = &self.endpoint {
            check_cloud_url("aws.endpoint", endpoint)?;
        }
        if self.volume_gib.get() > VOLUME_GIB_MAX {
            let problem = format!("must be at most {VOLUME_GIB_MAX}, the largest gp3 volume");
            return Err(ConfigError::Value { key: "aws.volume-gib", problem });
        }
        self.catalog().map(drop)
    }

    /// Where machines are put, in the order in which it is tried: subnets or zones. Empty: EC2 chooses.
    pub fn places(&self) -> &[String] {
        if self.subnets.is_empty() { &self.zones } else { &self.subnets }
    }

    /// What can be launched.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn catalog(&self) -> Result<Catalog, ConfigError> {
        Catalog::new(&CatalogConfig {
            provider: ProviderName::Aws,
            fleets: [
                (Fleet::Builder, "aws.builders", &self.builders),
                (Fleet::Preview, "aws.previews", &self.previews),
                (Fleet::Tester, "aws.testers", &self.testers),
            ],
            instance_types: ("aws.instance-types", &self.instance_types),
            zones: self.places(),
        })
    }
}

/// The `[digitalocean]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DigitalOceanConfig {
    /// The API. Default: `https://api.digitalocean.com`.
    pub api_url: Url,
    /// A file that holds a token of the API, read whenever it is needed. Default:
    /// `DIGITALOCEAN_TOKEN` of the environment.
    pub token_file: Option<PathBuf>,
    /// The regions that machines are put in, tried in this order. Default: none; one is needed.
    pub regions: Vec<String>,
    /// The VPC that machines are put in. Default: the region's own.
    pub vpc: Option<String>,
    /// SSH keys of the account that may log in to machines as root, by id or fingerprint. Without any
    /// `DigitalOcean` makes a password for each machine and mails it to the account's owner. Default: none.
    pub ssh_keys: Vec<String>,
    /// The image of AMD64 machines: a snapshot's id or name, or the slug of a stock image. Default: the newest
    /// golden snapshot.
    pub image_amd64: Option<String>,
    /// The image of ARM64 machines, should `DigitalOcean` have any. Default: the newest golden snapshot.
    pub image_arm64: Option<String>,
    /// Whether the images are `golden` or `stock`. Default: `golden`.
    pub image_kind: ImageKind,
    /// The instance types (sizes, as `DigitalOcean` has it) of builders.
    pub builders: FleetTypes,
    /// The instance types of previews.
    pub previews: FleetTypes,
    /// The instance types of testers.
    pub testers: FleetTypes,
    /// Instance types that the catalog does not know, and prices.
    pub instance_types: BTreeMap<String, InstanceTypeConfig>,
}

impl Default for DigitalOceanConfig {
    fn default() -> Self {
        Self {
            api_url: Url::parse("https://api.digitalocean.com").expect("it is a URL"),
            token_file: None,
            regions: Vec::new(),
            vpc: None,
            ssh_keys: Vec::new(),
            image_amd64: None,
            image_arm64: None,
            image_kind: ImageKind::Golden,
            builders: FleetTypes::default(),
            previews: FleetTypes::default(),
            testers: FleetTypes::default(),
            instance_types: BTreeMap::new(),
        }
    }
}

impl DigitalOceanConfig {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_cloud_url("digitalocean.api-url", &self.api_url)?;
        self.catalog().map(drop)
    }

    /// What can be launched.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn catalog(&self) -> Result<Catalog, ConfigError> {
        Catalog::new(&CatalogConfig {
            provider: ProviderName::DigitalOcean,
            fleets: [
                (Fleet::Builder, "digitalocean.builders", &self.builders),
                (Fleet::Preview, "digitalocean.previews", &self.previews),
                (Fleet::Tester, "digitalocean.testers", &self.testers),
            ],
            instance_types: ("digitalocean.instance-types", &self.instance_types),
            zones: &self.regions,
        })
    }
}

/// The `[qemu]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QemuConfig {
    /// The folder of the AMD64 golden image, as `scripts/golden-image` makes it. Default: none.
    pub image_amd64: Option<PathBuf>,
    /// The folder of the ARM64 golden image. Default: none.
    pub image_arm64: Option<PathBuf>,
    /// `kvm` or `tcg`, which is emulation. Default: `kvm`.
    pub accelerator: Accelerator,
    /// Holds what guests write to their disks. Default: `machines` in core's `data-dir`.
    pub folder: Option<PathBuf>,
}

impl QemuConfig {
    /// The folder of the golden image of `arch`, if one is named.
    pub fn image(&self, arch: Arch) -> Option<&Path> {
        match arch {
            Arch::Amd64 => self.image_amd64.as_deref(),
            Arch::Arm64 => self.image_arm64.as_deref(),
        }
    }
}

/// How QEMU runs a guest's processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// On the host's own.
    #[default]
    Kvm,
    /// By emulation: it runs anywhere, five to twenty times slower.
    Tcg,
}
