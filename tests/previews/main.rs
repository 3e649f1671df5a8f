//! Requests to previews: a real core, a real agent and real apps, in this process.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod app;
mod world;

mod access;
mod certificates;
mod hostile;
mod recorder;
mod states;
mod traffic;
mod tunnel;
mod upgrades;
