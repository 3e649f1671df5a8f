//! Why lines cannot be kept or sent.

use std::io;
use std::path::{Path, PathBuf};

use stagely_protocol::FailureReason;
use thiserror::Error;

/// Why lines cannot be kept or sent.
#[derive(Debug, Error)]
pub enum SpoolError {
    #[error("no space is left for the log")]
    DiskFull,
    #[error("cannot use the log's file {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Core asks for a line that it has acknowledged, or that is not written.
    #[error("core asks for line {wanted} of the log, which has lines {first} to {end}")]
    NoLine {
        wanted: u64,
        /// The number of the first line on disk.
        first: u64,
        /// The number after that of the last line.
        end: u64,
    },
    /// The log cannot be delivered, so no line is accepted any more.
    #[error("the log was given up")]
    Abandoned,
}

impl SpoolError {
    pub(super) fn new(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    pub const fn reason(&self) -> FailureReason {
        match self {
            Self::DiskFull => FailureReason::DiskFull,
            Self::Io { .. } | Self::NoLine { .. } | Self::Abandoned => FailureReason::Internal,
        }
    }
}
