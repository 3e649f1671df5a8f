//! Stagely: builds a pull request's container images on machines that live only as long as the
//! build.
//!
//! [`core`] decides, remembers and pays attention to money; [`provider`] starts and ends machines.

pub mod ids;

pub mod cli;
pub mod core;
pub mod manifest;
