//! What GitHub delivers: the signature of a delivery, its id, and its event.

mod delivery_id;
pub mod event;

pub(crate) use delivery_id::delivery_id;
