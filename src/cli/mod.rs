//! The client commands.

pub mod schema;
pub mod validate;
