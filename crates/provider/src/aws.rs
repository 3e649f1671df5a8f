//! Machines as instances of Amazon EC2.

mod settings;
mod types;

mod client;
mod error;
mod http;

mod ended;
mod images;
mod instances;
mod launch;
mod offers;
mod spot;

mod check;
pub mod policy;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_ec2::Client;
use stagely_state::Placement;
use stagely_state::comparison::Listed;
use stagely_state::ids::{CoreId, MachineId};

use crate::catalog::{Candidate, Catalog};
use crate::settings::{ImageKind, SettingError};
use crate::{LaunchError, LaunchRequest, Listing, Offer, Provider, ProviderError, SpotPrices};
use images::Images;
use spot::Spot;

pub use check::{ImageView, Permission, PermissionState, caller};
pub use client::connect;
pub use http::Http;
pub use settings::AwsSettings;
#[cfg(test)]
pub(crate) use types::{DEFAULTS, KNOWN};

/// The tag of all instances and volumes of one core. Its value is core's id.
pub const CORE_TAG: &str = "stagely:core";
/// The tag with the machine's id.
pub const MACHINE_TAG: &str = "stagely:machine";
/// The tag with the id of the job that caused the launch.
pub const JOB_TAG: &str = "stagely:job";
/// The tag with the fleet: `builder`, `preview` or `tester`.
pub const FLEET_TAG: &str = "stagely:fleet";
/// The tag with the id of the preview that a machine was launched for.
pub const PREVIEW_TAG: &str = "stagely:preview";
/// The tag of golden images. Its value is their version.
pub const IMAGE_TAG: &str = "stagely:golden-image";

/// Launches instances of EC2 in one region.
#[derive(Debug)]
pub struct AwsProvider {
    client: Client,
    config: AwsSettings,
    catalog: Catalog,
    core_id: CoreId,
    images: Images,
    /// The last candidate of each machine that may have been started. It is tried first in the next attempt, because
    /// EC2 knows its client token.
    unclear: Mutex<HashMap<MachineId, Candidate>>,
    spot: Spot,
}

impl AwsProvider {
    /// Uses `client`. Machines are tagged with `core_id`.
    ///
    /// # Errors
    /// [`SettingError`] for an unknown instance type.
    pub fn new(
        client: Client,
        config: &AwsSettings,
        core_id: CoreId,
    ) -> Result<Self, SettingError> {
        let catalog = config.catalog()?;
        let images = Images::new(client.clone(), config);
        let (config, unclear, spot) = (config.clone(), Mutex::default(), Spot::default());
        Ok(Self { client, config, catalog, core_id, images, unclear, spot })
    }

    fn unclear(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Candidate>> {
        self.unclear.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Provider for AwsProvider {
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError> {
        self.launch_once(request).await
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        self.unclear().remove(&machine);
        self.terminate_all(machine).await
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        self.list_machines().await
    }

    async fn launch_problem(
        &self,
        machine: MachineId,
    ) -> Result<Option<LaunchError>, ProviderError> {
        Ok(ended::problem(&self.find(machine).await?))
    }

    fn image_kind(&self) -> ImageKind {
        self.config.image_kind
    }

    fn listing(&self) -> Listing {
        // Lists are eventually consistent: a new instance, or its tags, may be missing for some seconds. AWS advises
        // to wait up to five minutes before an instance counts as lost. Source: EC2 API reference, "Eventual
        // consistency".
        Listing { interval: Duration::from_mins(1), grace: Duration::from_mins(5) }
    }

    async fn spot_prices(&self, types: &[String]) -> Result<SpotPrices, ProviderError> {
        self.read_spot_prices(types).await
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        self.offers().await
    }
}
