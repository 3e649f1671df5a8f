//! What core itself answers on the hosts of previews: a page for people, a sentence for programs.

use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, REFRESH, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};

use super::super::pages;
use super::tunnels::TunnelError;
use crate::core::previews::{Access, PreviewState};

/// Where the form sends a token. Apps do not get requests to this path.
pub(super) const LOGIN_PATH: &str = "/.well-known/stagely-access";

/// The page of a preview that does not serve yet is loaded again after so many seconds.
const REFRESH_SECONDS: u8 = 2;

/// Programs should try again after so many seconds.
const RETRY_SECONDS: u8 = 5;

/// Why a request does not get the app's answer.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// No preview has this name.
    Unknown,
    /// The target of the request is no path.
    BadTarget,
    /// The client has no access, and needs the link.
    NeedsLink,
    /// The client has no access, and needs a token.
    NeedsToken {
        /// Where the browser goes with a token.
        next: String,
        was_wrong: bool,
    },
    /// A page of another origin sent the request with the cookie of the browser.
    ForeignOrigin,
    /// A preview that opens with a token has no service workers.
    ServiceWorker,
    NotServing(PreviewState),
    Tunnel(TunnelError),
    /// The app closed the connection without an answer.
    AppClosed,
    NotHttp,
    /// The app began a protocol that the request did not ask for.
    BadUpgrade,
    /// The connection to the machine broke.
    ConnectionLost,
    /// The app did not answer in time.
    Slow,
    /// The client did not send its request in time.
    StalledBody,
    /// The body of the request is not one of HTTP/1.1, or too long.
    InvalidBody,
}

impl Answer {
    pub(super) fn refused(access: Access, next: &str) -> Self {
        match access {
            Access::Token => Self::NeedsToken { next: next.to_owned(), was_wrong: false },
            Access::Link | Access::Public => Self::NeedsLink,
        }
    }

    /// What a client may know that has not shown that it may open the preview.
    pub(super) fn for_strangers(self) -> Self {
        match self {
            Self::NotServing(state) => Self::NotServing(state.without_details()),
            other => other,
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::BadTarget | Self::InvalidBody => StatusCode::BAD_REQUEST,
            Self::NeedsLink | Self::NeedsToken { .. } => StatusCode::UNAUTHORIZED,
            Self::ForeignOrigin | Self::ServiceWorker => StatusCode::FORBIDDEN,
            Self::NotServing(_) | Self::Tunnel(TunnelError::Busy) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Slow | Self::Tunnel(TunnelError::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Self::StalledBody => StatusCode::REQUEST_TIMEOUT,
            Self::Tunnel(TunnelError::Disconnected | TunnelError::Refused(_))
            | Self::AppClosed
            | Self::NotHttp
            | Self::BadUpgrade
            | Self::ConnectionLost => StatusCode::BAD_GATEWAY,
        }
    }

    /// A title, and a sentence with what to do.
    fn text(&self) -> (&'static str, String) {
        let (title, advice) = match self {
            Self::Unknown => (
                "There is no such preview",
                "It has ended, or it never was. The comment of the pull request, or the command that started it, has its address.",
            ),
            Self::BadTarget => ("This address is not right", "It must begin with a slash."),
            Self::NeedsLink => (
                "This preview opens with its link",
                "Open it with the link in the comment of the pull request, or with the one that `stagely run` printed.",
            ),
            Self::NeedsToken { was_wrong: false, .. } => (
                "This preview opens with a token",
                "Give a token that `stagely token create` made, here or in the header \
                 `x-stagely-access`.",
            ),
            Self::NeedsToken { was_wrong: true, .. } => {
                ("This token is not known", "Give one that `stagely token create` made.")
            }
            Self::ForeignOrigin => (
                "A page of another origin may not use this preview",
                "Its cookie counts for requests of its own pages. Give others the header `x-stagely-access`, or name \
                 the path in `public_paths` of stagely.yaml.",
            ),
            Self::ServiceWorker => (
                "This preview may not have a service worker",
                "One could read the tokens that people type. Previews with `access: link` may have them.",
            ),
            Self::NotServing(PreviewState::Failed { message }) => {
                return ("This preview does not run", message.clone());
            }
            Self::NotServing(PreviewState::Deploying { progress }) => {
                return ("This preview is being deployed", soon(progress));
            }
            Self::NotServing(PreviewState::Waking { progress }) => {
                return ("This preview wakes up", soon(progress));
            }
            Self::NotServing(PreviewState::Asleep) => (
                "This preview sleeps",
                "Whoever has access wakes it by opening it. The page appears as soon as the app answers.",
            ),
            Self::NotServing(PreviewState::Serving { .. }) => {
                return ("This preview wakes up", soon(""));
            }
            Self::Tunnel(error) => {
                return ("The preview does not answer", format!("Stagely reports: {error}."));
            }
            Self::AppClosed => (
                "The preview does not answer",
                "The app closed the connection before it had answered. Its log may say why: `stagely previews logs`.",
            ),
            Self::NotHttp => (
                "The preview does not answer",
                "What the app sent is no answer of HTTP/1.1. Look whether the port in stagely.yaml is that of a web \
                     server without TLS.",
            ),
            Self::BadUpgrade => (
                "The preview does not answer",
                "The app switched to another protocol, which the request did not ask for.",
            ),
            Self::ConnectionLost => (
                "The preview does not answer",
                "The connection to the preview's machine was lost. Try again.",
            ),
            Self::Slow => (
                "The preview does not answer",
                "The app has not answered within 10 minutes. Its log may say why: `stagely previews logs`.",
            ),
            Self::StalledBody => {
                ("The request did not arrive", "Nothing more of it came for too long.")
            }
            Self::InvalidBody => (
                "The request is not right",
                "Its body is not one of HTTP/1.1, is too long, or broke off.",
            ),
        };
        (title, advice.to_owned())
    }

    pub(super) fn into_response(self, wants_page: bool) -> Response {
        let (title, advice) = self.text();
        let status = self.status();
        let mut response = match &self {
            Self::NeedsToken { next, .. } if wants_page => {
                pages::login(status, title, &advice, LOGIN_PATH, next)
            }
            _ if wants_page => pages::refused(status, title, &advice),
            _ => {
                let headers =
                    [(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-store")];
                (status, headers, format!("{title}. {advice}\n")).into_response()
            }
        };
        let mut set = |name: HeaderName, value: HeaderValue| {
            response.headers_mut().insert(name, value);
        };
        if status == StatusCode::UNAUTHORIZED {
            set(WWW_AUTHENTICATE, HeaderValue::from_static("Stagely-Access"));
        }
        if let Self::NotServing(state) = &self {
            set(RETRY_AFTER, HeaderValue::from(u16::from(RETRY_SECONDS)));
            if state.is_about_to_serve() {
                set(REFRESH, HeaderValue::from(u16::from(REFRESH_SECONDS)));
            }
        }
        response
    }
}

/// The progress, and when the page appears.
fn soon(progress: &str) -> String {
    let text = format!("{progress} The page appears as soon as the app answers.");
    text.trim_start().to_owned()
}

/// Whether a browser wants a page to show.
pub(super) fn wants_page(request: &Parts) -> bool {
    let accepts = request.headers.get_all(ACCEPT).into_iter();
    let mut accepts = accepts.filter_map(|value| value.to_str().ok());
    request.method == Method::GET
        && accepts.any(|value| value.to_ascii_lowercase().contains("text/html"))
}
