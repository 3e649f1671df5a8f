//! The `[builders]` table.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;
use stagely_provider::settings::{MarketPolicy, some_dollars};
use stagely_state::{ProviderName, Usd};

use super::fleets::{provider, some_provider};

/// The `[builders]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BuilderConfig {
    /// The provider of builders: `local`, `aws`, `digitalocean`, `qemu`, or `none`. Default: `local`.
    #[serde(deserialize_with = "provider")]
    pub provider: Option<ProviderName>,
    /// The provider of AMD64 builders. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub amd64: Option<Option<ProviderName>>,
    /// The provider of ARM64 builders. Default: `provider`.
    #[serde(deserialize_with = "some_provider")]
    pub arm64: Option<Option<ProviderName>>,
    /// The pricing: `on-demand`, `spot` or `spot-first`. The last attempt of a job always uses an on-demand
    /// machine. Default: `on-demand`.
    pub market: MarketPolicy,
    /// The maximum price of a spot machine for an hour, in US dollars. Default: the on-demand price.
    #[serde(deserialize_with = "some_dollars")]
    pub max_price: Option<Usd>,
    /// The most launched builders at once, over all projects. Further jobs wait. Default: 50.
    pub max_concurrent: NonZeroU32,
    /// The most attempts of a job. Only failures of machines and infrastructure are retried. Default: 3.
    pub max_attempts: NonZeroU32,
    /// The wait after the first launch for a job that found no capacity. Later waits grow up to 5 minutes. Default: 30s.
    #[serde(with = "humantime_serde")]
    pub capacity_wait: Duration,
    /// How long a job waits for capacity before it fails. Default: 1h.
    #[serde(with = "humantime_serde")]
    pub capacity_limit: Duration,
    /// The time limit from the launch of a machine to the HELLO of its agent. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub boot_limit: Duration,
    /// The time that core adds to a build's own limit before it ends the machine. Default: 1m.
    #[serde(with = "humantime_serde")]
    pub job_grace: Duration,
    /// The lease of a launched machine without a running job. Default: 1h.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// The time limit of exporting a layer cache after the image was reported. Default: 10m.
    #[serde(with = "humantime_serde")]
    pub cache_export_limit: Duration,
    /// The time limit of planning a run: reading its `stagely.yaml`, over all tries. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub planning_limit: Duration,
}

impl Default for BuilderConfig {
    fn default() -> Self {
        Self {
            provider: Some(ProviderName::Local),
            amd64: None,
            arm64: None,
            market: MarketPolicy::OnDemand,
            max_price: None,
            max_concurrent: NonZeroU32::new(50).expect("50 is not zero"),
            max_attempts: NonZeroU32::new(3).expect("3 is not zero"),
            capacity_wait: Duration::from_secs(30),
            capacity_limit: Duration::from_hours(1),
            boot_limit: Duration::from_mins(5),
            job_grace: Duration::from_mins(1),
            lease: Duration::from_hours(1),
            cache_export_limit: Duration::from_mins(10),
            planning_limit: Duration::from_mins(5),
        }
    }
}
