//! The `[digitalocean]` table of `stagely.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use stagely_state::{Fleet, ProviderName};
use url::Url;

use crate::catalog::{Catalog, CatalogSettings};
use crate::settings::{FleetTypes, ImageKind, InstanceTypeSettings, SettingError, check_cloud_url};

/// The `[digitalocean]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DigitalOceanSettings {
    /// The API. Default: `https://api.digitalocean.com`.
    pub api_url: Url,
    /// A file that holds a token of the API, read whenever it is needed. Default:
    /// `DIGITALOCEAN_TOKEN` of the environment.
    pub token_file: Option<PathBuf>,
    /// The regions that machines are put in, tried in this order. Default: none; one is needed.
    pub regions: Vec<String>,
    /// The VPC that machines are put in. Default: the region's own.
    pub vpc: Option<String>,
    /// SSH keys of the account that may log in to machines as root, by id or fingerprint. Without any
    /// `DigitalOcean` makes a password for each machine and mails it to the account's owner. Default: none.
    pub ssh_keys: Vec<String>,
    /// The image of AMD64 machines: a snapshot's id or name, or the slug of a stock image. Default: the newest
    /// golden snapshot.
    pub image_amd64: Option<String>,
    /// The image of ARM64 machines, should `DigitalOcean` have any. Default: the newest golden snapshot.
    pub image_arm64: Option<String>,
    /// Whether the images are `golden` or `stock`. Default: `golden`.
    pub image_kind: ImageKind,
    /// The instance types (sizes, as `DigitalOcean` has it) of builders.
    pub builders: FleetTypes,
    /// The instance types of previews.
    pub previews: FleetTypes,
    /// The instance types of testers.
    pub testers: FleetTypes,
    /// Instance types that the catalog does not know, and prices.
    pub instance_types: BTreeMap<String, InstanceTypeSettings>,
}

impl Default for DigitalOceanSettings {
    fn default() -> Self {
        Self {
            api_url: Url::parse("https://api.digitalocean.com").expect("it is a URL"),
            token_file: None,
            regions: Vec::new(),
            vpc: None,
            ssh_keys: Vec::new(),
            image_amd64: None,
            image_arm64: None,
            image_kind: ImageKind::Golden,
            builders: FleetTypes::default(),
            previews: FleetTypes::default(),
            testers: FleetTypes::default(),
            instance_types: BTreeMap::new(),
        }
    }
}

impl DigitalOceanSettings {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check(&self) -> Result<(), SettingError> {
        check_cloud_url("digitalocean.api-url", &self.api_url)?;
        self.catalog().map(drop)
    }

    /// What can be launched.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn catalog(&self) -> Result<Catalog, SettingError> {
        Catalog::new(&CatalogSettings {
            provider: ProviderName::DigitalOcean,
            fleets: [
                (Fleet::Builder, "digitalocean.builders", &self.builders),
                (Fleet::Preview, "digitalocean.previews", &self.previews),
                (Fleet::Tester, "digitalocean.testers", &self.testers),
            ],
            instance_types: ("digitalocean.instance-types", &self.instance_types),
            zones: &self.regions,
        })
    }
}
