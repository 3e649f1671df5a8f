//! The signature of a delivery: HMAC-SHA256 of its body under the webhook's secret.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

/// Whether `signature`, the value of `X-Hub-Signature-256`, is that of `body`. Compares in constant time.
pub(super) fn is_valid(secret: &SecretString, body: &[u8], signature: Option<&str>) -> bool {
    let claimed = signature.and_then(|value| value.strip_prefix("sha256=")).and_then(digest_bytes);
    let Some(claimed) = claimed else { return false };
    let secret = secret.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(body);
    mac.verify_slice(&claimed).is_ok()
}

/// The bytes of a SHA-256 in hexadecimal digits.
fn digest_bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_signature_of_githubs_documentation_is_good_and_no_other() {
        // https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
        let secret = SecretString::from("It's a Secret to Everybody");
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let body = b"Hello, World!";
        assert!(is_valid(&secret, body, Some(good)));
        let capitals = good.to_ascii_uppercase().replace("SHA256", "sha256");
        assert!(is_valid(&secret, body, Some(&capitals)));
        let other = SecretString::from("another");
        assert!(!is_valid(&other, body, Some(good)));
        assert!(!is_valid(&secret, b"Hello, World", Some(good)));
        let longer = format!("{good}00");
        let unlike = ["", "sha256=", "sha1=00", &good[7..], &good[..70], &longer, "sha256=é"];
        for signature in unlike {
            assert!(!is_valid(&secret, body, Some(signature)), "{signature}");
        }
        assert!(!is_valid(&secret, body, None));
    }

    proptest! {
        #[test]
        fn any_text_that_is_no_signature_is_refused(body: Vec<u8>, signature in "\\PC{0,80}") {
            prop_assert!(!is_valid(&SecretString::from("x"), &body, Some(&signature)));
        }
    }
}
