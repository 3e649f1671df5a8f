//! Compares a provider's list with the records. The sweep acts on the verdicts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::MachineId;
use crate::{Machine, MachineKind, MachineState, ProviderName, Timestamp};

/// A machine in a provider's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub machine: MachineId,
    pub state: ListedState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedState {
    /// It runs or starts, and costs money.
    Live,
    /// It has ended or is ending.
    Gone {
        /// Whether the cloud took it back.
        taken_back: bool,
    },
}

/// How long a machine may outlive its lease without a warning. Its termination takes time, and core may have been down.
pub const OVERDUE_AFTER: Duration = Duration::from_mins(5);

/// What the sweep does about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has no record at this provider, so it is terminated. It is not one that starts, because its record is made
    /// before the launch.
    EndUnknown,
    /// Its open record is of another provider, or of a registered machine. It may do live work, so nothing is done
    /// until the record is closed, at the latest at the end of its lease.
    Elsewhere,
    /// It is recorded as terminated and still there, so the state terminates it again.
    Returned,
    /// It has ended, and its agent is disconnected.
    Gone {
        /// Whether the cloud took it back.
        taken_back: bool,
    },
    /// It is not in the list, and its agent is disconnected. A single list proves nothing.
    Missing,
}

/// A provider's list, and the records to compare it with.
pub struct Comparison<'a> {
    pub provider: ProviderName,
    /// How long a running machine may be missing from the list.
    pub grace: Duration,
    pub listed: &'a [Listed],
    /// All recorded machines. They are read after the list, so each launched machine of the list has its record.
    pub machines: &'a BTreeMap<MachineId, Machine>,
    /// The recorded machines that are not terminated.
    pub live: Vec<&'a Machine>,
    /// When core started. The grace of machines that an earlier core has launched begins here.
    pub started_at: Timestamp,
    /// When the list was requested. Later events need not be in it.
    pub asked_at: Timestamp,
    /// The time of the comparison. Records with a later time are from before the clock was set back.
    pub compared_at: Timestamp,
}

impl Comparison<'_> {
    /// The verdict about each machine that needs one.
    pub fn verdicts(&self) -> BTreeMap<MachineId, Verdict> {
        let listed = self.by_machine();
        let expected = self.live.iter().filter(|machine| self.is_expected(machine));
        let missing = expected.filter(|machine| !listed.contains_key(&machine.id));
        let missing = missing.map(|machine| (machine.id, Verdict::Missing));
        let of_listed =
            listed.iter().filter_map(|(id, state)| Some((*id, self.of_listed(*id, *state)?)));
        of_listed.chain(missing).collect()
    }

    /// Listed machines that have outlived their lease by [`OVERDUE_AFTER`].
    pub fn overdue(&self) -> impl Iterator<Item = MachineId> {
        let live = self.listed.iter().filter(|listed| listed.state == ListedState::Live);
        live.filter_map(|listed| {
            let lease = self.machines.get(&listed.machine)?.lease_until?;
            (self.asked_at > lease.after(OVERDUE_AFTER)).then_some(listed.machine)
        })
    }

    /// The state of each listed machine. A machine with a failed earlier candidate is listed twice; it is live if one
    /// of the entries is.
    fn by_machine(&self) -> BTreeMap<MachineId, ListedState> {
        let mut states = BTreeMap::new();
        for listed in self.listed {
            let state = states.entry(listed.machine).or_insert(listed.state);
            if listed.state == ListedState::Live {
                *state = ListedState::Live;
            }
        }
        states
    }

    fn of_listed(&self, id: MachineId, state: ListedState) -> Option<Verdict> {
        let record = self.machines.get(&id);
        match (state, record) {
            (ListedState::Live, None) => Some(Verdict::EndUnknown),
            (ListedState::Live, Some(record)) => self.of_live(record),
            (ListedState::Gone { taken_back }, Some(record)) => {
                is_lost(record, self.provider).then_some(Verdict::Gone { taken_back })
            }
            (ListedState::Gone { .. }, None) => None,
        }
    }

    fn of_live(&self, record: &Machine) -> Option<Verdict> {
        let is_closed = record.state.is_terminated();
        if !is_own(record, self.provider) {
            return Some(if is_closed { Verdict::EndUnknown } else { Verdict::Elsewhere });
        }
        // A machine that ended after the request may still be in the list.
        let ended_since = |at| (self.asked_at..=self.compared_at).contains(&at);
        let has_ended_since = record.terminated_at.is_some_and(ended_since);
        (is_closed && !has_ended_since).then_some(Verdict::Returned)
    }

    /// Whether the machine would be in the list if it existed, because the grace since its last contact is over.
    fn is_expected(&self, machine: &Machine) -> bool {
        let since = machine.contact_at.max(self.started_at);
        is_lost(machine, self.provider) && self.asked_at > since.after(self.grace)
    }
}

