//! The client of `DigitalOcean`'s API: the token, pages, the rate limit and errors.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stagely_protocol::ErrorChain;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use url::Url;

use crate::digitalocean::DigitalOceanSettings;
use crate::settings::is_this_host;

/// The variable that holds the token where `token-file` is not set.
const TOKEN_VARIABLE: &str = "DIGITALOCEAN_TOKEN";

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The time limit of a request. The API answers the creation of a droplet within seconds or not at all.
const REQUEST_LIMIT: Duration = Duration::from_mins(1);

/// The largest response. 200 droplets are less than a megabyte.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest part of an error message that is shown.
const MESSAGE_CHARS_MAX: usize = 300;

/// The API's limit.
const PAGE_SIZE: u32 = 200;

/// The most pages of a list: twenty thousand entries.
const PAGES_MAX: u32 = 100;

/// The attempts to read a list that changes while its pages are read.
const LIST_ATTEMPTS: u32 = 3;

/// The longest wait for a rate limit inside a request: the limit of a minute is waited for, that of an hour is not.
const INLINE_WAIT_MAX: Duration = Duration::from_secs(70);

/// The wait where the API reports a rate limit without a time.
const DEFAULT_WAIT: Duration = Duration::from_mins(1);

/// The longest wait. The longest rate limit is that of an hour.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// A failed request.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    /// The token cannot be read.
    #[error("{0}")]
    Token(String),
    /// The API refused the request and has done nothing.
    #[error("DigitalOcean refuses {what} ({status}): {message}{}", advice(*.status))]
    Refused { what: String, status: StatusCode, message: String },
    /// The rate limit is reached. The API has done nothing.
    #[error("DigitalOcean's rate limit is reached; next request in {} s", wait.as_secs().max(1))]
    Throttled { wait: Duration },
    /// There was no response, or one that does not say what was done.
    #[error("DigitalOcean gives no clear answer to {what}: {problem}")]
    Unclear { what: String, problem: String },
}

/// Advice for refusals whose cause is the same for every request.
const fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            "; the token is wrong or has expired: make a new one for digitalocean.token-file or \
             DIGITALOCEAN_TOKEN"
        }
        StatusCode::FORBIDDEN => {
            "; the account is locked, or the token lacks a scope: it needs account:read, \
             droplet:create, droplet:delete, droplet:read, image:read, regions:read, sizes:read, \
             tag:create, tag:delete and tag:read, and vpc:read for digitalocean.vpc"
        }
        _ => "",
    }
}

impl ApiError {
    pub(super) const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Token(_) | Self::Throttled { .. } | Self::Unclear { .. } => None,
        }
    }
}

enum TokenSource {
    File(PathBuf),
    Variable(SecretString),
}

pub(super) struct ApiClient {
    base: Url,
    token: TokenSource,
    http: reqwest::Client,
    /// The end of the rate limit. No request is sent before.
    blocked_until: Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
    #[serde(default)]
    request_id: Option<String>,
}

#[derive(Default, Deserialize)]
struct Links {
    #[serde(default)]
    pages: Option<Pages>,
}

#[derive(Deserialize)]
struct Pages {
    #[serde(default)]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    total: u64,
}

impl ApiClient {
    /// Checks that there is a token.
    ///
    /// # Errors
    /// There is none, with advice, or TLS cannot be set up.
    pub(super) fn new(config: &DigitalOceanSettings) -> anyhow::Result<Self> {
        let token = match (&config.token_file, std::env::var(TOKEN_VARIABLE)) {
            (Some(path), _) => {
                read(path, std::fs::read_to_string(path)).map_err(anyhow::Error::msg)?;
                TokenSource::File(path.clone())
            }
            (None, Ok(token)) if !token.trim().is_empty() => {
                TokenSource::Variable(token.trim().into())
            }
            (None, _) => anyhow::bail!(
                "there is no token of DigitalOcean's API: set digitalocean.token-file, or \
                 {TOKEN_VARIABLE} of the environment"
            ),
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(REQUEST_LIMIT)
            // The token must not be sent to another host.
            .redirect(Policy::none())
            .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")));
        // A server on this host is not behind a proxy.
        let http = if is_this_host(config.api_url.host()) { http.no_proxy() } else { http };
        let http = http.build().context("cannot make a client of DigitalOcean's API")?;
        Ok(Self { base: config.api_url.clone(), token, http, blocked_until: Mutex::default() })
    }

    /// Gets `path` below `/v2/`.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let what = format!("GET {path}");
        let body = self.send(&what, self.request(Method::GET, path).query(query)).await?;
        decode(&what, &body)
    }

