//! One request to GitHub's API and its response: the address, the time limit, the size limit, and the meaning
//! of a refusal.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LINK, LOCATION};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::LengthLimitError;
use octocrab::OctoBody;
use octocrab::Octocrab;
use reqwest::Client;
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use stagely_agent::proxy::is_loopback;
use stagely_agent::transient::{is_transient_error, is_transient_status};
use stagely_protocol::ErrorChain;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use url::Url;

use super::error::GithubError;
use super::limits::{Account, Limits, RateLimitHeaders};
use crate::core::clock::now;

/// From the request to the end of the response's body.
const RESPONSE_LIMIT: Duration = Duration::from_secs(30);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The largest response that is read. GitHub's limit for a delivery is 25 MiB, and the response that shows one
/// has it as a string.
const RESPONSE_BYTES_MAX: usize = 26 * 1024 * 1024;

const REFUSAL_BYTES_MAX: usize = 64 * 1024;

const REFUSAL_CHARS_MAX: usize = 300;

/// A renamed repository is followed at most this often.
const REDIRECTS_MAX: usize = 2;

/// The version of the API that this code is written for.
const API_VERSION: &str = "2022-11-28";

const JSON: &str = "application/vnd.github+json";

/// A request to the API, without credentials.
#[derive(Clone, Debug)]
pub(super) struct ApiRequest {
    pub(super) method: Method,
    /// Path and query, below the API's address.
    pub(super) path: String,
    pub(super) accept: &'static str,
    pub(super) body: Option<Vec<u8>>,
    pub(super) bytes_max: usize,
    /// Names the resource in errors.
    pub(super) what: String,
}

impl ApiRequest {
    pub(super) fn get(path: String, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            method: Method::GET,
            path,
            accept: JSON,
            body: None,
            bytes_max: RESPONSE_BYTES_MAX,
            what,
        }
    }

    pub(super) fn post(path: String, body: &serde_json::Value, what: impl Into<String>) -> Self {
        let body = Some(body.to_string().into_bytes());
        Self { method: Method::POST, body, ..Self::get(path, what) }
    }

    pub(super) fn patch(path: String, body: &serde_json::Value, what: impl Into<String>) -> Self {
        Self { method: Method::PATCH, ..Self::post(path, body, what) }
    }
}

/// Joins `segments`, percent-encoded, to a path.
pub(super) fn path<'a>(segments: impl IntoIterator<Item = &'a str>) -> String {
    let mut url = Url::parse("http://github").expect("the constant is a URL");
    url.path_segments_mut().expect("a URL with a host has segments").extend(segments);
    url.path().to_owned()
}

/// A response with a status of success.
#[derive(Debug)]
pub(super) struct ApiResponse {
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl ApiResponse {
    pub(super) fn json<T: DeserializeOwned>(&self, request: &ApiRequest) -> Result<T, GithubError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            // The body may hold secrets, so the error has its category and position alone.
            let category = error.classify();
            let message =
                format!("its answer about {} cannot be read ({category:?}: {error})", request.what);
            GithubError::Refused { status: 200, message }
        })
    }

    /// Path and query of the next page. The host of the link is ignored: the request for the next page carries
    /// credentials.
    pub(super) fn next_page(&self) -> Option<String> {
        let links = self.headers.get(LINK)?.to_str().ok()?;
        let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
        let address = next.split_once('<')?.1.split_once('>')?.0;
        Some(address.parse::<Uri>().ok()?.path_and_query()?.as_str().to_owned())
    }
}

/// Sends requests to the API at one address and keeps to its rate limits.
pub(super) struct ApiClient {
    base: Uri,
    is_loopback: bool,
    /// Built by the first request, because building needs a running runtime.
    http: OnceCell<Octocrab>,
    pub(super) limits: Limits,
}

impl ApiClient {
    pub(super) fn new(base: &Url) -> anyhow::Result<Self> {
        let is_loopback = is_loopback(base);
        let base = base.as_str().trim_end_matches('/').parse()?;
        Ok(Self { base, is_loopback, http: OnceCell::new(), limits: Limits::default() })
    }

    async fn http(&self) -> Result<&Octocrab, GithubError> {
        let build = async || {
            let http = Client::builder().connect_timeout(CONNECT_LIMIT).redirect(Policy::none());
            let http = if self.is_loopback { http.no_proxy() } else { http };
            let http = http.build().map_err(|error| unavailable(&error))?;
            let octocrab = Octocrab::builder().base_uri(self.base.clone());
            octocrab
                .and_then(|octocrab| octocrab.build_with_reqwest(http))
                .map_err(|error| unavailable(&error))
        };
        self.http.get_or_try_init(build).await
    }

    /// Sends `request` with the token `bearer` of `account`, and follows redirects of renamed repositories.
    pub(super) async fn send(
        &self,
        account: &Account,
        bearer: &SecretString,
        request: &ApiRequest,
    ) -> Result<ApiResponse, GithubError> {
        let mut path = request.path.clone();
        for _ in 0..=REDIRECTS_MAX {
            match self.send_once(account, bearer, request, &path).await? {
                ResponseOrRedirect::Response(response) => return Ok(response),
                ResponseOrRedirect::Redirect(to) => path = to,
            }
        }
        let message = format!("{} was moved again and again", request.what);
        Err(GithubError::Refused { status: 301, message })
    }

