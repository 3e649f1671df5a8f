//! Archives of a preview's volumes: where an agent stores them in core, and how it gets them back.
//!
//! `PUT {ARCHIVES_PATH}/{preview_id}` stores the body, of unknown length, and answers [`StoredArchive`]. `GET
//! {ARCHIVES_PATH}/{preview_id}/{digest}` returns it. Both have the machine's token as bearer token and the machine's id in
//! [`MACHINE_HEADER`](crate::MACHINE_HEADER). A body that breaks off is not stored. Core does not look into archives.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Relative to core's base address.
pub const ARCHIVES_PATH: &str = "/v1/agent/archives";

/// The answer to a stored archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredArchive {
    /// Of the body.
    pub digest: Digest,
}
