//! `agent.json`: everything one agent is told before it dials out.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::WireId;

/// Where an agent looks for its configuration unless `--config` names another file.
pub const DEFAULT_PATH: &str = "/etc/stagely/agent.json";

/// The configuration of one agent, good for one machine. The file is written with mode 0600.
///
/// Unknown fields are ignored, as on the wire: a golden image may hold an older agent than core is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentConfig {
    /// Core's base address, `http://…` or `https://…`; the WebSocket path is added to it.
    pub core_url: Url,
    /// The machine's id (`vm_…`), sent in HELLO.
    pub agent_id: WireId,
    /// Opens the session. Core keeps its hash only.
    #[serde(serialize_with = "crate::expose_secret")]
    pub token: SecretString,
    /// Holds the spool and one folder a job. Default: `/var/lib/stagely`.
    #[serde(default = "default_work_dir")]
    pub work_dir: PathBuf,
    /// The Docker engine's address (`unix:///…`). Default: what `DOCKER_HOST` or Docker's own default says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_host: Option<String>,
    /// Where it says when it was last in contact with core and when the machine's lease ends, for the
    /// machine's dead-man switch. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// The machine is of EC2's spot market: its metadata service is asked whether it is taken back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub watch_spot: bool,
    /// Without contact with core for this long the agent stops its work and exits. Default: 15m.
    #[serde(default = "default_give_up_after", with = "humantime_serde")]
    pub give_up_after: Duration,
    /// Time between SIGTERM and SIGKILL for the agent's child processes. Default: 10s.
    #[serde(default = "default_kill_grace", with = "humantime_serde")]
    pub kill_grace: Duration,
}

/// Where an agent works unless its configuration says otherwise.
pub const DEFAULT_WORK_DIR: &str = "/var/lib/stagely";

fn default_work_dir() -> PathBuf {
    PathBuf::from(DEFAULT_WORK_DIR)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
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
