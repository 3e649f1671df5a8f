//! What the logs of a deployment's services must not show.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::mask::{Masker, MaskerBuilder};

/// The values that must not be in the log of a preview's services.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MaskedValues {
    /// Masked if their names or values say that they are secret.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: Vec<String>,
}

impl MaskedValues {
    /// `None` if they cannot be masked.
    pub(super) fn masker(&self) -> Option<Masker> {
        let mut secrets = MaskerBuilder::default();
        for (name, value) in &self.env {
            secrets.build_arg(name, value);
        }
        for secret in &self.secrets {
            secrets.credential(secret);
        }
        secrets.build().ok()
    }
}
