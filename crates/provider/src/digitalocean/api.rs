//! One request of `DigitalOcean`'s API and its answer: the token, pages, the rate limit, and what a refusal
//! means.

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
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tracing::debug;
use url::Url;

use crate::digitalocean::DigitalOceanSettings;
use crate::settings::is_this_host;

/// Where the token is without `token-file`.
const TOKEN_VARIABLE: &str = "DIGITALOCEAN_TOKEN";

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long one answer may take. A droplet that is created is answered for within seconds, or not at all.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// The largest answer that is read: 200 droplets are less than a megabyte.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most characters of a refusal that are shown.
const MESSAGE_CHARS_MAX: usize = 300;

/// The largest page that there is.
const PAGE_SIZE: u32 = 200;

/// The most pages of a list: twenty thousand things.
const PAGES_MAX: u32 = 100;

/// How often a list is read from its beginning when it changes while its pages are read.
const READS_MAX: u32 = 3;

/// A limit that holds for no longer than this is waited for: that of a minute, and not that of an hour.
const PATIENCE: Duration = Duration::from_secs(70);

/// The wait where the API says that it is asked too often, and not for how long.
const DEFAULT_WAIT: Duration = Duration::from_mins(1);

/// No wait is longer: after an hour everything is allowed again.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// Why the API did not do what was asked.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    /// There is no token.
    #[error("{0}")]
    Token(String),
    /// It says no, and has done nothing.
    #[error("DigitalOcean refuses {what} ({status}): {message}")]
    Refused { what: String, status: StatusCode, message: String },
    /// It is asked too often, and has done nothing.
    #[error("DigitalOcean wants to be asked less often: again in {} s", wait.as_secs().max(1))]
    Throttled { wait: Duration },
    /// No answer, or none that says what was done.
    #[error("DigitalOcean gives no clear answer to {what}: {problem}")]
    Unclear { what: String, problem: String },
}

impl ApiError {
    /// The status of a refusal.
    pub(super) const fn refused(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Token(_) | Self::Throttled { .. } | Self::Unclear { .. } => None,
        }
    }
}

/// Where the token comes from.
enum Token {
    File(PathBuf),
    Variable(SecretString),
}

/// Speaks with the API.
pub(super) struct Api {
    base: Url,
    token: Token,
    http: reqwest::Client,
    /// Nothing is asked before this moment: a limit is reached.
    blocked_until: Mutex<Option<Instant>>,
}

#[derive(Deserialize)]
struct Refusal {
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

impl Api {
    /// Checks that there is a token.
    ///
    /// # Errors
    /// There is none, which says how to give one; or TLS cannot be set up.
    pub(super) fn new(config: &DigitalOceanSettings) -> anyhow::Result<Self> {
        let token = match (&config.token_file, std::env::var(TOKEN_VARIABLE)) {
            (Some(path), _) => {
                read(path, std::fs::read_to_string(path)).map_err(anyhow::Error::msg)?;
                Token::File(path.clone())
            }
            (None, Ok(token)) if !token.trim().is_empty() => Token::Variable(token.trim().into()),
            (None, _) => anyhow::bail!(
                "there is no token of DigitalOcean's API: set digitalocean.token-file, or \
                 {TOKEN_VARIABLE} of the environment"
            ),
        };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            // The token is for the host that is configured and no other.
            .redirect(Policy::none())
            .user_agent(concat!("stagely/", env!("CARGO_PKG_VERSION")));
        // What listens on this machine is not behind a proxy.
        let http = if is_this_host(config.api_url.host()) { http.no_proxy() } else { http };
        let http = http.build().context("cannot make a client of DigitalOcean's API")?;
        Ok(Self { base: config.api_url.clone(), token, http, blocked_until: Mutex::default() })
    }

    /// Reads `path`, below `/v2/`.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ApiError> {
        let what = format!("GET {path}");
        let body = self.ask(&what, self.request(Method::GET, path).query(query)).await?;
        decode(&what, &body)
    }

