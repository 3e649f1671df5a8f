//! GitHub: what it delivers, what core asks it, and what it is told.

mod api;
mod app;
mod client;
mod credentials;
mod delivery_id;
mod error;
pub mod hook;
mod limits;
mod payload;
pub(crate) mod reconcile;

pub(crate) mod comment;
pub(crate) mod excerpt;
mod markdown;
mod shown;
pub(crate) mod statuses;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

pub use client::{FailedDelivery, Github, GithubHealth, Permission};
pub use error::GithubError;

pub(crate) use delivery_id::delivery_id;

pub(crate) use shown::{Shown, seconds};
