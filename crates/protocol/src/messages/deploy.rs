//! Core → agent: DEPLOY, SLEEP and DIAL, the work of a preview machine.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use super::{BuildArgs, CloneContext, RegistryAuth, is_false};
use crate::{Digest, ImageRef, WireId};

/// DEPLOY: run images as a preview, in place of what the machine runs for the same preview.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deploy {
    pub job_id: WireId,
    pub preview_id: WireId,
    /// Grows with each DEPLOY of a preview.
    #[serde(default)]
    pub generation: u64,
    /// The image of the first endpoint's service, by digest. Without `compose_path` it is the whole preview.
    pub image: ImageRef,
    /// The images of the services that `stagely.yaml` names, by digest. The compose file must have these services.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, ImageRef>,
    /// The images of builds, by name. A further service of the same name runs it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub default_images: BTreeMap<String, ImageRef>,
    /// The commit that contains the compose file. Absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<CloneContext>,
    /// The compose file, relative to the repository's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose_path: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Variables of the services that run these images.
    #[serde(default, skip_serializing_if = "BuildArgs::is_empty")]
    pub env: BuildArgs,
    /// Like `env`, and masked in logs.
    #[serde(default, skip_serializing_if = "Secrets::is_empty")]
    pub secrets: Secrets,
    /// Runs before the services start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrate: Option<ServiceCommand>,
    /// Runs after `migrate`, if the data is fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<ServiceCommand>,
    /// Whether the volumes of the preview are deleted first.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fresh: bool,
    /// The archive whose volumes the preview starts with, if the machine has none of the preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Digest>,
    /// Whether the compose file may ask for host access: the machine is a virtual machine of this preview alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_privileged: bool,
    /// The agent stops the deployment after this many seconds. Default: 1800.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Absent if the registry needs no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

const fn default_timeout_seconds() -> u64 {
    30 * 60
}

/// A port of a service that core forwards requests to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: String,
    /// The service of the compose file. Empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    pub port: u16,
    /// The host name under which browsers reach it. Health checks name it, because many applications refuse other names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default)]
    pub health: HealthCheck,
}

/// The request that an endpoint must answer before it gets others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The target of a GET request.
    #[serde(default = "default_path")]
    pub path: String,
    /// The lowest and the highest status of a healthy answer. Default: 200 to 399.
    #[serde(default = "default_status")]
    pub status: [u16; 2],
    /// Default: 120.
    #[serde(default = "default_health_seconds")]
    pub timeout_seconds: u64,
}

fn default_path() -> String {
    "/".to_owned()
}

const fn default_status() -> [u16; 2] {
    [200, 399]
}

const fn default_health_seconds() -> u64 {
    120
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: default_path(),
            status: default_status(),
            timeout_seconds: default_health_seconds(),
        }
    }
}

/// A command that runs once in a new container of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCommand {
    /// Empty without a compose file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    pub command: Vec<String>,
    /// Default: 600.
    #[serde(default = "default_command_seconds")]
    pub timeout_seconds: u64,
}

const fn default_command_seconds() -> u64 {
    600
}

/// Secret variables by name. Their values stay out of `Debug`.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, SecretString>);

impl Secrets {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Serialize for Secrets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, secret) in &self.0 {
            map.serialize_entry(name, secret.expose_secret())?;
        }
        map.end()
    }
}

/// SLEEP: stop a preview, archive its volumes, and report PREVIEW `archived`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sleep {
    pub preview_id: WireId,
    /// A larger archive is given up, in bytes of the volumes. 0: the preview ends, and is removed at once. Default: 2 GiB.
    #[serde(default = "default_archive_bytes_max")]
    pub archive_bytes_max: u64,
}

const fn default_archive_bytes_max() -> u64 {
    2 * 1024 * 1024 * 1024
}

/// DIAL: open further connections to [`TUNNEL_PATH`](crate::TUNNEL_PATH).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dial {
    /// How many, besides those that are open.
    pub connections: u32,
}
