//! The coordinator.

pub mod state;

pub mod secrets;
pub mod store;