    /// Posts `body` to `path`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, ApiError> {
        let what = format!("POST {path}");
        let body = self.send(&what, self.request(Method::POST, path).json(body)).await?;
        decode(&what, &body)
    }

    /// Deletes the resource at `path`. A resource that does not exist is success.
    pub(super) async fn delete(&self, path: &str, query: &[(&str, &str)]) -> Result<(), ApiError> {
        let request = self.request(Method::DELETE, path).query(query);
        match self.send(&format!("DELETE {path}"), request).await {
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Reads the whole list at `path`. Each page has its entries in the field `key`. A list whose length changes
    /// meanwhile is read again, because an entry that moves to an earlier page would be missed.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ApiError> {
        for _ in 0..LIST_ATTEMPTS {
            if let Some(all) = self.try_list(path, key, query).await? {
                return Ok(all);
            }
            debug!(path, "the list has changed while it was read");
        }
        let problem = format!("the list has changed {LIST_ATTEMPTS} times while it was read");
        Err(ApiError::Unclear { what: format!("GET {path}"), problem })
    }

    /// Reads the list once; `None` if it has changed meanwhile.
    async fn try_list<T: DeserializeOwned>(
        &self,
        path: &str,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<Vec<T>>, ApiError> {
        let what = format!("GET {path}");
        let mut all: Vec<T> = Vec::new();
        let mut total = None;
        for number in 1..=PAGES_MAX {
            let (number, size) = (number.to_string(), PAGE_SIZE.to_string());
            let paging = [("page", &*number), ("per_page", &*size)];
            let mut page: Value = self.get(path, &[query, &paging].concat()).await?;
            let unreadable = |error: serde_json::Error| ApiError::Unclear {
                what: what.clone(),
                problem: error.to_string(),
            };
            let entries: Vec<T> = serde_json::from_value(page[key].take()).map_err(unreadable)?;
            let meta: Meta = serde_json::from_value(page["meta"].take()).map_err(unreadable)?;
            let links: Option<Links> =
                serde_json::from_value(page["links"].take()).map_err(unreadable)?;
            if total.is_some_and(|total| total != meta.total) {
                return Ok(None);
            }
            total = Some(meta.total);
            all.extend(entries);
            // The address of the next page always has the host of DigitalOcean, so only its presence counts.
            if links.unwrap_or_default().pages.and_then(|pages| pages.next).is_none() {
                return Ok(Some(all));
            }
        }
        let problem = format!("there are more than {PAGES_MAX} pages");
        Err(ApiError::Unclear { what, problem })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/v2/{path}"));
        self.http.request(method, url)
    }

    async fn token(&self) -> Result<SecretString, ApiError> {
        match &self.token {
            TokenSource::Variable(token) => Ok(token.clone()),
            TokenSource::File(path) => {
                read(path, tokio::fs::read_to_string(path).await).map_err(ApiError::Token)
            }
        }
    }

    /// Sends one request; the body of a successful response.
    async fn send(&self, what: &str, request: RequestBuilder) -> Result<Vec<u8>, ApiError> {
        self.wait_for_rate_limit().await?;
        let request = request.bearer_auth(self.token().await?.expose_secret());
        let unclear = |error: reqwest::Error| {
            // `what` has the important part of the address, which is long.
            let problem = ErrorChain(&error.without_url()).to_string();
            ApiError::Unclear { what: what.to_owned(), problem }
        };
        let mut response = request.send().await.map_err(unclear)?;
        let status = response.status();
        if let Some(wait) = rate_limit(status, response.headers(), SystemTime::now()) {
            self.block(wait);
            if status == StatusCode::TOO_MANY_REQUESTS {
                return Err(ApiError::Throttled { wait });
            }
        }
        let body = body(&mut response).await.map_err(unclear)?;
        if status.is_success() {
            return Ok(body);
        }
        let (what, message) = (what.to_owned(), message(&body, status));
        if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
            return Err(ApiError::Unclear { what, problem: format!("{status}: {message}") });
        }
        Err(ApiError::Refused { what, status, message })
    }

    fn blocked_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.blocked_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut blocked = self.blocked_until();
        *blocked = Some(blocked.map_or(until, |blocked| blocked.max(until)));
    }

    /// Waits for the end of the rate limit, if it ends soon.
    async fn wait_for_rate_limit(&self) -> Result<(), ApiError> {
        loop {
            let Some(until) = *self.blocked_until() else { return Ok(()) };
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            if wait > INLINE_WAIT_MAX {
                return Err(ApiError::Throttled { wait });
            }
            sleep_until(until).await;
        }
    }
}

