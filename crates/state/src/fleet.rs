//! Fleets, providers, placements and interruptions of machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Timestamp, Usd};

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Fleet {
    /// Builds images.
    #[default]
    Builder,
    /// Runs a pull request's images.
    Preview,
    /// Tests a preview.
    Tester,
}

impl Fleet {
    pub const ALL: [Self; 3] = [Self::Builder, Self::Preview, Self::Tester];
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Builder => "builder",
            Self::Preview => "preview",
            Self::Tester => "tester",
        })
    }
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// A machine is a child process on core's own host.
    #[default]
    Local,
    /// Amazon EC2.
    Aws,
    DigitalOcean,
    /// A machine is a guest of QEMU on core's own host.
    Qemu,
}

impl ProviderName {
    pub const ALL: [Self; 4] = [Self::Local, Self::Aws, Self::DigitalOcean, Self::Qemu];

    /// The name in the configuration and in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Aws => "aws",
            Self::DigitalOcean => "digitalocean",
            Self::Qemu => "qemu",
        }
    }
}

impl fmt::Display for ProviderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProviderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.ok_or_else(|| {
            format!("{text:?} is no provider: local, aws, digitalocean, qemu or none")
        })
    }
}

/// How a machine is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// At a fixed price, without interruptions.
    OnDemand,
    /// Cheaper, but the cloud may take the machine back.
    Spot,
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
        })
    }
}

/// Where a provider has put a machine, and at which price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The provider's own name for the machine.
    pub provider_id: String,
    /// The provider's name for machines of this size.
    pub instance_type: String,
    pub zone: Option<String>,
    pub market: Market,
    /// For an hour; the maximum for a spot machine. `None` if it is not known, or the machine costs nothing.
    pub price: Option<Usd>,
    /// The price of an hour on the spot market at the launch, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot_price: Option<Usd>,
}

/// The cloud's notice that it takes a machine back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Interruption {
    /// It may happen soon. The machine gets no further job.
    Likely,
    /// It happens at this moment.
    Certain { at: Timestamp },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_is_read_as_it_is_written() {
        for name in ProviderName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
        }
        assert!("gcp".parse::<ProviderName>().unwrap_err().contains("digitalocean"));
    }
}
