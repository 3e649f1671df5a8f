//! Previews on a real Docker engine with Docker Compose, with images in a real registry, and git over HTTP.
//!
//! The registry is named by `STAGELY_REGISTRY`, `STAGELY_REGISTRY_USERNAME` and `STAGELY_REGISTRY_PASSWORD_FILE`; the engine
//! must be able to pull `debian:13-slim` and `busybox`.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

mod setup;

mod compose;
mod faults;
mod features;
mod forbidden;
mod single_image;
mod tested;
mod updates;

mod core;

mod commands;
mod logs;
mod sleep;
mod stay;

mod unprivileged;
