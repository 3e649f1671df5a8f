//! From pull request to comment: conversations between a GitHub that keeps state and a real `stagely core`.
//!
//! Machines are real to core and stand-ins here (see [`machines`]), so that a test says when and how a
//! build ends; what they push goes to the real registry. Whatever core asks of GitHub is checked against
//! GitHub's own description.
//!
//! Needs root and what `scripts/setup` sets up, as the tests in `tests/e2e` do.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod conversation;
mod fake;
mod machines;

mod pulls;

mod forks;

mod deliveries;
mod misfortunes;

mod credentials;
mod many;

#[allow(dead_code, reason = "other test programs use the rest")]
#[path = "../e2e/core.rs"]
mod core;
#[path = "../../agent/tests/support/mod.rs"]
mod git;
#[allow(dead_code, reason = "other test programs use the rest")]
#[path = "../e2e/host.rs"]
mod host;
#[allow(dead_code, reason = "other test programs use the rest")]
#[path = "../e2e/registry.rs"]
mod registry;
