//! Names of projects, environments, Git references and build variants, checked once.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stagely_protocol::CommitSha;

/// The longest name of a project or environment. Both become parts of image references.
pub const NAME_CHARS_MAX: usize = 100;

/// The longest Git reference, in bytes.
const REFERENCE_BYTES_MAX: usize = 255;

/// A text that is not a valid name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidName {
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for InvalidName {}

/// Gives a checked name its conversions; `$check` returns what is wrong with a text.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                text.to_owned().try_into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text).map_err(|problem| InvalidName { problem })?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a project or environment, as a part of image references: lower-case letters, digits and
    /// single dashes.
    Name, check_name
}
name! {
    /// A branch, a tag or a full commit id.
    Reference, check_reference
}
name! {
    /// A branch, as `main` or `refs/heads/main`.
    BranchName, check_branch
}

/// The name of a build with its combination of the matrix: `app-node_version-18`. Without a matrix it is the
/// name of the build.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VariantName(String);

impl VariantName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for VariantName {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for VariantName {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Borrow<str> for VariantName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VariantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Name {
    /// The name that is nearest to `text`.
    pub fn nearest(text: &str) -> Self {
        let mut name = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_alphanumeric() {
                name.push(c);
            } else if !name.is_empty() && !name.ends_with('-') {
                name.push('-');
            }
        }
        name.truncate(NAME_CHARS_MAX);
        name.truncate(name.trim_end_matches('-').len());
        Self(if name.is_empty() { "unnamed".to_owned() } else { name })
    }
}

fn check_name(text: &str) -> Result<(), String> {
    let nearest = Name::nearest(text);
    if nearest.as_str() == text {
        return Ok(());
    }
    Err(format!(
        "{text:?} must be lower-case letters, digits and single dashes, at most {NAME_CHARS_MAX}; \
         {:?} would do",
        nearest.as_str()
    ))
}

fn check_reference(text: &str) -> Result<(), String> {
    let is_bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let bad = text.is_empty()
        || text.len() > REFERENCE_BYTES_MAX
        || text.starts_with('-')
        || text.contains("..")
        || text.chars().any(is_bad);
    if bad { Err(format!("{text:?} is not a branch, tag or full commit id")) } else { Ok(()) }
}

fn check_branch(text: &str) -> Result<(), String> {
    check_reference(text)?;
    if text.parse::<CommitSha>().is_ok() {
        return Err(format!("{text} is a commit; name a branch"));
    }
    if text.starts_with("refs/") && !text.starts_with("refs/heads/") {
        return Err(format!("{text} is no branch; those are below refs/heads/"));
    }
    Ok(())
}
