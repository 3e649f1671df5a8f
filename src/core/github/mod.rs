//! GitHub: what it delivers, what core asks it, and what it is told.

mod client;
pub mod hook;

pub(crate) mod comment;
pub(crate) mod excerpt;
mod markdown;
mod shown;
pub(crate) mod statuses;

pub use client::{FailedDelivery, Github, GithubError, GithubHealth, Permission};

pub(crate) use shown::{Shown, seconds};
