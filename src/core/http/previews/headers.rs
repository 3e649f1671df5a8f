//! The headers that core removes and adds between a browser and an app.

use std::net::IpAddr;

use axum::http::header::{
    ALT_SVC, CONNECTION, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue};

use super::cookie_names::is_access_cookie;

/// The headers of one connection, which do not pass, besides those that `Connection` lists. Core answers `Expect` itself.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    EXPECT,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
const ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");

/// Who sent a request, and how.
#[derive(Clone, Debug)]
pub(in crate::core::http) struct Client {
    pub(in crate::core::http) address: IpAddr,
    pub(in crate::core::http) scheme: &'static str,
    /// The `Host` of the request, with its port.
    pub(in crate::core::http) host: HeaderValue,
}

/// Whether a request asks for a WebSocket. Nothing else may take a connection over: an app that speaks HTTP/2 on it would
/// get requests that core does not see.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let upgrade = headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    upgrade && connection_options(headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Prepares the headers of a request for the app.
pub(super) fn forward_request(headers: &mut HeaderMap, client: &Client) {
    let upgrade = is_upgrade(headers);
    let forwarded_for = client_address(headers, client.address);
    remove_hop_by_hop(headers);
    remove_claims(headers);
    if upgrade {
        set_upgrade(headers);
    }
    headers.insert(HOST, client.host.clone());
    headers.insert(FORWARDED_HOST, client.host.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(client.scheme));
    headers.insert(FORWARDED_FOR, forwarded_for);
}

/// Prepares the headers of the app's answer for the browser. `upgrade`: the answer begins a WebSocket.
pub(super) fn forward_response(headers: &mut HeaderMap, upgrade: bool) {
    remove_hop_by_hop(headers);
    // It would lead the browser past core.
    headers.remove(ALT_SVC);
    keep_cookies(headers);
    if upgrade {
        set_upgrade(headers);
    }
    let is_ours = |cookie: &HeaderValue| {
        let bytes = cookie.as_bytes();
        // Without a name, `=` goes before what looks like one.
        let start = usize::from(bytes.trim_ascii_start().starts_with(b"="));
        let bytes = &bytes.trim_ascii_start()[start..];
        let name = bytes.split(|byte| matches!(byte, b'=' | b';')).next();
        name.is_some_and(is_access_cookie)
    };
    let cookies: Vec<HeaderValue> = headers.get_all(SET_COOKIE).into_iter().cloned().collect();
    if cookies.iter().any(is_ours) {
        headers.remove(SET_COOKIE);
        for cookie in cookies.into_iter().filter(|cookie| !is_ours(cookie)) {
            headers.append(SET_COOKIE, cookie);
        }
    }
    headers.insert(ROBOTS_TAG, HeaderValue::from_static("noindex"));
}

/// Removes the app's request to clear the cookies: browsers would clear those of the whole domain, with the keys of all
/// previews.
fn keep_cookies(headers: &mut HeaderMap) {
    let values = headers.get_all(CLEAR_SITE_DATA).into_iter();
    let values = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let kept: Vec<&str> = values
        .map(|kind| match kind.trim() {
            "\"*\"" => "\"cache\", \"storage\", \"executionContexts\"",
            "\"cookies\"" => "",
            other => other,
        })
        .filter(|kind| !kind.is_empty())
        .collect();
    let kept = HeaderValue::try_from(kept.join(", "));
    headers.remove(CLEAR_SITE_DATA);
    if let Some(kept) = kept.ok().filter(|kept| !kept.is_empty()) {
        headers.insert(CLEAR_SITE_DATA, kept);
    }
}

/// Search engines must not list previews.
pub(super) fn hide_from_search(headers: &mut HeaderMap) {
    headers.insert(ROBOTS_TAG, HeaderValue::from_static("noindex"));
}

fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> =
        connection_options(headers).filter_map(|name| name.parse().ok()).collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Headers that frameworks take for the path of the request. It would not be the one whose access core has checked.
const OTHER_PATHS: [&str; 9] = [
    "path-info",
    "script-name",
    "x-envoy-original-path",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-script-name",
];

