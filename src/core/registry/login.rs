//! Logs in to the registry, with a password or with a token that a token server gives for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use url::Url;

use super::address::is_loopback;
use super::challenge::Challenge;
use super::error::RegistryError;
use super::response::{checked, read};
use crate::config::RegistryConfig;

/// The largest response of a token server.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
}

struct Credentials {
    username: String,
    password: SecretString,
}

impl Credentials {
    /// The user and the password, which is read each time because it may have been changed.
    async fn read(config: &RegistryConfig) -> Result<Option<Self>, RegistryError> {
        let owned = config.clone();
        let password = spawn_blocking(move || owned.password()).await;
        let password = password.expect("reading a file does not panic")?;
        let username = config.username.clone();
        Ok(username.zip(password).map(|(username, password)| Self { username, password }))
    }

    fn basic(&self) -> Result<HeaderValue, RegistryError> {
        let pair = format!("{}:{}", self.username, self.password.expose_secret());
        header(&format!("Basic {}", STANDARD.encode(pair)))
    }
}

/// The value of an `Authorization` header that satisfies one of `challenges`. Tokens are requested with `http`.
pub(super) async fn authorization(
    config: &RegistryConfig,
    http: &reqwest::Client,
    challenges: &[Challenge],
) -> Result<HeaderValue, RegistryError> {
    let credentials = Credentials::read(config).await?;
    for challenge in challenges {
        match (challenge, &credentials) {
            (Challenge::Bearer { realm, query }, _) => {
                let token = token(http, realm, query, credentials.as_ref()).await?;
                return header(&format!("Bearer {}", token.expose_secret()));
            }
            (Challenge::Basic, Some(credentials)) => return credentials.basic(),
            (Challenge::Basic, None) => {}
        }
    }
    let detail = "it asks for a login, and none is configured".to_owned();
    Err(RegistryError::AccessDenied { status: StatusCode::UNAUTHORIZED.as_u16(), detail })
}

/// Requests a token from the server `realm`.
///
/// Source: distribution documentation, "Token Authentication Specification".
async fn token(
    http: &reqwest::Client,
    realm: &str,
    query: &[(&'static str, String)],
    credentials: Option<&Credentials>,
) -> Result<SecretString, RegistryError> {
    let login_error = |problem: &str| RegistryError::Login(problem.to_owned());
    let realm: Url =
        realm.parse().map_err(|_| login_error("its token server's address is none"))?;
    let is_private = realm.scheme() == "https" || realm.host_str().is_some_and(is_loopback);
    if !is_private {
        return Err(login_error("its token server would get the password without encryption"));
    }
    let mut request = http.get(realm).query(query);
    if let Some(credentials) = credentials {
        request = request.header(AUTHORIZATION, credentials.basic()?);
    }
    let response = checked(request.send().await?).await?;
    let response: TokenResponse = serde_json::from_slice(&read(response, TOKEN_BYTES_MAX).await?)
        // Without the error, which may quote the token.
        .map_err(|_| login_error("its token server's answer is no token"))?;
    let token = response.token.or(response.access_token);
    token.ok_or_else(|| login_error("its token server sent no token"))
}

/// A header that `Debug` does not show.
fn header(text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| RegistryError::Login("the token fits in no header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
