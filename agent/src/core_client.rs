//! Requests to core's HTTP endpoints for agents.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use stagely_protocol::{MACHINE_HEADER, WireId};
use url::Url;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long core may leave bytes unacknowledged, or send none.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_mins(1);

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
