//! GitHub: what it delivers, what core asks it, and what it is told.

mod client;
pub mod hook;
mod payload;
pub(crate) mod reconcile;

pub use client::{FailedDelivery, Github, GithubError, GithubHealth, Permission};
