//! The settings that providers share: markets, instance types, images, and the checks of their values.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use stagely_protocol::Arch;
use stagely_state::{MachineSize, Usd};
use thiserror::Error;
use url::{Host, Url};

/// A setting has a value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: {problem}")]
pub struct SettingError {
    /// The setting, as `stagely.toml` spells it: `aws.volume-gib`.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub problem: String,
}

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
pub struct InstanceTypeSettings {
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

/// Checks a URL that names a server and holds no secret.
///
/// # Errors
/// [`SettingError`], naming `key`.
pub fn check_url(key: &'static str, url: &Url) -> Result<(), SettingError> {
    let has_more = url.query().is_some() || url.fragment().is_some();
    let is_secret = url.password().is_some() || !url.username().is_empty();
    if matches!(url.scheme(), "http" | "https") && !has_more && !is_secret {
        return Ok(());
    }
    let problem = "must be https://HOST/… or http://HOST/…, and nothing more".to_owned();
    Err(SettingError { key, problem })
}

/// As [`check_url`], for a server that is sent secrets: without TLS only on this host.
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

/// Whether `host` is loopback, or no address at all, such as `0.0.0.0`: to another machine it is that machine.
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
