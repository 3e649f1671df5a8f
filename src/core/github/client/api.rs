//! One request and its answer: where it goes, how long it may take, how much is read, and what a refusal
//! means.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LINK, LOCATION};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use octocrab::OctoBody;
use octocrab::Octocrab;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use url::Url;

use super::error::GithubError;
use super::limits::{Account, Limits, Said};
use crate::core::clock::now;

/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The largest answer that is read. A delivery is at most this large at GitHub, and is one string more
/// here.
const ANSWER_BYTES_MAX: usize = 26 * 1024 * 1024;

/// The most of a refusal that is read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// The most characters of a refusal that are shown.
const MESSAGE_CHARS_MAX: usize = 300;

/// The version of the API that this was written for.
const API_VERSION: &str = "2022-11-28";

const JSON: &str = "application/vnd.github+json";

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Below the API's address, with the query.
    pub(super) path: String,
    pub(super) accept: &'static str,
    pub(super) body: Option<Vec<u8>>,
    pub(super) bytes_max: usize,
    /// What it asks for, for people.
    pub(super) what: String,
}

impl Ask {
    /// Reads something.
    pub(super) fn get(path: String, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            method: Method::GET,
            path,
            accept: JSON,
            body: None,
            bytes_max: ANSWER_BYTES_MAX,
            what,
        }
    }

    /// Writes something.
    pub(super) fn send(
        method: Method,
        path: String,
        body: &serde_json::Value,
        what: impl Into<String>,
    ) -> Self {
        Self { method, body: Some(body.to_string().into_bytes()), ..Self::get(path, what) }
    }
}

/// A path of `parts`, each escaped as far as it must be.
pub(super) fn path<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut url = Url::parse("http://github").expect("it is a URL");
    url.path_segments_mut().expect("it has a host").extend(parts);
    url.path().to_owned()
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, GithubError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // The line of the answer says nothing, and the answer may hold secrets.
            let kind = error.classify();
            let message =
                format!("its answer about {} cannot be read ({kind:?}: {error})", ask.what);
            GithubError::Refused { status: 200, message }
        })
    }

    /// Path and query of the next page. Its host is not regarded, since it is given credentials.
    pub(super) fn next_page(&self) -> Option<String> {
        let links = self.headers.get(LINK)?.to_str().ok()?;
        let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
        let address = next.split_once('<')?.1.split_once('>')?.0;
        Some(address.parse::<Uri>().ok()?.path_and_query()?.as_str().to_owned())
    }
}

/// Speaks HTTP.
pub(super) struct Api {
    base: Uri,
    /// Made when it is first needed, since it takes a running runtime.
    client: OnceCell<Octocrab>,
    pub(super) limits: Limits,
}

impl Api {
    pub(super) fn new(base: &Url) -> anyhow::Result<Self> {
        let base = base.as_str().trim_end_matches('/').parse()?;
        Ok(Self { base, client: OnceCell::new(), limits: Limits::default() })
    }

    async fn client(&self) -> Result<&Octocrab, GithubError> {
        let make = async || {
            Octocrab::builder()
                .base_uri(self.base.clone())?
                .set_connect_timeout(Some(CONNECT_LIMIT))
                .build()
        };
        self.client.get_or_try_init(make).await.map_err(|error| unavailable(&error))
    }

    /// Asks with `bearer`, which is `account`'s. Follows GitHub where a repository was renamed.
    pub(super) async fn ask(
        &self,
        account: &Account,
        bearer: &SecretString,
        ask: &Ask,
    ) -> Result<Answer, GithubError> {
        let mut path = ask.path.clone();
        for _ in 0..3 {
            match self.ask_once(account, bearer, ask, &path).await? {
                Outcome::Answer(answer) => return Ok(answer),
                Outcome::Moved(to) => path = to,
            }
        }
        let message = format!("{} was moved again and again", ask.what);
        Err(GithubError::Refused { status: 301, message })
    }

