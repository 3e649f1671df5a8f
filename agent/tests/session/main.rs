//! An agent and a core that exchange messages over a real WebSocket. The jobs fail or hang in their clone, so they need
//! no Docker engine, except for one that pushes; `docker` says what it needs.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod harness;

mod connection;
mod exit;
mod jobs;
mod machine;
