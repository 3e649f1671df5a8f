//! How a browser gets the cookie of a preview: by its link, or by a form that takes a token of the API.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, REFERRER_POLICY, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use http_body_util::{BodyExt as _, Limited};
use secrecy::SecretString;
use std::time::Duration;
use tokio::time::timeout;
use url::form_urlencoded;

use super::super::auth::ApiTokens;
use super::super::client_body::ClientBody;
use super::access::access_cookie_header;
use super::answers::{Answer, LOGIN_PATH};
use super::headers::Client;
use crate::core::previews::{Access, Route};

/// The largest form.
const FORM_BYTES_MAX: usize = 16 * 1024;

/// How long a browser may take to send the form.
const FORM_LIMIT: Duration = Duration::from_secs(10);

/// Whether a request is the form with a token.
pub(super) fn is_login(route: &Route, request: &Parts) -> bool {
    let is_form = request
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
    route.access == Access::Token
        && request.method == Method::POST
        && request.uri.path() == LOGIN_PATH
        && is_form
}

/// Answers the form with a token.
pub(super) async fn log_in(
    route: &Route,
    client: &Client,
    tokens: &ApiTokens,
    body: ClientBody,
) -> Result<Response, Answer> {
    let form = timeout(FORM_LIMIT, Limited::new(body, FORM_BYTES_MAX).collect()).await;
    let form = form.map_err(|_| Answer::StalledBody)?.map_err(|_| Answer::InvalidBody)?.to_bytes();
    let field = |wanted: &str| {
        form_urlencoded::parse(&form).find(|(name, _)| name == wanted).map(|(_, value)| value)
    };
    let next = field("next").filter(|next| next.starts_with('/')).unwrap_or("/".into());
    let token = SecretString::from(field("token").unwrap_or_default().trim());
    if tokens.role_of(&token).is_none() {
        let next = next.into_owned();
        let answer = Answer::NeedsToken { next, was_wrong: true };
        return Ok(answer.into_response(true));
    }
    enter(route, client, &next)
}

/// Gives the browser the cookie, and sends it to `target`.
pub(super) fn enter(route: &Route, client: &Client, target: &str) -> Result<Response, Answer> {
    // With scheme and host, because `//other.example` alone would lead to another host.
    let host = client.host.to_str().unwrap_or_default();
    let location = HeaderValue::try_from(format!("{}://{host}{target}", client.scheme));
    let (Ok(location), Some(cookie)) = (location, access_cookie_header(route, client.scheme))
    else {
        return Err(Answer::BadTarget);
    };
    let headers = [
        (LOCATION, location),
        (SET_COOKIE, cookie),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((StatusCode::SEE_OTHER, headers, Body::empty()).into_response())
}
