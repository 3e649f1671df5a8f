//! Artifacts of a test job: how an agent uploads them to core.
//!
//! The upload is one tar archive without compression, of regular files with relative names. Its address is
//! `{ARTIFACTS_PATH}/{job_id}`, and all requests have the machine's token as bearer token, the machine's id in
//! [`MACHINE_HEADER`](crate::MACHINE_HEADER), and the digest of the whole archive in [`DIGEST_HEADER`].
//!
//! HEAD answers 200 with the number of bytes that core has of this archive in [`OFFSET_HEADER`]; if that is its whole size, the
//! upload is complete. PUT with `Content-Range: bytes {first}-{last}/{size}` adds a piece of at most
//! [`ARTIFACT_PIECE_BYTES_MAX`] to it. Core answers 200 if the archive is complete, 202 if it wants more, and 409 if the piece
//! begins elsewhere; 202 and 409 have [`OFFSET_HEADER`]. 413 and 507 are final, as are other answers from 400 to 499.

/// Relative to core's base address.
pub const ARTIFACTS_PATH: &str = "/v1/agent/artifacts";

/// The digest of the whole archive.
pub const DIGEST_HEADER: &str = "x-stagely-digest";

/// The number of bytes that core has, from the start of the archive.
pub const OFFSET_HEADER: &str = "upload-offset";

/// The largest piece.
pub const ARTIFACT_PIECE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The most files of one archive.
pub const ARTIFACT_FILES_MAX: u64 = 5_000;

/// The most bytes of the files of one archive. Their headers come on top of that.
pub const ARTIFACT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
