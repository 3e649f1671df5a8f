//! Machines on Amazon EC2: the provider and whole runs, against moto, a server of EC2's API that others wrote,
//! and a proxy in front of it for what that never does.
//!
//! Needs what `scripts/setup` sets up: moto, and for whole runs what the tests in `tests/e2e` need.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod moto;
mod proxy;

mod launches;

mod faults;

mod doctor;

mod hypervisor;
mod runs;

/// The program under test.
const STAGELY: &str = env!("CARGO_BIN_EXE_stagely");
