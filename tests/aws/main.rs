//! Machines on Amazon EC2: the provider and whole runs, against moto, a server of EC2's API, and a proxy in front of
//! it for errors that moto never returns.
//!
//! `scripts/setup` installs moto. Whole runs need the same as the tests in `tests/e2e`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod moto;
mod proxy;

mod launches;
mod spot_prices;

mod faults;

mod doctor;

mod hypervisor;
mod runs;
mod tested;

/// The program under test.
const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");
