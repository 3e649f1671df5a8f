//! The providers and the pricing of a fleet, and the `[testers]` table.

use std::num::NonZeroU32;
use std::str::FromStr as _;

use serde::{Deserialize, Deserializer};
use stagely_protocol::Arch;
use stagely_provider::settings::{MarketPolicy, some_dollars};
use stagely_state::{ProviderName, Usd};

/// The `[testers]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TesterConfig {
    /// The provider of testers. Default: the provider of builders.
    #[serde(deserialize_with = "some_provider")]
    pub provider: Option<Option<ProviderName>>,
    /// The provider of AMD64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub amd64: Option<Option<ProviderName>>,
    /// The provider of ARM64 machines. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub arm64: Option<Option<ProviderName>>,
    /// The pricing: `on-demand`, `spot` or `spot-first`. A test whose spot machine is taken back begins again on another
    /// one. Default: `on-demand`.
    pub market: MarketPolicy,
    /// The maximum price of a spot machine for an hour, in US dollars. Default: the on-demand price.
    #[serde(deserialize_with = "some_dollars")]
    pub max_price: Option<Usd>,
    /// The most launched testers at once, over all projects; further tests stay queued. Default: 20.
    pub max_concurrent: NonZeroU32,
}

impl Default for TesterConfig {
    fn default() -> Self {
        let FleetConfig { provider, amd64, arm64, market, max_price } = FleetConfig::default();
        let max_concurrent = NonZeroU32::new(20).expect("20 is not zero");
        Self { provider, amd64, arm64, market, max_price, max_concurrent }
    }
}

impl TesterConfig {
    /// The providers and the pricing of testers.
    pub fn fleet(&self) -> FleetConfig {
        FleetConfig {
            provider: self.provider,
            amd64: self.amd64,
            arm64: self.arm64,
            market: self.market,
            max_price: self.max_price,
        }
    }
}

/// The providers and the pricing of a fleet, from `[previews]`, `[testers]` or `[builders]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetConfig {
    /// The provider of the fleet. Default: the provider of builders.
    pub provider: Option<Option<ProviderName>>,
    /// The provider of AMD64 machines. Default: `provider`.
    pub amd64: Option<Option<ProviderName>>,
    /// The provider of ARM64 machines. Default: `provider`.
    pub arm64: Option<Option<ProviderName>>,
    /// The pricing: `on-demand`, `spot` or `spot-first`. Default: `on-demand`.
    pub market: MarketPolicy,
    /// The maximum price of a spot machine for an hour, in US dollars. Default: the on-demand price.
    pub max_price: Option<Usd>,
}

impl FleetConfig {
    /// The provider of machines of `arch`; `None` if there is none.
    pub fn provider_of(&self, arch: Arch) -> Option<ProviderName> {
        let of_arch = match arch {
            Arch::Amd64 => self.amd64,
            Arch::Arm64 => self.arm64,
        };
        of_arch.or(self.provider).flatten()
    }

    /// This fleet, with the providers of `other` if it names none itself.
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
#[expect(clippy::option_option, reason = "absent, `none` and a name differ")]
pub(super) fn some_provider<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Option<ProviderName>>, D::Error> {
    provider(from).map(Some)
}