/// Removes what a client says about itself that an app would take for core's word, also with `_`, which many apps do not
/// tell from `-`.
fn remove_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        name.starts_with("x-forwarded-")
            || matches!(name.as_str(), "forwarded" | "x-real-ip" | "x-stagely-access")
            || OTHER_PATHS.contains(&name.as_str())
    };
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// The address of the browser. A proxy on this host has added it as the last one; others may have invented it.
fn client_address(headers: &HeaderMap, peer: IpAddr) -> HeaderValue {
    let last = || {
        let value = headers.get_all(FORWARDED_FOR).into_iter().next_back()?.to_str().ok()?;
        value.rsplit(',').next()?.trim().parse::<IpAddr>().ok()
    };
    let peer = peer.to_canonical();
    let address = if peer.is_loopback() { last().unwrap_or(peer) } else { peer };
    HeaderValue::try_from(address.to_string()).expect("an address is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn client(address: &str) -> Client {
        let host = HeaderValue::from_static("pr-7-app.example.com");
        Client { address: address.parse().unwrap(), scheme: "https", host }
    }

    #[test]
    fn headers_of_the_connection_and_claims_do_not_pass() {
        let mut request = headers(&[
            ("host", "other"),
            ("connection", "close, X-Listed"),
            ("connection", "keep-alive"),
            ("x-listed", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
            ("proxy-authorization", "Basic eDp5"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded-user", "admin"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-original-url", "/admin"),
            ("x_original_uri", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("x-forwarded-path", "/admin"),
            ("x-forwarded-prefix", "/admin"),
            ("script_name", "/admin"),
            ("x-app", "stays"),
        ]);
        forward_request(&mut request, &client("203.0.113.9"));
        let expected = headers(&[
            ("host", "pr-7-app.example.com"),
            ("x-app", "stays"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-host", "pr-7-app.example.com"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(request, expected);
    }

    #[test]
    fn a_proxy_on_this_host_knows_the_client() {
        for (peer, expected) in [("127.0.0.1", "5.6.7.8"), ("203.0.113.9", "203.0.113.9")] {
            let mut request = headers(&[("x-forwarded-for", "1.2.3.4, 5.6.7.8")]);
            forward_request(&mut request, &client(peer));
            assert_eq!(request[FORWARDED_FOR], expected);
        }
    }

    #[test]
    fn only_websockets_take_a_connection_over() {
        let mut request =
            headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(is_upgrade(&request));
        forward_request(&mut request, &client("::1"));
        assert_eq!(
            (&request[CONNECTION], &request[UPGRADE]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        assert!(!is_upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!is_upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "websocket, h2c")])));
        assert!(!is_upgrade(&headers(&[("upgrade", "websocket")])));
    }

    #[test]
    fn an_app_clears_no_cookies_and_names_no_other_way() {
        let mut response = headers(&[
            ("clear-site-data", "\"cache\", \"cookies\""),
            ("clear-site-data", "\"storage\""),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
        ]);
        forward_response(&mut response, false);
        let expected = headers(&[
            ("clear-site-data", "\"cache\", \"storage\""),
            ("strict-transport-security", "max-age=1"),
            ("x-robots-tag", "noindex"),
        ]);
        assert_eq!(response, expected);
        for (value, kept) in [
            ("\"cookies\"", None),
            ("\"*\"", Some("\"cache\", \"storage\", \"executionContexts\"")),
        ] {
            let mut response = headers(&[("clear-site-data", value)]);
            forward_response(&mut response, false);
            let kept = kept.map(HeaderValue::from_static);
            assert_eq!(response.get(CLEAR_SITE_DATA), kept.as_ref(), "{value}");
        }
    }

    #[test]
    fn an_app_cannot_set_our_cookie() {
        let mut response = headers(&[
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "stagely-access=x"),
            ("set-cookie", " =__Host-stagely-access=x; Secure"),
            ("set-cookie", "b=stagely-access"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
        ]);
        forward_response(&mut response, false);
        let expected = headers(&[
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=stagely-access"),
            ("x-robots-tag", "noindex"),
        ]);
        assert_eq!(response, expected);
    }
}
