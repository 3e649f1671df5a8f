//! Requests and checks that the unit tests of several providers share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use stagely_protocol::agent_config::DEFAULT_WORK_DIR;
use stagely_protocol::{AgentConfig, Arch};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, MachineSize};
use ulid::Ulid;

use crate::processes::Processes;
use crate::settings::MarketPolicy;
use crate::{AgentEnvironment, CertificateAuthorities, LaunchRequest, MachineSpec, Provider};

/// A certificate of an authority.
pub(crate) const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBkjCCATmgAwIBAgIUNefStYhf/kanfoj04fliLjgQho4wCgYIKoZIzj0EAwIw
HjEcMBoGA1UEAwwTYSBwcml2YXRlIGF1dGhvcml0eTAgFw0yNjExMzAwMjU3MTFa
GA8yMTI2MTEwNjAyNTcxMVowHjEcMBoGA1UEAwwTYSBwcml2YXRlIGF1dGhvcml0
eTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEygYnkuQ5RWBXzPcgK5zg8L0A11
WlPFDGcNP0d3gSh4BeOhdLVoe47O1RTwie1qzw4/s6JjSEDKWbmHdX5hd42jUzBR
MB0GA1UdDgQWBBT0vrQkQ8kdj73wUeK/3UsTZ0xl5TAfBgNVHSMEGDAWgBT0vrQk
Q8kdj73wUeK/3UsTZ0xl5TAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0cA
MEQCIGcnrXlllVwqjKKPAnh6HKM8CKzXybLx21LpkELQ/tSDAiB5XFDiqgUj6PFy
UHZchKI6pYWefmtUR3IkRljcQB3ZQg==
-----END CERTIFICATE-----
";

/// A new id. As in all ids of core, its first bits are the time.
pub(crate) fn machine_id() -> MachineId {
    MachineId::from_bits(Ulid::generate().0)
}

/// The configuration of the agent of `machine`.
pub(crate) fn agent_config(machine: MachineId, token: &str) -> AgentConfig {
    AgentConfig {
        core_url: "http://127.0.0.1:7780/".parse().expect("this is a URL"),
        agent_id: machine.wire(),
        token: SecretString::from(token),
        work_dir: PathBuf::from(DEFAULT_WORK_DIR),
        docker_host: None,
        run_dir: None,
        parent: None,
        user_logins: false,
        watch_spot: false,
        give_up_after: Duration::from_mins(15),
        kill_grace: Duration::from_secs(5),
    }
}

/// A builder on demand.
pub(crate) fn spec(arch: Arch, size: MachineSize) -> MachineSpec {
    MachineSpec {
        fleet: Fleet::Builder,
        arch,
        size,
        market: MarketPolicy::OnDemand,
        on_demand: false,
        max_price: None,
        disk_gib: None,
    }
}

/// A request for `machine` with a lease of an hour.
pub(crate) fn request(machine: MachineId, spec: MachineSpec, token: &str) -> LaunchRequest {
    LaunchRequest {
        machine,
        job: None,
        preview: None,
        spec,
        agent: agent_config(machine, token),
        environment: AgentEnvironment::default(),
        authorities: CertificateAuthorities::default(),
        lease: Duration::from_hours(1),
        insecure_registry: None,
        binary: None,
    }
}

/// Whether no process and no folder is left of any machine. `folder` holds the folders of all machines.
pub(crate) async fn is_deserted(processes: &Processes, folder: &Path) -> bool {
    processes.scan().await.unwrap().is_empty() && fs::read_dir(folder).unwrap().next().is_none()
}

/// Checks that `next`, the provider of a restarted core, finds `machine`, which the `former` core's provider started.
pub(crate) async fn check_is_found_again(
    machine: MachineId,
    former: &Processes,
    next: &impl Provider,
    processes: &Processes,
) {
    assert!(is_child(former, machine).await);
    assert!(!is_child(processes, machine).await);
    assert_eq!(next.list().await.unwrap(), [Listed { machine, state: ListedState::Live }]);
}

/// Checks that `provider` lists no machine, and that it may terminate `machine`, which is gone, once more.
pub(crate) async fn check_is_gone(machine: MachineId, provider: &impl Provider) {
    assert_eq!(provider.list().await.unwrap(), []);
    provider.terminate(machine).await.unwrap();
}

/// Whether the main process of `machine` is a child of the provider's process.
async fn is_child(processes: &Processes, machine: MachineId) -> bool {
    !processes.child_ends_within(machine, Duration::ZERO).await
}
