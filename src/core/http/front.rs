//! Decides by the host of a request whether core answers it or a preview.

use std::net::IpAddr;

use axum::Router;
use axum::body::Body;
use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tower_service::Service as _;
use url::Url;

use super::client_body::ClientBody;
use super::error::ApiError;
use super::pages;
use super::previews::{Client, PreviewProxy, PreviewRequest};
use crate::core::previews::Host;

/// The longest head of a request. A connection holds as much of a response that the client has not accepted yet, and
/// reads up to twice as much before it gives up a head.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Everything that the server serves.
#[derive(Clone)]
pub(super) struct Front {
    router: Router,
    /// Of the hosts of artifacts.
    artifacts: Router,
    previews: PreviewProxy,
}

impl Front {
    pub(super) fn new(router: Router, artifacts: Router, previews: PreviewProxy) -> Self {
        Self { router, artifacts, previews }
    }

    pub(super) async fn serve(mut self, request: Request<ClientBody>, peer: IpAddr) -> Response {
        let (head, body) = request.into_parts();
        if bytes_of(&head) > HEAD_BYTES_MAX {
            return StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
        }
        let host = match host_of(&head) {
            Ok(host) => host,
            Err(problem) => return ApiError::invalid(problem).into_response(),
        };
        let hosts = self.previews.hosts();
        match host.as_ref().map_or(Host::Core, |host| hosts.find(host.host())) {
            Host::Core if self.is_write_of_a_preview(&head) => {
                ApiError::forbidden("pages of previews may not use this API").into_response()
            }
            Host::Core => {
                let request = Request::from_parts(head, Body::new(body));
                self.router.call(request).await.unwrap_or_else(|never| match never {})
            }
            Host::Artifacts(environment) => {
                let mut request = Request::from_parts(head, Body::new(body));
                request.extensions_mut().insert(environment);
                self.artifacts.call(request).await.unwrap_or_else(|never| match never {})
            }
            Host::Preview { label, scheme } => {
                let host = host.map(|host| host.as_str().to_owned()).unwrap_or_default();
                let Ok(host) = HeaderValue::try_from(host) else {
                    return ApiError::invalid("the host is no header").into_response();
                };
                let client = Client { address: peer, scheme, host };
                let request = Request::from_parts(head, body);
                self.previews.serve(PreviewRequest { label, client, request }).await
            }
            Host::Nobody => {
                let advice = "Previews have one name below their domain, such as `pr-7-app`.";
                pages::refused(StatusCode::NOT_FOUND, "There is no such preview", advice)
            }
        }
    }

    /// Whether a page of a preview, which may be a stranger's, wants to change something. Browsers name the page's origin.
    fn is_write_of_a_preview(&self, head: &Parts) -> bool {
        let is_preview = |origin: &HeaderValue| {
            let origin = origin.to_str().ok().and_then(|origin| Url::parse(origin).ok());
            let host = origin.as_ref().and_then(Url::host_str);
            host.is_some_and(|host| self.previews.hosts().find(host) != Host::Core)
        };
        !head.method.is_safe() && head.headers.get_all(ORIGIN).into_iter().any(is_preview)
    }
}

/// The length of a request's head, without separators.
fn bytes_of(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let first_line = head.method.as_str().len() + target;
    head.headers
        .iter()
        .fold(first_line, |bytes, (name, value)| bytes + name.as_str().len() + value.len())
}

/// The host that a request names; `None` if it names none.
fn host_of(head: &Parts) -> Result<Option<Authority>, &'static str> {
    let mut hosts = head.headers.get_all(HOST).into_iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("the request has several Host headers");
    }
    let named = match first.map(HeaderValue::as_bytes) {
        None | Some(b"") => None,
        Some(host) => Some(Authority::try_from(host).map_err(|_| "the Host header is not a host")?),
    };
    if named.as_ref().is_some_and(|host| host.as_str().contains('@')) {
        return Err("the Host header is not a host");
    }
    match (head.uri.authority(), named) {
        (Some(target), Some(named)) if *target != named => {
            Err("the request's target and its Host header name different hosts")
        }
        (Some(target), None) if target.as_str().contains('@') => Err("the target is not a host"),
        (Some(target), None) => Ok(Some(target.clone())),
        (_, named) => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(target: &str, hosts: &[&str]) -> Result<Option<String>, &'static str> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        host_of(&head).map(|host| host.map(|host| host.to_string()))
    }

    #[test]
    fn a_request_has_one_host() {
        let a = || Ok(Some("a.localhost:80".to_owned()));
        assert_eq!(host("/", &["a.localhost:80"]), a());
        assert_eq!(host("http://a.localhost:80/", &["A.localhost:80"]).map(|_| ()), Ok(()));
        assert_eq!(host("http://a.localhost:80/", &[]), a());
        assert_eq!(host("/", &[]), Ok(None));
        assert_eq!(host("/", &[""]), Ok(None));
        for (target, hosts) in [
            ("/", &["a", "a"][..]),
            ("/", &["a", "b"]),
            ("/", &["a b"]),
            ("/", &["x@a"]),
            ("/", &["a, b"]),
            ("/", &["a/b"]),
            ("http://b/", &["a"]),
            ("http://a:81/", &["a:80"]),
        ] {
            assert!(host(target, hosts).is_err(), "{target} {hosts:?}");
        }
    }
}
