//! The Stagely agent: it dials out to core, clones, builds, and reports what happened.
//!
//! Core uses four modules of this crate and no more: [`protocol`] (the wire), [`config`] (it
//! writes the `agent.json` of every machine), [`git`] (it reads `stagely.yaml` at a commit) and
//! [`paths`] (`stagely validate` looks for contexts and Dockerfiles as an agent does).

pub mod config;
pub mod protocol;

pub mod git;
pub mod paths;