/// The time until the end of the rate limit, if the response says that it is reached.
fn rate_limit(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let is_refused = status == StatusCode::TOO_MANY_REQUESTS;
    let remaining = number("ratelimit-remaining");
    if !is_refused && remaining != Some(0) {
        return None;
    }
    // `ratelimit-reset` is the end of the limit of a minute. For the limit of an hour it is the time at which the
    // oldest request stops to count. Source: DigitalOcean's API reference, "Rate Limit".
    let retry_after = number(RETRY_AFTER.as_str()).map(Duration::from_secs);
    let reset = number("ratelimit-reset").filter(|_| remaining == Some(0)).map(|seconds| {
        let at = UNIX_EPOCH + Duration::from_secs(seconds);
        at.duration_since(now).unwrap_or_default()
    });
    let wait = retry_after.or(reset).unwrap_or(DEFAULT_WAIT);
    Some(wait.clamp(Duration::from_secs(1), WAIT_MAX))
}

fn read(path: &std::path::Path, text: std::io::Result<String>) -> Result<SecretString, String> {
    let named = |problem: String| {
        format!("digitalocean.token-file names {}, which {problem}", path.display())
    };
    let text = text.map_err(|error| named(format!("cannot be read: {error}")))?;
    match text.trim() {
        "" => Err(named("is empty".to_owned())),
        token => Ok(token.into()),
    }
}

/// The body. One that is too large is cut, and then is no JSON.
async fn body(response: &mut Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > RESPONSE_BYTES_MAX {
            break;
        }
    }
    Ok(body)
}

fn decode<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let problem = format!("it cannot be read: {error}");
        ApiError::Unclear { what: what.to_owned(), problem }
    })
}

/// The message in an error's body, with the id that `DigitalOcean`'s support asks for.
fn message(body: &[u8], status: StatusCode) -> String {
    let Ok(error) = serde_json::from_slice::<ErrorBody>(body) else {
        return status.canonical_reason().unwrap_or("no reason given").to_owned();
    };
    let message: String = error.message.chars().take(MESSAGE_CHARS_MAX).collect();
    match error.request_id {
        Some(id) => format!("{message} [request {id:.40}]"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_response_says_how_long_the_rate_limit_lasts() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let wait =
            |status, pairs: &[(&'static str, &str)]| rate_limit(status, &headers(pairs), now);
        let refused = StatusCode::TOO_MANY_REQUESTS;

        // The limit of a minute, and the limit of an hour.
        let minute = [("retry-after", "7"), ("ratelimit-remaining", "4000")];
        assert_eq!(wait(refused, &minute), Some(Duration::from_secs(7)));
        let hour = [("ratelimit-remaining", "0"), ("ratelimit-reset", "1090")];
        assert_eq!(wait(refused, &hour), Some(Duration::from_secs(90)));
        // The last request that is allowed.
        assert_eq!(wait(StatusCode::OK, &hour), Some(Duration::from_secs(90)));

        // No time, a time in the past, and an impossible time.
        assert_eq!(wait(refused, &[]), Some(DEFAULT_WAIT));
        let reset = [("ratelimit-remaining", "4000"), ("ratelimit-reset", "1090")];
        assert_eq!(wait(refused, &reset), Some(DEFAULT_WAIT));
        let over = [("ratelimit-remaining", "0"), ("ratelimit-reset", "900")];
        assert_eq!(wait(refused, &over), Some(Duration::from_secs(1)));
        let never = [("retry-after", "99999999")];
        assert_eq!(wait(refused, &never), Some(WAIT_MAX));

        assert_eq!(wait(StatusCode::OK, &reset), None);
        assert_eq!(wait(StatusCode::OK, &[]), None);
    }

    #[test]
    fn an_error_has_the_message_and_the_id_of_its_body() {
        let shown = |body: &str| message(body.as_bytes(), StatusCode::UNPROCESSABLE_ENTITY);
        let body = r#"{ "id": "x", "message": "No.", "request_id": "4d9d" }"#;
        assert_eq!(shown(body), "No. [request 4d9d]");
        assert_eq!(shown(r#"{ "id": "x", "message": "No." }"#), "No.");
        assert_eq!(shown("<html>"), "Unprocessable Entity");
    }
}
