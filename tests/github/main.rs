//! From pull request to comment: conversations between a GitHub that keeps state and a real `stagely core`.
//!
//! Machines are simulated (see [`machines`]), so that a test decides when and how a build ends; images go to the
//! real registry. Each of core's requests to GitHub is checked against GitHub's own description.
//!
//! Needs root and what `scripts/setup` sets up, as the tests in `tests/e2e` do.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod conversation;
mod fake;
mod machines;

mod pulls;

mod forks;

mod life;
mod previews;

mod deliveries;
mod misfortunes;

mod credentials;
mod many;

const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");
