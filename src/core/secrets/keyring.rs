//! The key that seals secrets at rest.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use secrecy::SecretString;
use sha2::Sha256;
use thiserror::Error;

const NONCE_BYTES: usize = 24;

/// Sealed bytes of another key, or changed ones.
#[derive(Debug, Error)]
#[error("a stored secret cannot be opened; was secrets.key replaced?")]
pub struct SealBroken;

/// Seals and opens secrets that must outlive a restart, so that a copy of the database alone discloses none of them.
#[derive(Clone)]
pub struct Keyring {
    cipher: XChaCha20Poly1305,
    /// Keyed like the cipher. Only [`derive`](Self::derive) uses it.
    mac: Hmac<Sha256>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

impl Keyring {
    /// Reads the key from `path`, or creates one there with mode 0600. No other process may do so at the same time.
    ///
    /// # Errors
    /// The file cannot be read or written; [`io::ErrorKind::InvalidData`] if it does not have 32 bytes.
    pub fn open(path: &Path) -> io::Result<Self> {
        let key = match File::open(path) {
            Ok(file) => read_key(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(path)?,
            Err(error) => return Err(error),
        };
        let mac = Hmac::new_from_slice(&key).expect("HMAC takes a key of any length");
        Ok(Self { cipher: XChaCha20Poly1305::new(&key.into()), mac })
    }

    /// A secret of 128 bits in hexadecimal digits, always the same one for `purpose`. It says nothing about the key.
    pub fn derive(&self, purpose: &str) -> SecretString {
        let mut mac = self.mac.clone();
        mac.update(purpose.as_bytes());
        let digest = mac.finalize().into_bytes();
        let text =
            digest.iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        text.into()
    }

    /// Seals `text` for `owner`. Only the same owner can open it.
    pub fn seal(&self, owner: &str, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: text, aad: owner.as_bytes() })
            .expect("a secret is far below the cipher's limit of 256 GiB");
        [&nonce[..], &sealed].concat()
    }

    /// Opens the bytes of [`seal`](Self::seal).
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

fn read_key(file: File) -> io::Result<[u8; 32]> {
    let mut bytes = Vec::new();
    file.take(33).read_to_end(&mut bytes)?;
    bytes
        .try_into()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it does not hold 32 bytes"))
}

/// Creates a key at `path` atomically, because half a key would prevent every later start of core.
fn make_key(path: &Path) -> io::Result<[u8; 32]> {
    let key: [u8; 32] = rand::random();
    let mut unfinished = OsString::from(path);
    unfinished.push(".new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    // The key's directory entry must be on the disk before anything is sealed with it.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

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

    #[test]
    fn a_derived_secret_depends_on_the_key_and_the_purpose_alone() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Keyring::open(&folder.path().join(name)).unwrap();
        let derive =
            |name: &str, purpose: &str| open(name).derive(purpose).expose_secret().to_owned();
        assert_eq!(derive("a", "one"), derive("a", "one"));
        assert_eq!(derive("a", "one").len(), 32);
        assert_ne!(derive("a", "one"), derive("a", "two"));
        assert_ne!(derive("a", "one"), derive("b", "one"));
    }

    #[test]
    fn a_core_that_was_killed_while_it_made_its_key_leaves_nothing_that_stops_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.key");
        fs::write(folder.path().join("secrets.key.new"), "half a key").unwrap();

        let sealed = Keyring::open(&path).unwrap().seal("run_1", b"token");

        assert_eq!(Keyring::open(&path).unwrap().open_sealed("run_1", &sealed).unwrap(), b"token");
        let names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secrets.key"]);
    }

    #[test]
    fn a_key_that_is_no_key_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.key");
        fs::write(&path, "not a key").unwrap();

        let error = Keyring::open(&path).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }
}
