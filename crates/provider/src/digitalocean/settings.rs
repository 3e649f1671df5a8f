//! The `[digitalocean]` table of `stagely.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use stagely_state::Fleet;
use url::Url;

use super::types::{DEFAULTS, KNOWN};
use crate::catalog::{Catalog, CatalogSettings};
use crate::settings::{FleetTypes, ImageKind, InstanceTypeSettings, SettingError, check_cloud_url};

/// The `[digitalocean]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DigitalOceanSettings {
    /// The address of the API. Default: `https://api.digitalocean.com`.
    pub api_url: Url,
    /// The file of the API's token. It is read for each request. Default: the variable `DIGITALOCEAN_TOKEN`.
    pub token_file: Option<PathBuf>,
    /// The regions of machines, in the order in which they are tried. At least one is needed.
    pub regions: Vec<String>,
    /// The VPC of machines. Default: the default VPC of the region.
    pub vpc: Option<String>,
    /// SSH keys of the account that may log in to machines as root, by id or fingerprint. Without a key
    /// `DigitalOcean` sends the account's owner a password for each machine. Default: none.
    pub ssh_keys: Vec<String>,
    /// The image of AMD64 machines: a snapshot's id or name, or the slug of a stock image. Default: the newest
    /// golden snapshot.
    pub image_amd64: Option<String>,
    /// The image of ARM64 machines. Default: the newest golden snapshot.
    pub image_arm64: Option<String>,
    /// Whether the images are `golden` or `stock`. Default: `golden`.
    pub image_kind: ImageKind,
    /// The instance types (`DigitalOcean`'s sizes) of builders.
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
            api_url: Url::parse("https://api.digitalocean.com").expect("this is a URL"),
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
    /// Checks the constraints that the types do not express.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check(&self) -> Result<(), SettingError> {
        check_cloud_url("digitalocean.api-url", &self.api_url)?;
        self.catalog().map(drop)
    }

    /// The instance types of all sizes.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn catalog(&self) -> Result<Catalog, SettingError> {
        Catalog::new(&CatalogSettings {
            known: KNOWN,
            defaults: DEFAULTS,
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
