//! What `stagely.toml` says of fleets: who launches their machines, and how they are bought.

use std::str::FromStr as _;

use serde::{Deserialize, Deserializer};
use stagely_protocol::Arch;
use stagely_provider::settings::{MarketPolicy, some_dollars};
use stagely_state::{ProviderName, Usd};

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
