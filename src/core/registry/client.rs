//! Sends requests to the configured registry, and logs in where it asks for that.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use stagely_protocol::ImageRef;
use url::Url;

use super::address::{is_loopback, url};
use super::challenge::Challenge;
use super::error::RegistryError;
use super::login::authorization;
use crate::config::RegistryConfig;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The time limit of one response.
const RESPONSE_LIMIT: Duration = Duration::from_mins(1);

pub(super) struct RegistryClient {
    config: RegistryConfig,
    reading: reqwest::Client,
    /// Follows no redirect: a redirect may turn PUT or DELETE into GET, whose success means nothing.
    writing: reqwest::Client,
}

impl RegistryClient {
    /// # Errors
    /// This machine's TLS cannot be set up.
    pub(super) fn new(config: RegistryConfig) -> Result<Self, reqwest::Error> {
        let client = || {
            let http = reqwest::Client::builder()
                .connect_timeout(CONNECT_LIMIT)
                .timeout(RESPONSE_LIMIT)
                .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")));
            // As Docker does: a registry on loopback is not behind a proxy.
            if is_loopback(config.host()) { http.no_proxy() } else { http }
        };
        let (reading, writing) = (client().build()?, client().redirect(Policy::none()).build()?);
        Ok(Self { config, reading, writing })
    }

    pub(super) const fn config(&self) -> &RegistryConfig {
        &self.config
    }

    /// A request for the manifest that `image` names.
    pub(super) fn manifest(
        &self,
        method: Method,
        image: &ImageRef,
    ) -> Result<RequestBuilder, RegistryError> {
        let reference = image.as_str()[image.repository().len()..].trim_start_matches([':', '@']);
        let reference = if reference.is_empty() { "latest" } else { reference };
        let url = url(&self.config, image, &format!("manifests/{reference}"))?;
        let client = if method.is_safe() { &self.reading } else { &self.writing };
        Ok(client.request(method, url))
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.reading.get(url)
    }

    /// Sends `request`; once more, with credentials, if the registry asks for them.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, RegistryError> {
        let again = request.try_clone().expect("a body of bytes can be sent twice");
        let response = request.send().await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<Challenge> = headers.iter().flat_map(Challenge::parse).collect();
        let authorization = authorization(&self.config, &self.reading, &challenges).await?;
        Ok(again.header(AUTHORIZATION, authorization).send().await?)
    }
}
