//! Why a build's layers did not come from the cache, and the fingerprint that this is found out with.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// The longest [`Fingerprint`], in bytes.
pub const FINGERPRINT_BYTES_MAX: usize = 768 * 1024;

/// The most changed files that a [`MissCause::Files`] names.
pub const CHANGED_FILES_MAX: usize = 20;

/// The first step of a build that did not come from the cache. The steps after it in its stage were built
/// again as a consequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMiss {
    /// `BuildKit`'s name of the step: `[3/5] COPY src ./src`.
    pub step: String,
    pub cause: MissCause,
}

/// Why a step did not come from the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MissCause {
    /// No cache could be imported: none exists yet, or it could not be read.
    NoCache,
    /// A cache was imported, and no earlier build's fingerprint came with the message: nothing can be compared.
    NotRecorded,
    /// The instruction is new or was changed.
    Instruction,
    /// Build arguments were changed.
    BuildArgs { names: Vec<String> },
    /// The base image was changed. Both values are references with digests.
    BaseImage { was: String, is: String },
    /// Files that the step copies were changed.
    Files {
        count: usize,
        /// The first of them by path, at most [`CHANGED_FILES_MAX`].
        files: Vec<ChangedFile>,
    },
    /// Everything that Stagely compares is unchanged. Either the cache does not hold the step any more, or
    /// something that is not compared was changed: a secret argument, a file that ADD downloads, a folder's
    /// mode, or a file of a context that is too large to read.
    Unknown,
}

/// A changed file of the context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedFile {
    /// Relative to the context.
    pub path: String,
    pub change: FileChange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileChange {
    Added,
    /// In content or mode.
    Changed,
    Removed,
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

impl fmt::Display for MissCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache => f.write_str("no cache of this build could be imported"),
            Self::NotRecorded => f.write_str(
                "core has no record of the build that wrote the cache, so nothing can be compared",
            ),
            Self::Instruction => f.write_str("the instruction is new or was changed"),
            Self::BuildArgs { names } => write!(f, "build arguments changed: {}", names.join(", ")),
            Self::BaseImage { was, is } => write!(f, "the base image changed from {was} to {is}"),
            Self::Files { count, files } => {
                let shown: Vec<String> =
                    files.iter().map(|file| format!("{} ({})", file.path, file.change)).collect();
                let more = match count.saturating_sub(files.len()) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                write!(f, "copied files are not what they were: {}{more}", shown.join(", "))
            }
            Self::Unknown => f.write_str(
                "nothing that Stagely compares is different, so the cache may not hold the step any \
                 more (secret arguments, what ADD fetches, modes of folders and very large contexts \
                 are not compared)",
            ),
        }
    }
}

/// The inputs of a build: digests of its context's files, its instructions, arguments and base images.
/// Only agents read the content; core stores it with the cache and sends it with the next build.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        if text.len() <= FINGERPRINT_BYTES_MAX && text.is_ascii() {
            Ok(Self(text))
        } else {
            Err(InvalidValue::new(&text, "a fingerprint of at most 768 KiB"))
        }
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.0
    }
}
