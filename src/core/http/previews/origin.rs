//! Which page sent a request. Previews are below one domain, so browsers send the cookie of one also with requests of
//! the pages of another.

use axum::http::header::{HeaderName, ORIGIN, REFERER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use url::Url;

use super::PreviewParts;
use super::headers::is_upgrade;
use crate::core::previews::{Host, Route};

/// How the page's origin and that of the request are related. Browsers set both headers, and pages cannot.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Whether the cookie of the preview of `route` counts for a request: not if a page of another preview sent it, unless the
/// browser follows a link. `WebSockets` are opened by pages of the preview alone, because no browser forbids others to read
/// them.
pub(super) fn may_use_cookie(parts: &PreviewParts, route: &Route, request: &Parts) -> bool {
    let headers = &request.headers;
    let is = |name: HeaderName, expected: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes() == expected.as_bytes())
    };
    let is_own = |host: &Host| match host {
        Host::Preview { label, .. } => {
            parts.routes.find(label).is_some_and(|other| other.preview == route.preview)
        }
        Host::Core | Host::Artifacts(_) | Host::Nobody => false,
    };
    let mut origins = headers.get_all(ORIGIN).into_iter();
    let (first, second) = (origins.next(), origins.next());
    match (first, second) {
        // Images, scripts and forms that only read have no origin.
        (None, _) if is(FETCH_SITE, "same-site") && !is(FETCH_MODE, "navigate") => {
            referer(parts, headers).is_some_and(|host| is_own(&host))
        }
        (None, _) => true,
        (Some(_), Some(_)) => false,
        (Some(origin), None) => match host_of(parts, origin) {
            Some(host @ (Host::Preview { .. } | Host::Artifacts(_) | Host::Nobody)) => {
                is_own(&host)
            }
            Some(Host::Core) => !is_upgrade(headers),
            // `null`, also of pages that hide their address.
            None => {
                let is_own = is(FETCH_SITE, "same-origin") || is(FETCH_SITE, "none");
                is_own && !is_upgrade(headers)
            }
        },
    }
}

fn referer(parts: &PreviewParts, headers: &HeaderMap) -> Option<Host> {
    host_of(parts, headers.get(REFERER)?)
}

/// `None` if it is no URL, such as `null`.
fn host_of(parts: &PreviewParts, origin: &HeaderValue) -> Option<Host> {
    let origin = Url::parse(origin.to_str().ok()?).ok()?;
    Some(parts.hosts.find(origin.host_str()?))
}
