//! Stagely: builds the container images of pull requests, each on a machine launched for that build.
//!
//! [`core`] is the coordinator; [`cli`] has the client commands.

pub mod api;
pub mod config;
pub mod core;

pub mod client;

pub mod cli;
