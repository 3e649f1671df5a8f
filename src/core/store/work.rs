//! Work during which core may be killed, and its key in the store.

use stagely_state::EffectId;
use stagely_state::ids::RunId;

/// Work that reads what somebody else wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// An effect of the outbox.
    Effect(EffectId),
    /// Comparing the commit of a run with those that its preview showed before.
    Comparison(RunId),
}

impl Work {
    pub(super) const fn key(self) -> (bool, u128) {
        match self {
            Self::Effect(id) => (false, id.0 as u128),
            Self::Comparison(run) => (true, run.bits()),
        }
    }

    pub(super) fn of_key((is_comparison, id): (bool, u128)) -> Self {
        match u64::try_from(id) {
            Ok(id) if !is_comparison => Self::Effect(EffectId(id)),
            _ => Self::Comparison(RunId::from_bits(id)),
        }
    }
}
