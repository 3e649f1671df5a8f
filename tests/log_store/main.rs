//! Log lines from the agent's spool over the wire to the store. The store holds exactly the lines, in order, once, even
//! if messages are cut, repeated or lost, and parts restart.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod fixtures;

mod appends;
mod limits;

mod operations;
mod transport;
