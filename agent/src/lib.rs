//! The Stagely agent: it dials out to core, clones, builds, and reports what happened.
//!
//! Core uses four modules of this crate and no more: [`protocol`] (the wire), [`config`] (it writes
//! the `agent.json` of every machine), [`git`] (it reads `stagely.yaml` at a commit) and [`paths`]
//! (it checks a build's paths before a machine is paid for). `stagely doctor` asks [`docker`] what this
//! machine can do.

pub mod config;
pub mod protocol;

mod session;

pub use session::{AgentError, AgentExit, run, run_watching};
pub mod exec;
pub mod spot;

mod contact;

mod jobs;

pub mod job;
pub mod spool;

pub mod docker;
pub mod fingerprint;
pub mod git;
pub mod paths;

pub mod mask;
mod process;

pub use process::MACHINE_VARIABLE;
