//! Random tokens that core issues, and the hashes that it stores.

use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The SHA-256 of a token, which is stored instead of the token. A token has 256 random bits, so a slow hash would not
/// protect it better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    pub fn of(token: &SecretString) -> Self {
        Self(Sha256::digest(token.expose_secret().as_bytes()).into())
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Creates a token of 256 random bits: `prefix` and 64 hexadecimal digits.
pub fn random_token(prefix: &str) -> SecretString {
    use std::fmt::Write as _;
    let bits: [u8; 32] = rand::random();
    let mut text = prefix.to_owned();
    for byte in bits {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    SecretString::from(text)
}
