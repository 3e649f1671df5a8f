//! `/tokens`: bearer tokens and their roles.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The role of a bearer token. Each role includes the permissions of the roles before it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything except secrets.
    Read,
    /// Starts and cancels runs.
    Write,
    /// Creates tokens, registers machines and manages projects.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// `POST /tokens`: creates a bearer token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The token's name, for people.
    pub name: String,
    /// The token's role.
    pub role: Role,
}

/// The response to `POST /tokens`. The token is shown only once; core stores its hash.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The token's name, for people.
    pub name: String,
    /// The token's role.
    pub role: Role,
    /// The token.
    #[serde(serialize_with = "stagely_protocol::expose_secret")]
    #[schema(value_type = String)]
    pub token: SecretString,
}
