//! The `[previews]` table.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;
use stagely_provider::settings::{MarketPolicy, some_dollars};
use stagely_state::{PreviewLimits, ProviderName, Usd};

use super::ConfigError;
use super::fleets::{FleetConfig, some_provider};
use super::sizes::ByteSize;

/// The longest domain: a label of 63 characters and a dot go before it.
const DOMAIN_CHARS_MAX: usize = 253 - 64;

/// The `[previews]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PreviewConfig {
    /// The domain of previews: each has a name below it, such as `pr-7-app.preview.example.com` for
    /// `preview.example.com`. Default: previews have names below `localhost` alone.
    pub domain: Option<String>,
    /// The provider of preview machines. Default: the provider of builders.
    #[serde(deserialize_with = "some_provider")]
    pub provider: Option<Option<ProviderName>>,
    /// The provider of AMD64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub amd64: Option<Option<ProviderName>>,
    /// The provider of ARM64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub arm64: Option<Option<ProviderName>>,
    /// The pricing: `on-demand`, `spot` or `spot-first`. The data of a preview is archived when the cloud takes its spot
    /// machine back, and it moves to another machine. Default: `spot-first`.
    pub market: MarketPolicy,
    /// The maximum price of a spot machine for an hour, in US dollars. Default: the on-demand price.
    #[serde(deserialize_with = "some_dollars")]
    pub max_price: Option<Usd>,
    /// The most launched preview machines at once, over all projects. The preview without visits for the longest time
    /// sleeps for a new one; if none may sleep, the new one waits. Default: 20.
    pub max_concurrent: NonZeroU32,
    /// The same for the previews of one project that have a machine. Default: 5.
    pub max_per_project: NonZeroU32,
    /// The most data of a preview's volumes that is archived when it sleeps. Default: 2GiB.
    pub archive_max: ByteSize,
    /// The time limit of archiving a preview. Default: 15m.
    #[serde(with = "humantime_serde")]
    pub archive_limit: Duration,
    /// The longest life of a preview machine. The preview sleeps before its end. Default: 31days.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Whether compose files may ask for access to the host where the machine is a virtual machine of the preview alone.
    /// Default: false.
    pub allow_privileged: bool,
}

impl Default for PreviewConfig {
    fn default() -> Self {
        let limits = PreviewLimits::default();
        Self {
            domain: None,
            provider: None,
            amd64: None,
            arm64: None,
            market: MarketPolicy::SpotFirst,
            max_price: None,
            max_concurrent: NonZeroU32::new(20).expect("20 is not zero"),
            max_per_project: NonZeroU32::new(5).expect("5 is not zero"),
            archive_max: ByteSize(2 << 30),
            archive_limit: limits.archive,
            lease: limits.lease,
            allow_privileged: false,
        }
    }
}

impl PreviewConfig {
    /// The limits of [`state`](stagely_state).
    pub(super) const fn limits(&self, give_up_after: Duration) -> PreviewLimits {
        PreviewLimits {
            max_concurrent: self.max_concurrent.get(),
            max_of_project: self.max_per_project.get(),
            lease: self.lease,
            archive: self.archive_limit,
            reconnect: give_up_after,
        }
    }

    /// The providers and the pricing of preview machines.
    pub fn fleet(&self) -> FleetConfig {
        FleetConfig {
            provider: self.provider,
            amd64: self.amd64,
            arm64: self.arm64,
            market: self.market,
            max_price: self.max_price,
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, problem: &str| Err(ConfigError::Value { key, problem: problem.to_owned() });
        if self.archive_max == ByteSize(0) {
            return wrong(
                "previews.archive-max",
                "must be more than 0; previews that sleep would lose their data",
            );
        }
        if self.archive_limit.is_zero() {
            return wrong("previews.archive-limit", "must be more than 0");
        }
        if self.lease <= self.archive_limit {
            return wrong(
                "previews.lease",
                "must be longer than previews.archive-limit: a preview is archived before its machine ends",
            );
        }
        let Some(domain) = &self.domain else { return Ok(()) };
        check_domain(domain).map_err(|problem| ConfigError::Value {
            key: "previews.domain",
            problem: format!("{domain:?} {problem}"),
        })
    }
}

/// Returns what is wrong with a domain, as words that follow it.
fn check_domain(domain: &str) -> Result<(), String> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !domain.split('.').all(is_label) {
        return Err("is not a domain in lower case, such as preview.example.com; leave out scheme, port and \
                    asterisk"
            .to_owned());
    }
    if domain.len() > DOMAIN_CHARS_MAX {
        return Err(format!("is longer than {DOMAIN_CHARS_MAX} characters"));
    }
    if domain.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err("is an IP address, below which there are no names".to_owned());
    }
    Ok(())
}
