//! Launches, terminates and lists machines. A provider's peculiarities stay in its own files.

pub mod settings;

mod agent_environment;
mod request;

mod error;

mod providers;
mod tables;

pub mod catalog;

pub mod local;

pub mod qemu;

pub mod aws;

pub mod digitalocean;

mod processes;

mod user_data;

#[cfg(test)]
mod fixtures;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use stagely_protocol::Arch;
use stagely_state::comparison::Listed;
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, MachineSize, Placement, Usd};

pub use agent_environment::{AgentEnvironment, CertificateAuthorities};
pub use error::{BoxError, LaunchError, ProviderError};
pub use providers::Providers;
pub use request::{AgentBinary, LaunchRequest, MachineSpec};
use settings::ImageKind;
pub use tables::{Network, ProviderTables};

/// The time limit of a provider for ending one machine. Core repeats the request after that.
pub const TERMINATE_LIMIT: Duration = Duration::from_mins(1);

/// Where machines come from.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Starts a machine. A machine that was launched before is success and is not started again, whatever type
    /// and zone it has.
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError>;

    /// Ends a machine and all that runs on it, within [`TERMINATE_LIMIT`]. A machine that is gone is success.
    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError>;

    /// All machines of this core, through all pages of the list. They may have been launched by an earlier
    /// process.
    async fn list(&self) -> Result<Vec<Listed>, ProviderError>;

    /// Why a machine that was launched ended before its agent connected. `None` if the provider does not say.
    async fn launch_problem(&self, _: MachineId) -> Result<Option<LaunchError>, ProviderError> {
        Ok(None)
    }

    /// How far [`list`](Self::list) can be trusted.
    fn listing(&self) -> Listing;

    /// Asks the provider for the machine types that the configuration names.
    async fn describe(&self) -> Result<Vec<Offer>, ProviderError>;

    /// The prices of an hour of these machine types on the spot market, by type and zone. Later launches try the cheapest
    /// zone first. Empty where there is no such market.
    async fn spot_prices(&self, _: &[String]) -> Result<SpotPrices, ProviderError> {
        Ok(SpotPrices::new())
    }

    /// The images that its machines boot from.
    fn image_kind(&self) -> ImageKind {
        ImageKind::Golden
    }
}

/// Prices of an hour on the spot market, by machine type and zone.
pub type SpotPrices = BTreeMap<(String, String), Usd>;

/// How far a provider's list can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The time between two requests for the list.
    pub interval: Duration,
    /// A running machine may be missing from the list for this long after its launch, and after the last contact
    /// of an earlier core with it.
    pub grace: Duration,
}

/// A machine type that a provider has for one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub fleet: Fleet,
    pub arch: Arch,
    pub size: MachineSize,
    /// The provider's name for the machine type.
    pub instance_type: String,
    /// The price of an hour on demand, if it is known.
    pub price: Option<Usd>,
    /// Whether the spot market sells it.
    pub spot: bool,
    /// Whether the provider has the type, even if something else prevents a launch. Where a provider has no type
    /// of an arch, builds for it are emulated.
    pub exists: bool,
    /// Why it cannot be launched at the moment.
    pub problem: Option<OfferProblem>,
}

/// Why a machine type cannot be launched, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferProblem {
    /// There is no image to boot, with advice.
    #[error("{0}")]
    NoImage(String),
    /// The provider does not have the type, or does not sell it here.
    #[error("{0}")]
    NotSold(String),
    /// This host lacks a program or a device, with advice.
    #[error("{0}")]
    Host(String),
}
