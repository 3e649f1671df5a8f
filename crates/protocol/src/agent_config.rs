//! `agent.json`: the configuration that an agent reads before it dials out.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::WireId;

/// The agent's configuration file unless `--config` names another one.
pub const DEFAULT_PATH: &str = "/etc/stagely/agent.json";

/// The configuration of the agent of one machine. The file is written with mode 0600.
///
/// Unknown fields are ignored, as on the wire: the agent of a golden image may be older than core.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentConfig {
    /// Core's base address, `http://…` or `https://…`; the WebSocket path is added to it.
    pub core_url: Url,
    /// The machine's id (`vm_…`), sent in HELLO.
    pub agent_id: WireId,
    /// Authenticates the agent in HELLO. Core stores only its hash.
    #[serde(serialize_with = "crate::expose_secret")]
    pub token: SecretString,
    /// Holds the spool, and one folder for each job. Default: `/var/lib/stagely`.
    #[serde(default = "default_work_dir")]
    pub work_dir: PathBuf,
    /// The Docker engine's address (`unix:///…`). Default: `DOCKER_HOST`, or else that of the
    /// current Docker context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_host: Option<String>,
    /// The folder of two times that the machine's dead-man timer reads: the last contact with core, and the end
    /// of the lease. Default: not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// The process whose child the agent is, and with which it ends. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Whether base images are pulled with the logins of this user's Docker.
    #[serde(default, skip_serializing_if = "is_false")]
    pub user_logins: bool,
    /// Whether EC2's metadata service is polled for interruption notices of a spot machine.
    #[serde(default, skip_serializing_if = "is_false")]
    pub watch_spot: bool,
    /// The agent stops its work and exits after this time without contact with core. Default: 15m.
    #[serde(default = "default_give_up_after", with = "humantime_serde")]
    pub give_up_after: Duration,
    /// Time between SIGTERM and SIGKILL for the agent's child processes. Default: 10s.
    #[serde(default = "default_kill_grace", with = "humantime_serde")]
    pub kill_grace: Duration,
}

pub const DEFAULT_WORK_DIR: &str = "/var/lib/stagely";

/// The folder in an agent's work folder that exists while the Docker engine may have something of its previews.
pub const PREVIEWS_FOLDER: &str = "previews";

fn default_work_dir() -> PathBuf {
    PathBuf::from(DEFAULT_WORK_DIR)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
const fn is_false(value: &bool) -> bool {
    !*value
}

const fn default_give_up_after() -> Duration {
    Duration::from_mins(15)
}

const fn default_kill_grace() -> Duration {
    Duration::from_secs(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_agent_reads_the_file_of_a_later_core() {
        let text = r#"{"core_url":"http://c","agent_id":"vm_1","token":"t","later":{"a":1}}"#;
        let config: AgentConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.give_up_after, default_give_up_after());
    }
}
