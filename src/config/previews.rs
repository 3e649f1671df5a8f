//! The `[previews]` table.

use serde::Deserialize;
use stagely_provider::settings::{MarketPolicy, some_dollars};
use stagely_state::{ProviderName, Usd};

use super::ConfigError;
use super::fleets::{FleetConfig, some_provider};

/// The longest domain: a label of 63 characters and a dot go before it.
const DOMAIN_CHARS_MAX: usize = 253 - 64;

/// The `[previews]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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
    /// The pricing: `on-demand`, `spot` or `spot-first`. Default: `on-demand`.
    pub market: MarketPolicy,
    /// The maximum price of a spot machine for an hour, in US dollars. Default: the on-demand price.
    #[serde(deserialize_with = "some_dollars")]
    pub max_price: Option<Usd>,
}

impl PreviewConfig {
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
