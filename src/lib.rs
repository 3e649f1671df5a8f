//! Stagely: builds a pull request's container images on machines that live only as long as the
//! build.
//!
//! [`core`] decides, remembers and pays attention to money; [`provider`] starts and ends machines;
//! [`cli`] is what people type.

pub mod ids;

pub mod api;
pub mod config;
pub mod manifest;

pub mod core;

pub mod provider;

pub mod client;

pub mod cli;
