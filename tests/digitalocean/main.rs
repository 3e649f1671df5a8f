//! Machines at `DigitalOcean`, against an API that keeps state.
//!
//! Every request, and every answer of the fake, goes through prism, which checks both against `DigitalOcean`'s own
//! description of its API. Where `STAGELY_DIGITALOCEAN_DESCRIPTION` and `STAGELY_PRISM` name none, the fake is
//! asked directly. The test of a whole core needs what `scripts/setup` sets up, as the tests in `tests/e2e` do.

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
