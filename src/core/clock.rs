//! The system's clock, and the ids that are made from it. Nothing else in core asks for the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

use stagely_state::Timestamp;
use stagely_state::ids::Id;
use ulid::Ulid;

/// The system's clock, in milliseconds.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Makes a new id from the clock and the system's randomness.
pub fn new_id<I: Id>() -> I {
    I::from_bits(new_bits())
}

/// The bits of a new id.
pub fn new_bits() -> u128 {
    Ulid::generate().0
}
