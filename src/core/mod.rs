//! The coordinator.

pub mod plan;
pub mod state;

pub mod secrets;
pub mod store;
