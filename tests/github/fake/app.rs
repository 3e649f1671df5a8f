//! The GitHub App: its key, and the tokens that it signs and requests.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Verifier;
use serde_json::{Value, json};

use super::world::Permissions;

/// An app with one installation.
pub(crate) struct App {
    pub(crate) id: u64,
    pub(crate) installation: u64,
    key: PKey<Private>,
    /// The permissions that its owner has granted.
    pub(crate) permissions: Permissions,
}

/// The longest life of a token that GitHub accepts, in seconds.
const LIFE_MAX: i64 = 600;

/// The tolerated difference of clocks, in seconds.
const SKEW: i64 = 60;

impl App {
    pub(crate) fn new() -> Self {
        let allowed = [
            ("metadata", "read"),
            ("contents", "read"),
            ("pull_requests", "write"),
            ("issues", "write"),
            ("statuses", "write"),
            ("deployments", "write"),
        ];
        let allowed = allowed.map(|(name, level)| (name.to_owned(), level.to_owned()));
        Self {
            id: 4711,
            installation: 815,
            key: PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap(),
            permissions: allowed.into(),
        }
    }

    /// The private key in the format of GitHub: PEM, PKCS#1.
    pub(crate) fn private_key(&self) -> String {
        let key = self.key.rsa().unwrap().private_key_to_pem().unwrap();
        String::from_utf8(key).unwrap()
    }

    /// Checks a JSON Web Token as GitHub does: RS256 with the app's key, issued by this app, and with a short life.
    pub(crate) fn check(&self, token: &str) -> Result<(), String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("it has no signature")?;
        let (header, claims) = signed.split_once('.').ok_or("it has no claims")?;
        let decode =
            |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|error| error.to_string());
        let read = |part: &str| -> Result<Value, String> {
            serde_json::from_slice(&decode(part)?).map_err(|error| error.to_string())
        };
        let header = read(header)?;
        if header["alg"] != "RS256" {
            return Err(format!("the algorithm is not RS256: {header}"));
        }
        let mut verifier = Verifier::new(MessageDigest::sha256(), &self.key).unwrap();
        if !verifier.verify_oneshot(&decode(signature)?, signed.as_bytes()).unwrap_or(false) {
            return Err("the signature is not the app's".to_owned());
        }
        let claims = read(claims)?;
        let named = claims["iss"]
            .as_str()
            .map_or(claims["iss"].clone(), |id| json!(id.parse::<u64>().ok()));
        if named != self.id {
            return Err(format!("the issuer is not app {}: {claims}", self.id));
        }
        let time = |name: &str| claims[name].as_i64().ok_or(format!("no {name}: {claims}"));
        let (made, expires) = (time("iat")?, time("exp")?);
        let now = Timestamp::now().as_second();
        if made > now + SKEW || expires <= now || expires > now + LIFE_MAX {
            return Err(format!("it is not of this moment, {now}, or for too long: {claims}"));
        }
        Ok(())
    }
}
