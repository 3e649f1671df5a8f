//! Agent → core: PREVIEW, the state of a preview.

use serde::{Deserialize, Serialize};

use crate::{Digest, WireId};

/// PREVIEW: the state of a preview has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    pub preview_id: WireId,
    /// The generation that the machine runs.
    #[serde(default)]
    pub generation: u64,
    pub state: PreviewState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceState>,
    /// The archive of the volumes. Absent if the state is not `archived`, or if the volumes are too large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Digest>,
    /// The size of the archive as it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_bytes: Option<u64>,
    /// Of the file system that holds the engine's data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
    /// Sentences for people about the state. Masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<String>,
}

/// The state of a preview in PREVIEW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewState {
    /// Every service runs.
    Serving,
    /// A service has ended or is not healthy.
    Degraded,
    /// The containers are stopped, and core has the archive of the volumes.
    Archived,
}

/// A service of a preview.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    pub name: String,
    /// The engine's word for the state of the container: `running`, `exited`, `restarting`.
    pub state: String,
    /// The engine's word for the container's health: `healthy`, `unhealthy`, `starting`. Absent without a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
}

/// A preview in HELLO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningPreview {
    pub preview_id: WireId,
    /// The generation that the machine runs.
    #[serde(default)]
    pub generation: u64,
}

/// An endpoint in STATUS of a deploy job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointAddress {
    /// The endpoint's name in DEPLOY.
    pub name: String,
    /// Where it listens on the machine: `127.0.0.1:32768`.
    pub address: String,
}
