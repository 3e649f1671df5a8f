//! `/sweep`: differences between the providers' machines and the records.

use serde::{Deserialize, Serialize};
use stagely_state::ProviderName;
use stagely_state::ids::MachineId;
use utoipa::ToSchema;

/// `/sweep`: the comparison of the providers' machines with the records.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SweepView {
    /// Whether the actions are only shown, not taken.
    pub dry_run: bool,
    /// One entry for each provider.
    pub providers: Vec<ProviderSweepView>,
}

/// The comparison for one provider.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProviderSweepView {
    /// The provider.
    #[schema(value_type = String)]
    pub provider: ProviderName,
    /// Why the provider could not be queried, for people. The other fields are then empty.
    pub error: Option<String>,
    /// The number of live machines in the provider's list.
    pub listed: usize,
    /// The number of live machines of this provider in the records.
    pub recorded: usize,
    /// The machines whose entries in the list and in the records differ.
    pub machines: Vec<SweptMachine>,
}

/// A machine whose entries in the provider's list and in the records differ.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SweptMachine {
    /// The machine's id.
    #[schema(value_type = String)]
    pub machine_id: MachineId,
    /// The action.
    pub action: SweepAction,
    /// The reason, for people.
    pub reason: String,
    /// Whether the action was taken.
    pub done: bool,
    /// Why the action failed, for people. It is tried again.
    pub error: Option<String>,
}

/// The action that a sweep takes for a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SweepAction {
    /// The machine is ended.
    End,
    /// The machine counts as lost: its work moves to another machine, and its remains are ended.
    Forget,
    /// The machine is checked again before an action is taken.
    #[serde(rename = "look-again")]
    CheckAgain,
    /// No action.
    None,
}
