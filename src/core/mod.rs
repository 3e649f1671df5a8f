//! The coordinator.

pub mod state;
