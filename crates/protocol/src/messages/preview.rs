//! Agent → core: PREVIEW, the state of a preview, and the id under which LOG carries the lines of its services.

use serde::{Deserialize, Serialize};

use super::is_false;
use crate::{Digest, WireId};

/// The code of ERROR after a SLEEP for a preview that is not on the machine.
pub const UNKNOWN_PREVIEW: &str = "unknown_preview";

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
    /// Whether this answers SLEEP: the volumes could not be archived, and the preview serves again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub archive_failed: bool,
    /// Sentences for people about the state. Masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<String>,
}

impl Preview {
    /// A report of a state alone.
    pub const fn new(preview_id: WireId, generation: u64, state: PreviewState) -> Self {
        Self {
            preview_id,
            generation,
            state,
            services: Vec::new(),
            archive: None,
            archive_bytes: None,
            archive_failed: false,
            disk_free_bytes: None,
            messages: Vec::new(),
        }
    }
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

/// The `job_id` in LOG, `LOG_ACK` and `HELLO_ACK` of the lines that a preview's services write from the deployment
/// `generation` to the next one: `prev_…-3`. `None` if the preview's id is too long for that.
pub fn service_log_id(preview: &WireId, generation: u64) -> Option<WireId> {
    format!("{preview}-{generation}").parse().ok()
}

/// The preview and the generation of such an id; `None` for the id of a job.
pub fn service_log(id: &WireId) -> Option<(&str, u64)> {
    let (preview, generation) = id.as_str().rsplit_once('-')?;
    let generation = generation.parse().ok()?;
    preview.starts_with("prev_").then_some((preview, generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_services_have_other_ids_than_those_of_attempts() {
        let preview: WireId = "prev_01k9x3v5c8q2m4n6p8r0s2t4v6".parse().unwrap();
        let id = service_log_id(&preview, u64::MAX).unwrap();
        assert_eq!(service_log(&id), Some((preview.as_str(), u64::MAX)));
        for other in ["job_01k9x3v5c8q2m4n6p8r0s2t4v6-2", "prev_01k9x3v5c8q2m4n6p8r0s2t4v6"] {
            assert_eq!(service_log(&other.parse().unwrap()), None, "{other}");
        }
    }
}
