//! Stagely: builds a pull request's container images on machines that live only as long as the
//! build.
//!
//! [`core`] decides, remembers and pays attention to money; [`cli`] is what people type.

pub mod api;
pub mod config;
pub mod core;

pub mod client;

pub mod cli;
