//! What GitHub delivers: a delivery's signature, its id, and its event.

pub(crate) mod delivery;
pub(crate) mod delivery_id;
pub(crate) mod event;

pub(crate) mod command;

pub(crate) mod parse;
mod signature;
