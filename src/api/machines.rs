//! `/machines`: launched and registered machines.

use serde::{Deserialize, Serialize};
use stagely_protocol::{Arch, SystemInfo};
use stagely_state::ids::{JobId, MachineId, PreviewId};
use stagely_state::{
    Fleet, Interruption, MachineKind, MachineSize, Market, ProviderName, Timestamp, Usd,
};
use utoipa::{IntoParams, ToSchema};

use super::encoding::dollars;

/// The status of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineStatus {
    /// The machine is recorded; the provider has not confirmed it.
    Requested,
    /// The provider has confirmed the machine; its agent has not connected.
    Booting,
    /// The machine has no job.
    Ready,
    /// The machine has a job.
    Busy,
    /// The machine is being ended.
    Terminating,
    /// The machine no longer exists.
    Terminated,
}

impl MachineStatus {
    /// The status as written in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
        }
    }
}

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MachineView {
    /// The machine's id.
    #[schema(value_type = String, example = "vm_01k9x3v5c8q2m4n6p8r0s2t4v6")]
    pub id: MachineId,
    /// `launched` by a provider, or `static`: registered by its owner.
    #[schema(value_type = String)]
    pub kind: MachineKind,
    /// The name of a registered machine, given by its owner; empty for a launched machine.
    pub name: String,
    /// The machine's processor.
    #[schema(value_type = String)]
    pub arch: Arch,
    /// The machine's size.
    #[schema(value_type = String)]
    pub size: MachineSize,
    /// The machine's fleet: `builder`, `preview` or `tester`.
    #[schema(value_type = String)]
    pub fleet: Fleet,
    /// The provider of a launched machine; null for a registered machine.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderName>,
    /// The provider's id for the machine, once the provider has answered.
    pub provider_id: Option<String>,
    /// The provider's name for the machine's type, once the provider has answered.
    pub instance_type: Option<String>,
    /// The machine's zone, region or subnet, if the provider has any.
    pub zone: Option<String>,
    /// The pricing: `on-demand` or `spot`. Null until the provider has answered.
    #[schema(value_type = Option<String>)]
    pub market: Option<Market>,
    /// Whether the machine is launched on demand whatever the fleet's market, because its job has no
    /// further attempt.
    pub on_demand: bool,
    /// The price of an hour, with its address and disk, in US dollars. Null if unknown.
    #[serde(with = "dollars")]
    #[schema(value_type = Option<f64>, example = 0.17)]
    pub price_per_hour_usd: Option<Usd>,
    /// The cost since the machine runs, in US dollars, rounded up to a millionth. Null if no price is known.
    #[serde(with = "dollars")]
    #[schema(value_type = Option<f64>, example = 0.0284)]
    pub cost_usd: Option<Usd>,
    /// Whether the cost is approximate: the price of a spot machine is read every 5 minutes.
    #[serde(default)]
    pub cost_is_approximate: bool,
    /// The machine's status.
    pub status: MachineStatus,
    /// The cloud's notice of interruption: `notice` is `likely`, or `certain` with `at`.
    #[schema(value_type = Option<Object>)]
    pub interruption: Option<Interruption>,
    /// Whether the machine's agent is connected.
    pub connected: bool,
    /// The job that the machine runs, or was launched for.
    #[schema(value_type = Option<String>)]
    pub job_id: Option<JobId>,
    /// The job whose cache the machine still exports after reporting the image.
    #[schema(value_type = Option<String>)]
    pub exporting_cache_of: Option<JobId>,
    /// The preview that the machine serves.
    #[schema(value_type = Option<String>)]
    pub preview_id: Option<PreviewId>,
    /// The time at which the machine was recorded.
    #[schema(value_type = u64)]
    pub requested_at: Timestamp,
    /// The end of the lease, after which the machine is ended in any case; null for a registered
    /// machine.
    #[schema(value_type = Option<u64>)]
    pub lease_until: Option<Timestamp>,
    /// The rest of the lease, in seconds; negative if the machine outlives its lease. Null for a
    /// registered machine and for a terminated machine.
    pub lease_left_seconds: Option<i64>,
    /// The time from the request until now or until the machine's end, in seconds.
    pub age_seconds: u64,
    /// The time at which the machine ended.
    #[schema(value_type = Option<u64>)]
    pub terminated_at: Option<Timestamp>,
    /// The system information that the agent reported.
    #[schema(value_type = Option<Object>)]
    pub system_info: Option<SystemInfo>,
}

/// `GET /machines`: the machines to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListMachines {
    /// Whether to include terminated machines, as long as they are stored (`retention`). Default:
    /// false.
    #[serde(default)]
    pub all: bool,
}

/// `POST /machines`: registers a machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMachine {
    /// The machine's processor.
    #[schema(value_type = String, example = "arm64")]
    pub arch: Arch,
    /// A name for people. Default: the machine's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the machine works for: `builder` or `preview`. Default: `builder`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "builder")]
    pub fleet: Fleet,
}

impl AddMachine {
    /// A builder without a name.
    pub const fn new(arch: Arch) -> Self {
        Self { arch, name: None, fleet: Fleet::Builder }
    }
}

/// The response to `POST /machines`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddedMachine {
    /// The machine's id.
    #[schema(value_type = String)]
    pub id: MachineId,
    /// The content of the machine's `agent.json`. It contains the machine's token, which is shown only
    /// once.
    #[schema(value_type = Object)]
    pub agent_json: serde_json::Value,
}
