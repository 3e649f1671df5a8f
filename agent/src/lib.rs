//! The Stagely agent: it dials out to core, clones, builds, and reports what happened.
//!
//! Core uses [`git`], to read `stagely.yaml` at a commit, [`transient`], and, as its clients do, [`proxy`]. `stagely run` and `stagely
//! doctor` ask [`docker`] for this machine's engine, and `stagely validate` asks [`preview`] what a compose file may not have. The program's `main` uses [`run`], [`exec`], [`clean_up`] and the guard.

mod session;

pub use process::{GUARD_COMMAND, Guard, guard_children};
pub use session::{AgentError, AgentExit, run, run_with};
mod clean_up;
pub use clean_up::clean_up;
pub mod exec;
pub mod spot;

pub mod endpoints;
mod tunnel;

mod contact;

mod core_client;
mod pieces;

mod jobs;

pub mod job;
pub mod job_log;
pub mod preview;
pub mod spool;

pub mod docker;
pub mod fingerprint;
pub mod git;

pub mod mask;
mod process;
pub mod proxy;
mod retry;
pub mod transient;
mod websocket;
