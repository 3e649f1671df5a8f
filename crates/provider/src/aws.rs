//! Machines as instances of Amazon EC2.

mod client;
mod fault;
mod http;

mod images;
mod instances;
mod launch;
mod offers;

mod check;
pub mod policy;
mod settings;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_ec2::Client;
use stagely_state::Placement;
use stagely_state::ids::{CoreId, MachineId};

use super::catalog::Catalog;
use super::{
    Candidate, LaunchError, LaunchRequest, Listed, Listing, Offer, Provider, ProviderError, Want,
};
use crate::settings::{ImageKind, SettingError};
use images::Images;

pub use check::{Answer, Permission, caller};
pub use client::connect;
pub use http::Http;
pub use settings::AwsSettings;

/// On everything that belongs to one core: its id.
pub const CORE_TAG: &str = "stagely:core";
/// The machine's id.
pub const MACHINE_TAG: &str = "stagely:machine";
/// The job that a machine was launched for.
pub const JOB_TAG: &str = "stagely:job";
/// On golden images: their version.
pub const IMAGE_TAG: &str = "stagely:golden-image";

/// Launches instances of EC2 in one region.
#[derive(Debug)]
pub struct AwsProvider {
    client: Client,
    config: AwsSettings,
    catalog: Catalog,
    core_id: CoreId,
    images: Images,
    /// Of machines that may have been started: which candidate was asked for. It comes first at the next try,
    /// where EC2 knows its client token.
    unclear: Mutex<HashMap<MachineId, Candidate>>,
}

impl AwsProvider {
    /// Asks through `client`. Machines are tagged with `core_id`.
    ///
    /// # Errors
    /// [`SettingError`] for an instance type that nobody knows.
    pub fn new(
        client: Client,
        config: &AwsSettings,
        core_id: CoreId,
    ) -> Result<Self, SettingError> {
        let catalog = config.catalog()?;
        let images = Images::new(client.clone(), config);
        let (config, unclear) = (config.clone(), Mutex::default());
        Ok(Self { client, config, catalog, core_id, images, unclear })
    }

    fn unclear(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Candidate>> {
        self.unclear.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Provider for AwsProvider {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        self.catalog.candidates(want)
    }

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

    fn image_kind(&self) -> ImageKind {
        self.config.image_kind
    }

    fn listing(&self) -> Listing {
        // Lists are eventually consistent: a new instance, or its tags, may be missing for some seconds, and
        // AWS advises to wait up to five minutes before one is taken for lost. Source: EC2 API reference,
        // "Eventual consistency".
        Listing { interval: Duration::from_mins(1), grace: Duration::from_mins(5) }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        self.offers().await
    }
}
