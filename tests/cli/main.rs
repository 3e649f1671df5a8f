//! Runs the commands as users do, and checks their output and exit codes.
//!
//! `stagely run` uses the real Docker Engine and the real registry that `scripts/setup` leaves in
//! `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and `STAGELY_REGISTRY_PASSWORD_FILE`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod person;

mod caches;
mod cases;
mod commands;
mod environment;
mod laptop;
mod logins;
mod previews;
mod runs;
mod secrets;
mod servers;
