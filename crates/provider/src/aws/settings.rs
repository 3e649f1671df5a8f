//! The `[aws]` table of `stagely.toml`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;
use stagely_state::Fleet;
use url::Url;

use super::types::{DEFAULTS, KNOWN};
use crate::catalog::{Catalog, CatalogSettings};
use crate::settings::{FleetTypes, ImageKind, InstanceTypeSettings, SettingError, check_cloud_url};

/// The `[aws]` table. Credentials have the same sources as those of the AWS command line: environment, `~/.aws`, SSO,
/// or the role of core's host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AwsSettings {
    /// Default: `AWS_REGION`, or the region of the profile.
    pub region: Option<String>,
    /// The profile of `~/.aws`. Default: `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// The address of EC2's API. Default: the address of the region.
    pub endpoint: Option<Url>,
    /// The subnets of machines, in the order in which they are tried. Default: those of the default VPC.
    pub subnets: Vec<String>,
    /// The availability zones of machines in the default VPC, in the order in which they are tried. They apply where
    /// no subnets are named. Default: EC2 chooses.
    pub zones: Vec<String>,
    /// The security groups of all machines, by id. No inbound rule is needed. Default: the group of the VPC.
    pub security_groups: Vec<String>,
    /// The instance profile of all machines. All programs on them have its permissions. Default: none.
    pub instance_profile: Option<String>,
    /// The image of AMD64 machines. Default: the newest golden image of this account.
    pub image_amd64: Option<String>,
    /// The image of ARM64 machines. Default: the newest golden image of this account.
    pub image_arm64: Option<String>,
    /// Whether the images are `golden` or `stock`. Default: `golden`.
    pub image_kind: ImageKind,
    /// The size of the root volume, gp3, in GiB. Default: 50.
    pub volume_gib: NonZeroU32,
    /// The instance types of builders.
    pub builders: FleetTypes,
    /// The instance types of previews.
    pub previews: FleetTypes,
    /// The instance types of testers.
    pub testers: FleetTypes,
    /// Instance types that the catalog does not know, and prices.
    pub instance_types: BTreeMap<String, InstanceTypeSettings>,
}

impl Default for AwsSettings {
    fn default() -> Self {
        Self {
            region: None,
            profile: None,
            endpoint: None,
            subnets: Vec::new(),
            zones: Vec::new(),
            security_groups: Vec::new(),
            instance_profile: None,
            image_amd64: None,
            image_arm64: None,
            image_kind: ImageKind::Golden,
            volume_gib: NonZeroU32::new(50).expect("50 is not zero"),
            builders: FleetTypes::default(),
            previews: FleetTypes::default(),
            testers: FleetTypes::default(),
            instance_types: BTreeMap::new(),
        }
    }
}

/// The largest gp3 volume, in GiB. Source: Amazon EBS user guide, "General Purpose SSD volumes".
const VOLUME_GIB_MAX: u32 = 65_536;

impl AwsSettings {
    /// Checks the constraints that the types do not express.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check(&self) -> Result<(), SettingError> {
        if let Some(endpoint) = &self.endpoint {
            check_cloud_url("aws.endpoint", endpoint)?;
        }
        if self.volume_gib.get() > VOLUME_GIB_MAX {
            let problem = format!("must be at most {VOLUME_GIB_MAX}, the largest gp3 volume");
            return Err(SettingError { key: "aws.volume-gib", problem });
        }
        self.catalog().map(drop)
    }

    /// The subnets or zones of machines, in the order in which they are tried. Where there are none, EC2 chooses.
    pub fn zones_or_subnets(&self) -> &[String] {
        if self.subnets.is_empty() { &self.zones } else { &self.subnets }
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
                (Fleet::Builder, "aws.builders", &self.builders),
                (Fleet::Preview, "aws.previews", &self.previews),
                (Fleet::Tester, "aws.testers", &self.testers),
            ],
            instance_types: ("aws.instance-types", &self.instance_types),
            zones: self.zones_or_subnets(),
        })
    }
}
