//! The key that seals secrets at rest, and the random tokens that core hands out.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

const NONCE_BYTES: usize = 24;

/// Sealed bytes that this key does not open: another key made them, or they were changed.
#[derive(Debug, Error)]
#[error("a stored secret cannot be opened; was secrets.key replaced?")]
pub struct SealBroken;

/// Seals and opens secrets that must outlive a restart, so that a copy of the database alone gives
/// none of them away.
#[derive(Clone)]
pub struct Keyring {
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// Reads the key from `path`, or makes one there with mode 0600.
    ///
    /// # Errors
    /// Those of the file; [`io::ErrorKind::InvalidData`] if it does not hold 32 bytes.
    pub fn open(path: &Path) -> io::Result<Self> {
        let key: [u8; 32];
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                key = rand::random();
                file.write_all(&key)?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut bytes = Vec::new();
                std::fs::File::open(path)?.take(33).read_to_end(&mut bytes)?;
                key = bytes.try_into().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, "it does not hold 32 bytes")
                })?;
            }
            Err(error) => return Err(error),
        }
        Ok(Self { cipher: XChaCha20Poly1305::new(&key.into()) })
    }

    /// Seals `text` for `owner`; only the same owner opens it again.
    pub fn seal(&self, owner: &str, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: text, aad: owner.as_bytes() })
            .expect("a secret is far below the cipher's limit of 256 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// Opens what [`seal`](Self::seal) made.
    ///
    /// # Errors
    /// [`SealBroken`].
    pub fn open_sealed(&self, owner: &str, sealed: &[u8]) -> Result<Vec<u8>, SealBroken> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealBroken)?;
        self.cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: owner.as_bytes() })
            .map_err(|_| SealBroken)
    }
}

/// The SHA-256 of a token: what is stored of it. A token has 256 random bits, so a slow hash would
/// protect nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// Hashes `token`.
    pub fn of(token: &SecretString) -> Self {
        Self(Sha256::digest(token.expose_secret().as_bytes()).into())
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Makes a token of 256 random bits: `prefix` and 64 hexadecimal digits.
pub fn random_token(prefix: &str) -> SecretString {
    use std::fmt::Write as _;
    let bits: [u8; 32] = rand::random();
    let mut text = prefix.to_owned();
    for byte in bits {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    SecretString::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.key");
        let sealed = Keyring::open(&path).unwrap().seal("run_1", b"token");

        let reopened = Keyring::open(&path).unwrap();

        assert_eq!(reopened.open_sealed("run_1", &sealed).unwrap(), b"token");
        assert!(reopened.open_sealed("run_2", &sealed).is_err());
        assert!(reopened.open_sealed("run_1", &sealed[..20]).is_err());
    }
}
