//! Machines at `DigitalOcean`, against a fake of its API that keeps state.
//!
//! All requests and responses go through prism, which checks them against `DigitalOcean`'s own description of its API.
//! Without `STAGELY_DIGITALOCEAN_DESCRIPTION` and `STAGELY_PRISM` requests go to the fake directly. Whole runs need the
//! same as the tests in `tests/e2e`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod launches;

mod limits;

mod lists;

mod offers;

mod whole;

mod checked;
mod fake;
mod world;

/// The program under test.
const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");