fn is_own(machine: &Machine, provider: ProviderName) -> bool {
    machine.kind == MachineKind::Launched && machine.provider == provider
}

/// Whether `provider` has confirmed the machine, its end was not requested, and its agent is disconnected. A connected
/// machine does live work, whatever a list says.
pub fn is_lost(machine: &Machine, provider: ProviderName) -> bool {
    use MachineState::{Booting, Busy, Ready};
    let is_confirmed = matches!(machine.state, Booting | Ready | Busy { .. });
    is_own(machine, provider) && is_confirmed && !machine.connected
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Arch;

    use super::*;
    use crate::Attempt;
    use crate::ids::JobId;
    use MachineState::{Booting, Busy, Ready, Requested, Terminated, Terminating};
    use Verdict::{Elsewhere, EndUnknown, Missing, Returned};

    const GRACE: Duration = Duration::from_mins(2);
    const LONG_AGO: Timestamp = Timestamp(0);
    const ASKED_AT: Timestamp = Timestamp(10_000_000);
    const RECENTLY: Timestamp = Timestamp(ASKED_AT.0 - 60_000);

    const LIVE: Option<ListedState> = Some(ListedState::Live);
    const GONE: Option<ListedState> = Some(ListedState::Gone { taken_back: false });
    const TAKEN: Option<ListedState> = Some(ListedState::Gone { taken_back: true });
    const ABSENT: Option<ListedState> = None;

    fn id() -> MachineId {
        MachineId::from_bits(1)
    }

    fn busy() -> MachineState {
        Busy { attempt: Attempt { job: JobId::from_bits(1), number: 1 } }
    }

    fn record(state: MachineState, connected: bool, contact_at: Timestamp) -> Machine {
        let machine = Machine::new(id(), MachineKind::Launched, Arch::Amd64, LONG_AGO);
        let terminated_at = state.is_terminated().then_some(contact_at);
        Machine {
            state,
            connected,
            contact_at,
            terminated_at,
            provider: ProviderName::Aws,
            ..machine
        }
    }

    fn on_record(machine: Option<Machine>) -> BTreeMap<MachineId, Machine> {
        machine.into_iter().map(|machine| (machine.id, machine)).collect()
    }

    fn live(machines: &BTreeMap<MachineId, Machine>) -> Vec<&Machine> {
        machines.values().filter(|machine| !machine.state.is_terminated()).collect()
    }

    /// The verdict of AWS's list on the one machine.
    fn verdict(
        listed: &[ListedState],
        machine: Option<Machine>,
        started_at: Timestamp,
    ) -> Option<Verdict> {
        let listed: Vec<Listed> =
            listed.iter().map(|state| Listed { machine: id(), state: *state }).collect();
        let machines = on_record(machine);
        let comparison = Comparison {
            provider: ProviderName::Aws,
            grace: GRACE,
            listed: &listed,
            machines: &machines,
            live: live(&machines),
            started_at,
            asked_at: ASKED_AT,
            compared_at: ASKED_AT.after(Duration::from_secs(9)),
        };
        let verdicts = comparison.verdicts();
        assert!(verdicts.len() <= 1, "{verdicts:?}");
        verdicts.get(&id()).copied()
    }

    #[test]
    fn nothing_but_positive_evidence_ends_or_forgets_a_machine() {
        let gone = Some(Verdict::Gone { taken_back: false });
        let taken = Some(Verdict::Gone { taken_back: true });
        let none = None;
        // Record, connected; then the verdict on a list in which it is live, gone, taken back, and absent: long
        // after the last contact, and within the grace.
        let table = [
            (Requested, false, [none, none, none, none], none),
            (Booting, false, [none, gone, taken, Some(Missing)], none),
            (Ready, false, [none, gone, taken, Some(Missing)], none),
            (Ready, true, [none, none, none, none], none),
            (busy(), false, [none, gone, taken, Some(Missing)], none),
            (busy(), true, [none, none, none, none], none),
            (Terminating, false, [none, none, none, none], none),
            (Terminating, true, [none, none, none, none], none),
            (Terminated, false, [Some(Returned), none, none, none], none),
        ];
        for (state, connected, late, absent_within_grace) in table {
            for (listed, expected) in [LIVE, GONE, TAKEN, ABSENT].into_iter().zip(late) {
                let listed: Vec<ListedState> = listed.into_iter().collect();
                let case = format!("{state:?} {connected} {listed:?}");
                let of = |contact_at| {
                    verdict(&listed, Some(record(state, connected, contact_at)), LONG_AGO)
                };
                assert_eq!(of(LONG_AGO), expected, "{case}");
                // Only machines that are not listed need a grace.
                let within = if listed.is_empty() { absent_within_grace } else { expected };
                assert_eq!(of(RECENTLY), within, "{case}, within the grace");
                // After a start of core the grace begins anew.
                let fresh = verdict(&listed, Some(record(state, connected, LONG_AGO)), RECENTLY);
                assert_eq!(fresh, within, "{case}, of a fresh core");
            }
        }
    }

    #[test]
    fn a_machine_without_a_record_is_ended_whenever_it_is_there() {
        for started_at in [LONG_AGO, RECENTLY] {
            assert_eq!(verdict(&[ListedState::Live], None, started_at), Some(EndUnknown));
            assert_eq!(verdict(&[ListedState::Gone { taken_back: true }], None, started_at), None);
            assert_eq!(verdict(&[], None, started_at), None);
        }
    }

    #[test]
    fn events_after_the_request_of_a_list_are_no_evidence() {
        let later = Timestamp(ASKED_AT.0 + 1);
        assert_eq!(
            verdict(&[ListedState::Live], Some(record(Terminated, false, later)), LONG_AGO),
            None,
            "it ended after the question"
        );
        let at_once = |contact_at| {
            let machines = on_record(Some(record(Booting, false, contact_at)));
            Comparison {
                provider: ProviderName::Aws,
                grace: Duration::ZERO,
                listed: &[],
                machines: &machines,
                live: live(&machines),
                started_at: LONG_AGO,
                asked_at: ASKED_AT,
                compared_at: ASKED_AT.after(Duration::from_secs(9)),
            }
            .verdicts()
            .len()
        };
        assert_eq!(
            (at_once(ASKED_AT), at_once(later)),
            (0, 0),
            "it was confirmed after the question"
        );
        assert_eq!(at_once(RECENTLY), 1, "a list without grace is believed at once");
    }

    #[test]
    fn a_machine_that_is_listed_twice_is_there_if_one_of_them_is() {
        let gone = ListedState::Gone { taken_back: true };
        for listed in [[ListedState::Live, gone], [gone, ListedState::Live]] {
            assert_eq!(verdict(&listed, Some(record(busy(), false, LONG_AGO)), LONG_AGO), None);
        }
    }

    #[test]
    fn a_machine_of_another_provider_is_left_alone_while_its_record_is_open() {
        let other =
            |state| Machine { provider: ProviderName::Local, ..record(state, false, LONG_AGO) };
        let own =
            |state| Machine { kind: MachineKind::Registered, ..record(state, false, LONG_AGO) };
        for open in [Requested, Booting, busy(), Terminating] {
            for machine in [other(open), own(open)] {
                assert_eq!(
                    verdict(&[ListedState::Live], Some(machine.clone()), LONG_AGO),
                    Some(Elsewhere)
                );
                assert_eq!(verdict(&[], Some(machine.clone()), LONG_AGO), None);
                let gone = ListedState::Gone { taken_back: false };
                assert_eq!(verdict(&[gone], Some(machine), LONG_AGO), None);
            }
        }
        for machine in [other(Terminated), own(Terminated)] {
            assert_eq!(verdict(&[ListedState::Live], Some(machine), LONG_AGO), Some(EndUnknown));
        }
    }

    #[test]
    fn a_machine_that_outlives_its_lease_is_overdue_while_it_is_listed() {
        let overdue = |lease_until, listed: &[ListedState]| {
            let machine =
                Machine { lease_until: Some(lease_until), ..record(busy(), true, LONG_AGO) };
            let listed: Vec<Listed> =
                listed.iter().map(|state| Listed { machine: id(), state: *state }).collect();
            let machines = on_record(Some(machine));
            Comparison {
                provider: ProviderName::Aws,
                grace: GRACE,
                listed: &listed,
                machines: &machines,
                live: live(&machines),
                started_at: LONG_AGO,
                asked_at: ASKED_AT,
                compared_at: ASKED_AT.after(Duration::from_secs(9)),
            }
            .overdue()
            .count()
        };
        assert_eq!(overdue(LONG_AGO, &[ListedState::Live]), 1);
        assert_eq!(overdue(RECENTLY, &[ListedState::Live]), 0, "its end is under way");
        assert_eq!(overdue(LONG_AGO, &[]), 0);
        assert_eq!(overdue(LONG_AGO, &[ListedState::Gone { taken_back: false }]), 0);
    }
}
