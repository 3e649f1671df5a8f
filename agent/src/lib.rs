//! The Stagely agent: it dials out to core, clones, builds, and reports what happened.
//!
//! Core uses three modules of this crate and no more: [`protocol`] (the wire), [`config`] (it
//! writes the `agent.json` of every machine) and [`git`] (it reads `stagely.yaml` at a commit).

pub mod config;
pub mod protocol;

pub mod docker;
pub mod git;
pub mod job;
pub mod mask;
pub mod paths;
pub mod process;
pub mod spool;
