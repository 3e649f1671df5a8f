//! Requests to core's HTTP endpoints for agents.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use stagely_protocol::{MACHINE_HEADER, WireId};
use url::Url;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long core may leave bytes unacknowledged, or send none.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_mins(1);

/// How much of an answer that is no success is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// How much of a refusal of another server is kept, in characters.
const REFUSAL_CHARS_MAX: usize = 200;

/// Core's address, and the login of this machine.
#[derive(Clone, Debug)]
pub(crate) struct CoreClient {
    core: Url,
    machine: WireId,
    token: SecretString,
}

impl CoreClient {
    pub(crate) const fn new(core: Url, machine: WireId, token: SecretString) -> Self {
        Self { core, machine, token }
    }

    /// Core's base address.
    pub(crate) const fn url(&self) -> &Url {
        &self.core
    }

    /// A new client without connections.
    ///
    /// # Errors
    /// If TLS cannot be used.
    pub(crate) fn http() -> Result<Client, reqwest::Error> {
        Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(SILENCE_LIMIT / 4)
            .tcp_user_timeout(SILENCE_LIMIT)
            .build()
    }

    /// A request to `path`, relative to core's base address, as this machine.
    pub(crate) fn request(&self, http: &Client, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.core.clone();
        let base = self.core.path().trim_end_matches('/');
        url.set_path(&format!("{base}{path}"));
        let request = http.request(method, url).bearer_auth(self.token.expose_secret());
        request.header(MACHINE_HEADER, self.machine.as_str())
    }
}

/// Why the request was refused: core's message, or the beginning of what another server says, a proxy for example.
pub(crate) async fn refusal(mut response: Response) -> String {
    #[derive(Deserialize)]
    struct ErrorBody {
        message: String,
    }

    let mut body = Vec::new();
    // A connection that breaks leaves a shorter text.
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() >= REFUSAL_BYTES_MAX {
            break;
        }
    }
    body.truncate(REFUSAL_BYTES_MAX);
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { message }) => message,
        Err(_) => String::from_utf8_lossy(&body).chars().take(REFUSAL_CHARS_MAX).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal_of(body: impl Into<reqwest::Body>) -> String {
        refusal(Response::from(hyper::Response::new(body.into()))).await
    }

    #[tokio::test]
    async fn a_refusal_is_cores_message_or_the_beginning_of_another_text() {
        let json = r#"{"code":"disk_nearly_full","message":"only 379 MiB are free"}"#;
        assert_eq!(refusal_of(json).await, "only 379 MiB are free");
        assert_eq!(refusal_of("").await, "");
        assert_eq!(refusal_of("<html>Bad Gateway</html>").await, "<html>Bad Gateway</html>");
        assert_eq!(refusal_of(r#"{"message":7}"#).await, r#"{"message":7}"#);
        assert_eq!(refusal_of(vec![0xff; 3]).await, "\u{fffd}\u{fffd}\u{fffd}");
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(REFUSAL_BYTES_MAX));
        assert_eq!(refusal_of(long).await.len(), REFUSAL_CHARS_MAX);
    }
}