    /// Sends `body` to `path`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, ApiError> {
        let what = format!("POST {path}");
        let answer = self.ask(&what, self.request(Method::POST, path).json(body)).await?;
        decode(&what, &answer)
    }

    /// Deletes what `path` names. What is not there is success.
    pub(super) async fn delete(&self, path: &str, query: &[(&str, &str)]) -> Result<(), ApiError> {
        let request = self.request(Method::DELETE, path).query(query);
        match self.ask(&format!("DELETE {path}"), request).await {
            Err(error) if error.refused() == Some(StatusCode::NOT_FOUND) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Reads the whole list at `path`, whose things are in the field `key` of each page. A list that gets
    /// longer or shorter meanwhile is read again: a thing that moves to an earlier page would be missed.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ApiError> {
        for _ in 0..READS_MAX {
            if let Some(all) = self.try_list(path, key, query).await? {
                return Ok(all);
            }
            debug!(path, "the list has changed while it was read");
        }
        let problem = format!("the list has changed {READS_MAX} times while it was read");
        Err(ApiError::Unclear { what: format!("GET {path}"), problem })
    }

    /// `None` where the list has changed meanwhile.
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
            let things: Vec<T> = serde_json::from_value(page[key].take()).map_err(unreadable)?;
            let meta: Meta = serde_json::from_value(page["meta"].take()).map_err(unreadable)?;
            let links: Option<Links> =
                serde_json::from_value(page["links"].take()).map_err(unreadable)?;
            if total.is_some_and(|total| total != meta.total) {
                return Ok(None);
            }
            total = Some(meta.total);
            all.extend(things);
            // Its address is that of DigitalOcean itself, whatever was asked, so only its presence counts.
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
            Token::Variable(token) => Ok(token.clone()),
            Token::File(path) => {
                read(path, tokio::fs::read_to_string(path).await).map_err(ApiError::Token)
            }
        }
    }

    /// Sends one request; the body of a good answer.
    async fn ask(&self, what: &str, request: RequestBuilder) -> Result<Vec<u8>, ApiError> {
        self.turn().await?;
        let request = request.bearer_auth(self.token().await?.expose_secret());
        let unclear = |error: reqwest::Error| {
            // The address says nothing that `what` does not, and is long.
            let error = anyhow::Error::from(error.without_url());
            ApiError::Unclear { what: what.to_owned(), problem: format!("{error:#}") }
        };
        let mut response = request.send().await.map_err(unclear)?;
        let status = response.status();
        if let Some(wait) = wait(status, response.headers(), SystemTime::now()) {
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

    /// Waits until the API may be asked, or says that this takes too long.
    async fn turn(&self) -> Result<(), ApiError> {
        loop {
            let Some(until) = *self.blocked_until() else { return Ok(()) };
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            if wait > PATIENCE {
                return Err(ApiError::Throttled { wait });
            }
            sleep_until(until).await;
        }
    }
}

/// For how long nothing may be asked, if an answer says that a limit is reached.
fn wait(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let is_refused = status == StatusCode::TOO_MANY_REQUESTS;
    let remaining = number("ratelimit-remaining");
    if !is_refused && remaining != Some(0) {
        return None;
    }
    // The limit of a minute says when it ends; that of an hour, when its oldest request does not count any
    // more. Source: DigitalOcean's API reference, "Rate Limit".
    let said = number(RETRY_AFTER.as_str()).map(Duration::from_secs);
    let reset = number("ratelimit-reset").filter(|_| remaining == Some(0)).map(|seconds| {
        let at = UNIX_EPOCH + Duration::from_secs(seconds);
        at.duration_since(now).unwrap_or_default()
    });
    let wait = said.or(reset).unwrap_or(DEFAULT_WAIT);
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

/// The body, cut where it is larger than any that is meant: what is cut cannot be read as JSON.
async fn body(response: &mut Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
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

/// What a refusal says, with the number that `DigitalOcean`'s support asks for.
fn message(body: &[u8], status: StatusCode) -> String {
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else {
        return status.canonical_reason().unwrap_or("no reason given").to_owned();
    };
    let message: String = refusal.message.chars().take(MESSAGE_CHARS_MAX).collect();
    match refusal.request_id {
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
    fn a_limit_says_for_how_long_it_holds() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let wait = |status, pairs: &[(&'static str, &str)]| wait(status, &headers(pairs), now);
        let refused = StatusCode::TOO_MANY_REQUESTS;

        // That of a minute, and that of an hour.
        let minute = [("retry-after", "7"), ("ratelimit-remaining", "4000")];
        assert_eq!(wait(refused, &minute), Some(Duration::from_secs(7)));
        let hour = [("ratelimit-remaining", "0"), ("ratelimit-reset", "1090")];
        assert_eq!(wait(refused, &hour), Some(Duration::from_secs(90)));
        // The last one that is allowed.
        assert_eq!(wait(StatusCode::OK, &hour), Some(Duration::from_secs(90)));

        // What says nothing, what is over, and what cannot be.
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
    fn a_refusal_is_told_in_its_own_words() {
        let said = |body: &str| message(body.as_bytes(), StatusCode::UNPROCESSABLE_ENTITY);
        let body = r#"{ "id": "x", "message": "No.", "request_id": "4d9d" }"#;
        assert_eq!(said(body), "No. [request 4d9d]");
        assert_eq!(said(r#"{ "id": "x", "message": "No." }"#), "No.");
        assert_eq!(said("<html>"), "Unprocessable Entity");
    }
}
