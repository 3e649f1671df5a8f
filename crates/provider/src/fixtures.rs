//! What the unit tests of several providers share.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::AgentConfig;
use stagely_protocol::agent_config::DEFAULT_WORK_DIR;
use stagely_state::ids::MachineId;
use ulid::Ulid;

/// A new id. Like every id of core's it holds the time.
pub(crate) fn machine_id() -> MachineId {
    MachineId::from_bits(Ulid::generate().0)
}

/// What core would tell the agent of `machine`.
pub(crate) fn agent_config(machine: MachineId, token: &str) -> AgentConfig {
    AgentConfig {
        core_url: "http://127.0.0.1:7780/".parse().expect("it is a URL"),
        agent_id: machine.wire(),
        token: SecretString::from(token),
        work_dir: PathBuf::from(DEFAULT_WORK_DIR),
        docker_host: None,
        run_dir: None,
        watch_spot: false,
        give_up_after: Duration::from_mins(15),
        kill_grace: Duration::from_secs(5),
    }
}
