//! Providers with the weakest allowed behaviour. A launch with a used token gives no second machine once the first is
//! visible, terminating a machine that is gone succeeds, and lists become right after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_state::ProviderName;
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;

/// How long a list may lack a running machine or show one that is gone. Sweeps use it as their grace.
pub(crate) const LIST_GRACE: Duration = Duration::from_mins(3);

/// How long EC2's list has a terminated machine. Other lists do not have it.
const GONE_SHOWN: Duration = Duration::from_hours(1);

/// A machine's instances, and its end.
struct CloudMachine {
    provider: ProviderName,
    /// For each running instance, when the list shows it. The first one has the agent.
    instances: Vec<Duration>,
    has_agent: bool,
    gone: Option<Gone>,
}

struct Gone {
    at: Duration,
    /// The list shows it as live until then.
    shown_at: Duration,
    taken_back: bool,
}

#[derive(Default)]
pub(crate) struct Cloud {
    machines: BTreeMap<MachineId, CloudMachine>,
    /// Machines that run although core may have their end recorded: launched by a late request of a crashed core, or
    /// not visible when they were terminated.
    pub(crate) strays: BTreeSet<MachineId>,
    /// Launch requests of a crashed core that have not arrived.
    pub(crate) in_transit: Vec<(MachineId, ProviderName)>,
    /// The time since the beginning. Core's clock may be set back.
    elapsed: Duration,
}

impl Cloud {
    pub(crate) fn pass(&mut self, time: Duration) {
        self.elapsed += time;
    }

    /// Starts the machine; the list shows it after `lag`.
    pub(crate) fn launch(&mut self, machine: MachineId, provider: ProviderName, lag: Duration) {
        let instances = vec![self.elapsed + lag];
        let entry = CloudMachine { provider, instances, has_agent: true, gone: None };
        assert!(self.machines.insert(machine, entry).is_none(), "{machine} is launched again");
    }

    /// Starts a second instance if the first is not visible yet.
    pub(crate) fn duplicate(&mut self, machine: MachineId, lag: Duration) -> bool {
        let elapsed = self.elapsed;
        let entry = self.machines.get_mut(&machine);
        let Some(entry) =
            entry.filter(|entry| entry.instances.iter().any(|shown| *shown > elapsed))
        else {
            return false;
        };
        entry.instances.push(elapsed + lag);
        true
    }

    pub(crate) fn has_launched(&self, machine: MachineId) -> bool {
        self.machines.contains_key(&machine)
    }

    pub(crate) fn is_alive(&self, machine: MachineId) -> bool {
        self.machines.get(&machine).is_some_and(|entry| !entry.instances.is_empty())
    }

    /// The running machines.
    pub(crate) fn alive(&self) -> impl Iterator<Item = MachineId> {
        self.machines
            .iter()
            .filter(|(_, entry)| !entry.instances.is_empty())
            .map(|(machine, _)| *machine)
    }

    pub(crate) fn provider_of(&self, machine: MachineId) -> Option<ProviderName> {
        self.machines.get(&machine).map(|entry| entry.provider)
    }

    /// Whether an instance is not visible yet.
    pub(crate) fn is_hidden(&self, machine: MachineId) -> bool {
        let entry = self.machines.get(&machine);
        entry.is_some_and(|entry| entry.instances.iter().any(|shown| *shown > self.elapsed))
    }

    /// Whether the cloud has taken the machine back.
    pub(crate) fn has_taken_back(&self, machine: MachineId) -> bool {
        let gone = self.machines.get(&machine).and_then(|entry| entry.gone.as_ref());
        gone.is_some_and(|gone| gone.taken_back)
    }

    /// Ends all instances, or only the visible ones. Returns true if the agent ends with them.
    pub(crate) fn end(&mut self, machine: MachineId, only_found: bool, end: End) -> bool {
        let elapsed = self.elapsed;
        let Some(entry) = self.machines.get_mut(&machine) else { return true };
        let is_first_hidden = entry.instances.first().is_some_and(|shown| *shown > elapsed);
        let agent_stays = only_found && entry.has_agent && is_first_hidden;
        entry.instances.retain(|shown| only_found && *shown > elapsed);
        entry.has_agent = agent_stays;
        if entry.instances.is_empty() {
            self.strays.remove(&machine);
            let shown_at = elapsed + end.lag;
            let gone = Gone { at: elapsed, shown_at, taken_back: end.taken_back };
            entry.gone.get_or_insert(gone);
        } else {
            self.strays.insert(machine);
        }
        !agent_stays
    }

    /// The list of `provider`. With `is_exact`, without lag.
    pub(crate) fn list(&self, provider: ProviderName, is_exact: bool) -> Vec<Listed> {
        let machines = self.machines.iter().filter(|(_, entry)| entry.provider == provider);
        let shown = machines.filter_map(|(machine, entry)| {
            Some(Listed { machine: *machine, state: self.shown(entry, is_exact)? })
        });
        shown.collect()
    }

    fn shown(&self, entry: &CloudMachine, is_exact: bool) -> Option<ListedState> {
        let now = self.elapsed;
        match &entry.gone {
            _ if !entry.instances.is_empty() => {
                let is_shown = is_exact || entry.instances.iter().any(|shown| *shown <= now);
                is_shown.then_some(ListedState::Live)
            }
            Some(gone) if !is_exact && now < gone.shown_at => Some(ListedState::Live),
            Some(gone) => {
                let taken_back = gone.taken_back;
                let is_shown = entry.provider == ProviderName::Aws && now < gone.at + GONE_SHOWN;
                is_shown.then_some(ListedState::Gone { taken_back })
            }
            None => None,
        }
    }
}

/// How a machine ends.
#[derive(Clone, Copy, Default)]
pub(crate) struct End {
    /// How long the list still shows it.
    pub(crate) lag: Duration,
    pub(crate) taken_back: bool,
}
