//! JSON forms of secrets and amounts of money.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Serialize as _, Serializer};

#[expect(clippy::ref_option, reason = "serde's serialize_with passes a reference to the field")]
pub(super) fn expose<S: Serializer>(
    secret: &Option<SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(SecretString::expose_secret).serialize(to)
}

pub(super) fn expose_all<S: Serializer>(
    secrets: &BTreeMap<String, SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(secrets.iter().map(|(name, secret)| (name, secret.expose_secret())))
}

/// Writes an amount of US dollars as a number. A `f64` holds millionths exactly.
pub(crate) mod dollars {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use stagely_state::Usd;

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(amount: &Option<Usd>, to: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_precision_loss, reason = "exact below 9 billion dollars")]
        amount.map(|Usd(millionths)| millionths as f64 / 1e6).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Usd>, D::Error> {
        let amount = Option::<f64>::deserialize(from)?;
        // Negative amounts and NaN become 0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        Ok(amount.map(|amount| Usd((amount * 1e6).round() as u64)))
    }
}

/// As [`dollars`], for an amount that is always there.
pub(crate) mod amount {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use stagely_state::Usd;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(amount: &Usd, to: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_precision_loss, reason = "exact below 9 billion dollars")]
        to.serialize_f64(amount.0 as f64 / 1e6)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Usd, D::Error> {
        let amount = f64::deserialize(from)?;
        // Negative amounts and NaN become 0.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        Ok(Usd((amount * 1e6).round() as u64))
    }
}
