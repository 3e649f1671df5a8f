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
}

impl Answer {
    pub(super) fn refused(access: Access, next: &str) -> Self {
        match access {
            Access::Token => Self::NeedsToken { next: next.to_owned(), was_wrong: false },
            Access::Link | Access::Public => Self::NeedsLink,
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::BadTarget => StatusCode::BAD_REQUEST,
            Self::NeedsLink | Self::NeedsToken { .. } => StatusCode::UNAUTHORIZED,
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
                "It has ended, or it never was. Look at the comment of the pull request.",
            ),
            Self::BadTarget => ("This address is not right", "It must begin with a slash."),
            Self::NeedsLink => (
                "This preview opens with its link",
                "Open it with the link in the comment of the pull request.",
            ),
            Self::NeedsToken { was_wrong: false, .. } => (
                "This preview opens with a token",
                "Give a token that `stagely token create` made, here or in the header \
                 `x-stagely-access`.",
            ),
            Self::NeedsToken { was_wrong: true, .. } => {
                ("This token is not known", "Give one that `stagely token create` made.")
            }
            Self::NotServing(PreviewState::Failed { message }) => {
                return ("This preview does not run", message.clone());
            }
            Self::NotServing(PreviewState::Deploying) => {
                ("This preview is being deployed", "The page appears as soon as the app answers.")
            }
            Self::NotServing(PreviewState::Asleep) => (
                "This preview sleeps",
                "Whoever has access wakes it by opening it. The page appears as soon as the app answers.",
            ),
            Self::NotServing(PreviewState::Waking | PreviewState::Serving { .. }) => {
                ("This preview wakes up", "The page appears as soon as the app answers.")
            }
            Self::Tunnel(error) => {
                return ("The preview does not answer", format!("Stagely reports: {error}."));
            }
            Self::AppClosed => (
                "The preview does not answer",
                "The app closed the connection before it had answered. Its log may say why.",
            ),
            Self::NotHttp => {
                ("The preview does not answer", "What the app sent is no answer of HTTP/1.1.")
            }
            Self::BadUpgrade => (
                "The preview does not answer",
                "The app switched to another protocol, which the request did not ask for.",
            ),
            Self::ConnectionLost => (
                "The preview does not answer",
                "The connection to the preview's machine was lost. Try again.",
            ),
            Self::Slow => {
                ("The preview does not answer", "The app has not answered within 10 minutes.")
            }
            Self::StalledBody => {
                ("The request did not arrive", "Nothing more of it came for a minute.")
            }
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

/// Whether a browser wants a page to show.
pub(super) fn wants_page(request: &Parts) -> bool {
    let accepts = request.headers.get_all(ACCEPT).into_iter();
    let mut accepts = accepts.filter_map(|value| value.to_str().ok());
    request.method == Method::GET
        && accepts.any(|value| value.to_ascii_lowercase().contains("text/html"))
}
