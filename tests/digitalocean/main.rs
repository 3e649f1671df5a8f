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
