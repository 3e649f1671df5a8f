//! The `[agents]` table.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::error::ConfigError;

/// The `[agents]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentsConfig {
    /// The interval of heartbeats, in whole seconds. A session is closed after three missing heartbeats.
    /// Default: 15s.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// The time without contact after which a machine's job moves to another machine. Default: 2m.
    #[serde(with = "humantime_serde")]
    pub reconnect_grace: Duration,
    /// The time without contact after which an agent stops its work and exits. Default: 15m.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// The time between SIGTERM and SIGKILL for an agent's child processes. Default: 5s.
    #[serde(with = "humantime_serde")]
    pub kill_grace: Duration,
    /// A folder with `stagely-linux-amd64` and `stagely-linux-arm64` of a release, for stock images with
    /// another processor than core's. Default: none.
    pub binaries: Option<PathBuf>,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            reconnect_grace: Duration::from_mins(2),
            give_up_after: Duration::from_mins(15),
            kill_grace: Duration::from_secs(5),
            binaries: None,
        }
    }
}

impl AgentsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let heartbeat = self.heartbeat_interval;
        if heartbeat.as_secs() == 0 || heartbeat.subsec_nanos() != 0 {
            return Err(ConfigError::Value {
                key: "agents.heartbeat-interval",
                problem: "must be whole seconds, at least 1s".to_owned(),
            });
        }
        Ok(())
    }
}