    async fn send_once(
        &self,
        account: &Account,
        bearer: &SecretString,
        request: &ApiRequest,
        path: &str,
    ) -> Result<ResponseOrRedirect, GithubError> {
        self.limits.check(account, now())?;
        let http_request = http_request(bearer, request, path)?;
        let exchange = async {
            let response = self.http().await?.send(http_request).await;
            let (head, body) = response.map_err(|error| unavailable(&error))?.into_parts();
            let bytes_max =
                if head.status.is_success() { request.bytes_max } else { REFUSAL_BYTES_MAX };
            let body = read_body(Body::new(body), bytes_max, request).await;
            Ok((head.status, head.headers, body))
        };
        let exchanged = timeout(RESPONSE_LIMIT, exchange).await;
        let (status, headers, body) = exchanged.unwrap_or_else(|_| {
            Err(GithubError::Unavailable(format!("no answer within {RESPONSE_LIMIT:?}")))
        })?;
        let message = match &body {
            Ok(body) if !status.is_success() => refusal_message(body),
            _ => String::new(),
        };
        let rate_limit = RateLimitHeaders::read(status, &headers, &message);
        if let Some(until) = self.limits.observe(account, &rate_limit, now()) {
            return Err(GithubError::RateLimited { until });
        }
        if status.is_success() {
            return Ok(ResponseOrRedirect::Response(ApiResponse { headers, body: body? }));
        }
        if let Some(path) = self.redirect(status, &headers) {
            return Ok(ResponseOrRedirect::Redirect(path));
        }
        Err(refusal(status, &message, request))
    }

    /// The path of a redirect to the same host. Another host gets no credentials, so its redirects count as
    /// refusals.
    fn redirect(&self, status: StatusCode, headers: &HeaderMap) -> Option<String> {
        if !matches!(status.as_u16(), 301 | 302 | 307 | 308) {
            return None;
        }
        let to: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
        let is_same_host =
            to.authority().is_none_or(|authority| Some(authority) == self.base.authority());
        let path = to.path_and_query()?.as_str().to_owned();
        is_same_host.then_some(path)
    }
}

enum ResponseOrRedirect {
    Response(ApiResponse),
    Redirect(String),
}

fn http_request(
    bearer: &SecretString,
    request: &ApiRequest,
    path: &str,
) -> Result<Request<OctoBody>, GithubError> {
    let unusable = || {
        let problem = "a token for GitHub holds characters that no token has: store it anew";
        GithubError::Credentials(problem.to_owned())
    };
    let mut authorization = HeaderValue::try_from(format!("Bearer {}", bearer.expose_secret()))
        .map_err(|_| unusable())?;
    authorization.set_sensitive(true);
    let mut builder = Request::builder()
        .method(request.method.clone())
        .uri(path)
        .header(ACCEPT, request.accept)
        .header("x-github-api-version", API_VERSION)
        .header(AUTHORIZATION, authorization);
    if request.body.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let body = request.body.clone().map_or_else(OctoBody::empty, OctoBody::from);
    builder.body(body).map_err(|error| {
        let message = format!("the address of {} cannot be: {error}", request.what);
        GithubError::Refused { status: 400, message }
    })
}

async fn read_body(
    body: Body,
    bytes_max: usize,
    request: &ApiRequest,
) -> Result<Bytes, GithubError> {
    to_bytes(body, bytes_max).await.map_err(|error| {
        if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) {
            return GithubError::TooLarge { what: request.what.clone(), bytes_max };
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

/// The message of a refusal, in one line.
fn refusal_message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<RefusalPayload>(body) {
        Ok(RefusalPayload { message, errors: serde_json::Value::Null }) => message,
        Ok(RefusalPayload { message, errors }) => format!("{message} {errors}"),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| !c.is_control()).take(REFUSAL_CHARS_MAX).collect()
}

fn refusal(status: StatusCode, message: &str, request: &ApiRequest) -> GithubError {
    let status = status.as_u16();
    let what = &request.what;
    match status {
        404 | 410 => GithubError::NotFound(what.clone()),
        _ if is_transient_status(status) => {
            GithubError::Unavailable(format!("status {status} for {what}"))
        }
        _ => GithubError::Refused { status, message: format!("{what}: {message}") },
    }
}

/// The error of a request without a response.
fn unavailable(error: &(dyn Error + 'static)) -> GithubError {
    let text = ErrorChain(error).to_string();
    let line = text.lines().next().unwrap_or_default().to_owned();
    if is_transient_error(error) {
        GithubError::Unavailable(line)
    } else {
        GithubError::Unusable(line)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_github_that_is_away_or_overloaded_is_asked_again() {
        let request = ApiRequest::get("/".to_owned(), "a file");
        for (status, is_transient) in [
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (408, true),
            (409, false),
            (410, false),
            (422, false),
            (425, true),
            (429, true),
            (500, true),
            (502, true),
            (599, true),
        ] {
            let error = refusal(StatusCode::from_u16(status).unwrap(), "its words", &request);
            assert_eq!(error.is_transient(), is_transient, "{status}: {error}");
        }
        for (words, is_transient) in [
            ("Connection refused (os error 111)", true),
            ("operation timed out", true),
            ("Temporary failure in name resolution", true),
            ("Name or service not known", false),
            ("certificate verify failed", false),
        ] {
            let error = unavailable(&io::Error::other(words));
            assert_eq!(error.is_transient(), is_transient, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
