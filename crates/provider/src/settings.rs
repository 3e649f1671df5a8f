//! The settings that providers share: markets, instance types and images, and the checks of values.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use stagely_protocol::Arch;
use stagely_state::{MachineSize, Usd};
use thiserror::Error;
use url::{Host, Url};

/// A setting has an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: {problem}")]
pub struct SettingError {
    /// The name in `stagely.toml`, such as `aws.volume-gib`.
    pub key: &'static str,
    /// What is wrong, with advice.
    pub problem: String,
}

/// The market on which machines are bought. The last attempt of a job is always on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarketPolicy {
    /// Only on demand.
    #[default]
    OnDemand,
    /// Only spot. Where there is no capacity, another attempt follows.
    Spot,
    /// Spot, and at once on demand where there is no spot capacity.
    SpotFirst,
}

impl MarketPolicy {
    /// Whether machines may be bought on the spot market.
    pub const fn may_be_spot(self) -> bool {
        match self {
            Self::OnDemand => false,
            Self::Spot | Self::SpotFirst => true,
        }
    }
}

/// The instance types of each size in the order in which they are tried: `[aws.builders.amd64]`,
/// `medium = ["c5.xlarge"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FleetTypes {
    /// Of AMD64 machines. Default: those of the catalog.
    pub amd64: BTreeMap<MachineSize, Vec<String>>,
    /// Of ARM64 machines. Default: those of the catalog.
    pub arm64: BTreeMap<MachineSize, Vec<String>>,
}

impl FleetTypes {
    pub const fn of(&self, arch: Arch) -> &BTreeMap<MachineSize, Vec<String>> {
        match arch {
            Arch::Amd64 => &self.amd64,
            Arch::Arm64 => &self.arm64,
        }
    }
}

/// An entry of `[aws.instance-types]`: an instance type that the catalog does not know, or another price of a type
/// that it knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceTypeSettings {
    /// Default: the arch in the catalog.
    #[serde(default)]
    pub arch: Option<Arch>,
    /// The price of an hour on demand, in US dollars. Default: the price in the catalog.
    #[serde(default, deserialize_with = "some_dollars")]
    pub price: Option<Usd>,
}

/// The kind of image that a machine boots from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// A golden image, made by `packer/`. It holds Docker and the agent.
    #[default]
    Golden,
    /// A stock image of Debian or Ubuntu. The machine installs Docker and the agent when it boots.
    Stock,
}

/// Reads an amount of US dollars.
///
/// # Errors
/// An amount below 0 or above 1,000,000.
pub fn dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Usd, D::Error> {
    let amount = f64::deserialize(from)?;
    if !(0.0..=1_000_000.0).contains(&amount) {
        return Err(serde::de::Error::custom("must be an amount of US dollars, such as 0.17"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(Usd((amount * 1e6).round() as u64))
}

/// As [`dollars`], for a setting that may be absent.
///
/// # Errors
/// As those of [`dollars`].
pub fn some_dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Usd>, D::Error> {
    dollars(from).map(Some)
}

/// Checks a URL of a server that holds no secret.
///
/// # Errors
/// [`SettingError`], naming `key`.
pub fn check_url(key: &'static str, url: &Url) -> Result<(), SettingError> {
    let is_longer = url.query().is_some() || url.fragment().is_some();
    let is_secret = url.password().is_some() || !url.username().is_empty();
    if matches!(url.scheme(), "http" | "https") && !is_longer && !is_secret {
        return Ok(());
    }
    let problem = "must be https://HOST/… or http://HOST/…, and nothing more".to_owned();
    Err(SettingError { key, problem })
}

/// As [`check_url`], for a server that gets secrets. It needs TLS unless it is on this host.
///
/// # Errors
/// [`SettingError`], naming `key`.
pub fn check_cloud_url(key: &'static str, url: &Url) -> Result<(), SettingError> {
    check_url(key, url)?;
    if url.scheme() == "https" || is_this_host(url.host()) {
        return Ok(());
    }
    let problem = "must be https://HOST/…, since credentials are sent there".to_owned();
    Err(SettingError { key, problem })
}

/// Whether `host` is a loopback or unspecified address, such as `0.0.0.0`. On another machine it means that
/// machine.
pub fn is_this_host<S: AsRef<str>>(host: Option<Host<S>>) -> bool {
    match host {
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Domain(name)) => {
            let name = name.as_ref();
            name == "localhost" || name.ends_with(".localhost")
        }
        None => false,
    }
}
