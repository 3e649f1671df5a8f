//! Providers that keep their promises and no more: a token that has launched a machine does not launch another
//! once that one can be seen, terminating what is gone is success, and a list is right in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_state::ProviderName;
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::ids::MachineId;

/// For how long at most a list may lack what is there, and show what is gone. A sweep knows this.
pub(crate) const LIST_GRACE: Duration = Duration::from_mins(3);

/// For how long EC2's list says of a machine that it is gone. Others say nothing of it.
const GONE_SHOWN: Duration = Duration::from_hours(1);

/// One machine's instances, and how it went.
struct CloudMachine {
    provider: ProviderName,
    /// What the owner pays for: from when on the list shows each. The first one has the agent.
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
    /// Machines that are there although core may have been told otherwise: by a request of a crashed core that
    /// came late, or because they could not be seen when they were to be ended.
    pub(crate) strays: BTreeSet<MachineId>,
    /// Requests of a core that has crashed, still on their way here.
    pub(crate) travelling: Vec<(MachineId, ProviderName)>,
    /// What has passed since the beginning, whatever core's clock says.
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

    /// Starts it a second time, as another candidate, where the first cannot be seen yet.
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

    /// What the owner pays for.
    pub(crate) fn alive(&self) -> impl Iterator<Item = MachineId> {
        self.machines
            .iter()
            .filter(|(_, entry)| !entry.instances.is_empty())
            .map(|(machine, _)| *machine)
    }

    /// Who has the machine.
    pub(crate) fn provider_of(&self, machine: MachineId) -> Option<ProviderName> {
        self.machines.get(&machine).map(|entry| entry.provider)
    }

    /// Whether an instance cannot be found by its tags yet.
    pub(crate) fn is_hidden(&self, machine: MachineId) -> bool {
        let entry = self.machines.get(&machine);
        entry.is_some_and(|entry| entry.instances.iter().any(|shown| *shown > self.elapsed))
    }

    /// Whether the cloud has taken the machine back.
    pub(crate) fn has_taken_back(&self, machine: MachineId) -> bool {
        let gone = self.machines.get(&machine).and_then(|entry| entry.gone.as_ref());
        gone.is_some_and(|gone| gone.taken_back)
    }

    /// Ends all instances, or those that can be found. True if the agent goes with them.
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

    /// All that the list of `provider` has now; `is_exact` as it will be in the end.
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
    /// For how long the list shows it all the same.
    pub(crate) lag: Duration,
    pub(crate) taken_back: bool,
}
