//! Test jobs on a real Docker engine, with images in a real registry and a server in place of core.
//!
//! The registry is named by `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and `STAGELY_REGISTRY_PASSWORD_FILE`; the engine
//! must be able to pull `busybox`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod setup;

mod core;

mod artifacts;
mod endings;
mod killed;
mod results;
mod uploads;