    async fn ask_once(
        &self,
        account: &Account,
        bearer: &SecretString,
        ask: &Ask,
        path: &str,
    ) -> Result<Outcome, GithubError> {
        self.limits.check(account, now())?;
        let request = request(bearer, ask, path)?;
        let exchange = async {
            let response = self.client().await?.send(request).await;
            let (head, body) = response.map_err(|error| unavailable(&error))?.into_parts();
            let bytes_max =
                if head.status.is_success() { ask.bytes_max } else { REFUSAL_BYTES_MAX };
            let body = read(Body::new(body), bytes_max, ask).await;
            Ok((head.status, head.headers, body))
        };
        let exchanged = timeout(ANSWER_LIMIT, exchange).await;
        let (status, headers, body) = exchanged.unwrap_or_else(|_| {
            Err(GithubError::Unavailable(format!("no answer within {ANSWER_LIMIT:?}")))
        })?;
        let message = match &body {
            Ok(body) if !status.is_success() => message(body),
            _ => String::new(),
        };
        let said = Said::of(status, &headers, &message);
        if let Some(until) = self.limits.observe(account, &said, now()) {
            return Err(GithubError::RateLimited { until });
        }
        if status.is_success() {
            return Ok(Outcome::Answer(Answer { headers, body: body? }));
        }
        if let Some(to) = self.moved_to(status, &headers) {
            return Ok(Outcome::Moved(to));
        }
        Err(refusal(status, &message, ask))
    }

    /// Where it is now, if that is at the same host: another one gets no credentials.
    fn moved_to(&self, status: StatusCode, headers: &HeaderMap) -> Option<String> {
        if !matches!(status.as_u16(), 301 | 302 | 307 | 308) {
            return None;
        }
        let to: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
        let is_here = to.authority().is_none_or(|it| Some(it) == self.base.authority());
        let path = to.path_and_query()?.as_str().to_owned();
        is_here.then_some(path)
    }
}

enum Outcome {
    Answer(Answer),
    Moved(String),
}

fn request(bearer: &SecretString, ask: &Ask, path: &str) -> Result<Request<OctoBody>, GithubError> {
    let unusable = || {
        let problem = "a token for GitHub holds characters that no token has: store it anew";
        GithubError::Credentials(problem.to_owned())
    };
    let mut authorization = HeaderValue::try_from(format!("Bearer {}", bearer.expose_secret()))
        .map_err(|_| unusable())?;
    authorization.set_sensitive(true);
    let mut request = Request::builder()
        .method(ask.method.clone())
        .uri(path)
        .header(ACCEPT, ask.accept)
        .header("x-github-api-version", API_VERSION)
        .header(AUTHORIZATION, authorization);
    if ask.body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = ask.body.clone().map_or_else(OctoBody::empty, OctoBody::from);
    request.body(body).map_err(|error| {
        let message = format!("the address of {} cannot be: {error}", ask.what);
        GithubError::Refused { status: 400, message }
    })
}

async fn read(body: Body, bytes_max: usize, ask: &Ask) -> Result<Bytes, GithubError> {
    to_bytes(body, bytes_max).await.map_err(|error| {
        let is_too_large = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        if is_too_large {
            return GithubError::TooLarge { what: ask.what.clone(), bytes_max };
        }
        unavailable(&error)
    })
}

#[derive(Deserialize)]
struct RefusalPayload {
    message: String,
    #[serde(default)]
    errors: serde_json::Value,
}

/// What a refusal says, in one line.
fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<RefusalPayload>(body) {
        Ok(RefusalPayload { message, errors: serde_json::Value::Null }) => message,
        Ok(RefusalPayload { message, errors }) => format!("{message} {errors}"),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

fn refusal(status: StatusCode, message: &str, ask: &Ask) -> GithubError {
    let status = status.as_u16();
    match status {
        404 | 410 => GithubError::NotFound(ask.what.clone()),
        408 | 500..=599 => GithubError::Unavailable(format!("status {status} for {}", ask.what)),
        _ => GithubError::Refused { status, message: format!("{}: {message}", ask.what) },
    }
}

/// Says what a chain of errors says, without repeating what says the same.
fn unavailable(error: &dyn std::error::Error) -> GithubError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    GithubError::Unavailable(text.lines().next().unwrap_or_default().to_owned())
}
