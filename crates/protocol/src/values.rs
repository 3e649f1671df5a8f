//! Small values that check their text once, when parsed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A text that its type does not accept.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not {expected}")]
pub struct InvalidValue {
    /// The text, shortened to 80 characters.
    pub text: String,
    /// The expected form, as words that follow "is not".
    pub expected: &'static str,
}

impl InvalidValue {
    /// Makes the error for `text`, keeping its first 80 characters.
    pub fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

/// Defines a text type whose values pass `$check`, and its conversions.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;
            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(InvalidValue::new(text, $expected)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

checked_text! {
    /// An id as the wire carries it. Agents treat it as opaque, and use it as a folder name.
    WireId, "an id of 1 to 64 letters, digits, `_` or `-`",
    |text| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
    }
}

checked_text! {
    /// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
    CommitSha, "a full commit id of 40 hexadecimal digits",
    |text| {
        (text.len() == 40 || text.len() == 64)
            && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }
}

checked_text! {
    /// The digest of a manifest: `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "a digest (`sha256:` and 64 hexadecimal digits)",
    |text| {
        text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        })
    }
}

checked_text! {
    /// An image reference, `registry/path:tag` or `registry/path@digest`. Never starts with `-`, so
    /// that it cannot become an option of a command.
    ImageRef, "an image reference",
    |text| {
        (1..=512).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@[]+".contains(&byte))
            // `https://registry/app` is an address, not a reference.
            && !text.contains("//")
    }
}

impl ImageRef {
    /// The reference without its tag or digest.
    pub fn repository(&self) -> &str {
        let name = self.as_str().split_once('@').map_or(self.as_str(), |(name, _)| name);
        match name.rsplit_once(':') {
            // A colon before the last slash belongs to the registry's port.
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        }
    }

    /// The registry's host and port: what `docker login` is called with.
    pub fn registry(&self) -> &str {
        self.as_str().split_once('/').map_or("docker.io", |(registry, _)| registry)
    }

    /// The same repository, named by `digest`.
    #[must_use]
    pub fn at_digest(&self, digest: &Digest) -> Self {
        Self(format!("{}@{digest}", self.repository()).into())
    }
}

/// A processor architecture, in Docker's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    #[serde(alias = "x86_64")]
    Amd64,
    /// `AArch64`.
    #[serde(alias = "aarch64")]
    Arm64,
}

impl Arch {
    /// In alphabetical order.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Docker's name of the arch.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The arch that this program was compiled for.
    pub const fn of_this_program() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Arch {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "amd64" | "x86_64" => Ok(Self::Amd64),
            "arm64" | "aarch64" => Ok(Self::Arm64),
            _ => Err(InvalidValue::new(text, "an arch (`amd64` or `arm64`)")),
        }
    }
}

/// A platform that images are built for: `linux/amd64` or `linux/arm64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Platform(pub Arch);

impl Platform {
    /// The processor architecture; the operating system is always Linux.
    pub const fn arch(self) -> Arch {
        self.0
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.0)
    }
}

impl FromStr for Platform {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "linux/amd64" => Ok(Self(Arch::Amd64)),
            "linux/arm64" => Ok(Self(Arch::Arm64)),
            _ => Err(InvalidValue::new(text, "a platform (`linux/amd64` or `linux/arm64`)")),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

/// Which submodules a clone includes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Submodules {
    /// All of them, and theirs.
    #[default]
    All,
    /// Like `All`, but never more of a submodule's history than one commit of each branch.
    Shallow,
    /// None: their folders are empty.
    None,
}

impl Submodules {
    /// Whether this is the default.
    pub const fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

/// Whether a build may run on a machine of another arch, under QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Emulation {
    /// Emulated only if no machine of the build's own arch is available.
    #[default]
    Allow,
    /// The build fails instead.
    Forbid,
}

impl Emulation {
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow)
    }
}
