//! Prefixed ULIDs: `proj_`, `env_`, `run_`, `job_`, `vm_`, `prev_`. They sort by the time they were made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stagely_protocol::{InvalidValue, WireId};
use ulid::Ulid;

/// An id that can be made of 128 bits. The caller takes them from a clock and randomness, or from a seeded
/// generator.
pub trait Id {
    /// Makes the id of these 128 bits.
    fn from_bits(bits: u128) -> Self;
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Ulid);

        impl $name {
            /// Makes the id of these 128 bits.
            pub const fn from_bits(bits: u128) -> Self {
                Self(Ulid(bits))
            }

            /// The 128 bits, in the order of the text: what the store uses as key.
            pub const fn bits(self) -> u128 {
                self.0.0
            }
        }

        impl Id for $name {
            fn from_bits(bits: u128) -> Self {
                Self::from_bits(bits)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Lower case, because ids become parts of image tags and folder names.
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(&self.0.to_string().to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;
            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(|ulid| Ulid::from_string(&ulid.to_ascii_uppercase()).ok())
                    .map(Self)
                    .ok_or_else(|| InvalidValue::new(text, concat!("an id like `", $prefix, "_01h…`")))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

id! {
    /// Names one project: a repository.
    ProjectId, "proj"
}
id! {
    /// Names one environment: a pull request or branch of a project.
    EnvironmentId, "env"
}
id! {
    /// Names one workflow run: one commit's way through an environment.
    RunId, "run"
}
id! {
    /// Names one job of a run.
    JobId, "job"
}
id! {
    /// Names one machine. We choose it before the provider is asked and tag the machine with it, so
    /// that a machine that outlives a crash of core can be found again.
    MachineId, "vm"
}
id! {
    /// Names the preview of an environment.
    PreviewId, "prev"
}

/// Names one core to its providers: every machine that it launches is tagged with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CoreId(String);

impl CoreId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CoreId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Numbers the sessions that agents open with one core, ascending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// The id of the session that is opened after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl MachineId {
    /// The id as the wire carries it.
    pub fn wire(self) -> WireId {
        self.to_string().parse().expect("a prefixed ULID is letters, digits and `_`")
    }
}

impl PreviewId {
    /// The id as the wire carries it.
    pub fn wire(self) -> WireId {
        self.to_string().parse().expect("a prefixed ULID is letters, digits and `_`")
    }
}
