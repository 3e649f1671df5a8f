//! Helpers for the tests and benchmarks of all packages. Of these it depends on the protocol alone, so that the
//! agent's tests do not compile core.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

pub mod wait;

pub mod core_process;
pub mod program;
pub mod settings;

pub mod breakpoint;
pub mod browser;
pub mod certificates;
pub mod files;
pub mod ports;
pub mod processes;

pub mod engine;
pub mod git;
pub mod http_proxy;
pub mod imds;
pub mod network;
pub mod previews;
pub mod proxy;
pub mod registry;
pub mod slow_proxy;
