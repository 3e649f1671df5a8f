//! The request for a machine: what kind it is, and what its agent gets.

use std::time::Duration;

use stagely_protocol::Arch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_state::ids::{JobId, MachineId, PreviewId};
use stagely_state::{Fleet, MachineSize, Usd};
use url::Url;

use crate::settings::MarketPolicy;
use crate::{AgentEnvironment, CertificateAuthorities};

/// The kind of machine that is wanted. A provider derives the machine types and zones from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    pub fleet: Fleet,
    pub arch: Arch,
    pub size: MachineSize,
    pub market: MarketPolicy,
    /// Buys on demand whatever `market` says: this is the job's last attempt, or spot had no capacity before.
    pub on_demand: bool,
    /// The highest price of an hour on the spot market.
    pub max_price: Option<Usd>,
    /// The smallest disk that is enough, in GiB. `None`: the provider's usual one.
    pub disk_gib: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct LaunchRequest {
    /// Our id of the machine, chosen before the provider is asked. It identifies the machine at the provider.
    pub machine: MachineId,
    /// The job that caused the launch. The provider's own lists show it to people.
    pub job: Option<JobId>,
    /// The preview that is to be deployed. It may move to other machines later.
    pub preview: Option<PreviewId>,
    pub spec: MachineSpec,
    /// The configuration of the machine's agent.
    pub agent: AgentConfig,
    /// Of the agent's process, and of the machine's Docker engine.
    pub environment: AgentEnvironment,
    pub authorities: CertificateAuthorities,
    /// The machine's lifetime unless core extends it.
    pub lease: Duration,
    /// The host of a registry without TLS. The machine's Docker engine must be configured for it.
    pub insecure_registry: Option<String>,
    /// The agent's program, which a machine with a stock image downloads from core.
    pub binary: Option<AgentBinary>,
}

/// The agent's program, as core serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentBinary {
    pub url: Url,
    /// In hexadecimal digits.
    pub sha256: String,
}
