//! The id of a delivery, as a number.

use sha2::{Digest as _, Sha256};
use stagely_state::DeliveryId;

/// Makes the id of GitHub's name for a delivery: the digits of a UUID, as all of GitHub's names are, or else
/// the beginning of the SHA-256.
pub(crate) fn delivery_id(text: &str) -> DeliveryId {
    DeliveryId(uuid(text).unwrap_or_else(|| hashed(text)))
}

fn uuid(text: &str) -> Option<u128> {
    let is_uuid = text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        });
    if !is_uuid {
        return None;
    }
    u128::from_str_radix(&text.replace('-', ""), 16).ok()
}

fn hashed(text: &str) -> u128 {
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let (first, _) = digest.split_first_chunk::<16>().expect("32 bytes hold 16");
    u128::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_uuid_has_its_digits() {
        let id = delivery_id("0b989ba4-242f-11e5-81e1-c7b6966d2516");
        assert_eq!(id, DeliveryId(0x0b98_9ba4_242f_11e5_81e1_c7b6_966d_2516));
        assert_eq!(id, delivery_id("0B989BA4-242F-11E5-81E1-C7B6966D2516"));
    }

    #[test]
    fn other_names_have_an_id_too() {
        for text in ["", "delivery", "0b989ba4-242f-11e5-81e1+c7b6966d2516"] {
            assert_eq!(delivery_id(text), DeliveryId(hashed(text)));
        }
        assert_ne!(delivery_id("a"), delivery_id("b"));
    }
}
