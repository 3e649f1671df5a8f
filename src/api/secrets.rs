//! `/projects/{name}/secrets`: the secrets of a project. No response has their values.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use stagely_state::Timestamp;
use utoipa::ToSchema;

/// The longest value of a secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

/// A secret of a project, without its value.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    /// The name of the environment variable.
    pub name: String,
    /// When its value was set.
    #[schema(value_type = u64)]
    pub set_at: Timestamp,
}

/// `PUT /projects/{name}/secrets/{secret}`: sets the value of a secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    /// The value, of 1 to 65,536 bytes. Stored encrypted, and never returned.
    #[serde(serialize_with = "stagely_protocol::expose_secret")]
    #[schema(value_type = String)]
    pub value: SecretString,
}
