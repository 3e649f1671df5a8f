//! Whole jobs against a real Docker engine, a real registry with a password, and git over HTTP.
//!
//! The registry is named by `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and
//! `STAGELY_REGISTRY_PASSWORD_FILE`; the engine must be able to pull `debian:13-slim` and `busybox`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod setup;

mod builds;
mod caches;
mod failures;
mod merges;
mod output;
mod stopping;
mod unavailable;
