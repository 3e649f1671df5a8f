//! Whole runs through the real program: `stagely core` and its agents as processes, a real Docker
//! engine, a real registry with a password, git over HTTP.
//!
//! Needs root, and what `scripts/setup` sets up: a Docker engine that can pull `busybox`,
//! `debian:13-slim` and `gcc:14`, and a registry that `STAGELY_REGISTRY`,
//! `STAGELY_REGISTRY_USERNAME` and `STAGELY_REGISTRY_PASSWORD_FILE` name.
//!
//! Builds stop at breakpoints (see [`stagely_test_support::breakpoint`]) instead of taking some time, so no test
//! depends on how fast the machine is.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod builds;
mod failures;

mod caches;
mod multi_platform;
mod variants;
mod wrong_images;

mod clones;
mod registries;

mod connections;
mod crashes;
mod engines;

mod isolation;
mod preview_kills;
mod preview_machines;
mod queue;
mod registered_machines;

mod agents;
mod api;
mod budget;
mod pages;
mod previews;
mod retention;
mod sweep;
mod tested_runs;

const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");
