//! Who may open a preview, and what core removes from a request so that the app does not see it.

use axum::http::header::{COOKIE, HeaderName, REFERER};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method};
use secrecy::{ExposeSecret as _, SecretString};
use url::form_urlencoded;

use super::super::auth::ApiTokens;
use super::cookie_names::{PLAIN_COOKIE, SECURE_COOKIE, is_access_cookie};
use super::headers::is_upgrade;
use crate::core::previews::{ACCESS_HEADER, ACCESS_PARAMETER, Access, Route};
use crate::core::tokens::TokenHash;

/// Browsers send it with the request for the script of a service worker.
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// How long a browser keeps the cookie, in seconds.
const COOKIE_SECONDS: u32 = 7 * 24 * 60 * 60;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It may pass.
    Pass {
        /// Whether the client has shown that it may open the preview. If not, the path is public.
        is_authorized: bool,
    },
    /// Its URL has the key: the browser gets the cookie, and the URL without the key.
    Enter,
    /// The cookie would open it, but a page of another origin sent the request.
    Foreign,
    Refuse,
}

/// Whether a page wants to install a service worker where people type tokens of the API. It would see what the form sends.
pub(super) fn is_forbidden_worker(route: &Route, request: &Parts) -> bool {
    route.access == Access::Token && request.headers.contains_key(SERVICE_WORKER)
}

/// Decides about a request to the preview of `route`.
pub(super) fn decide(
    route: &Route,
    request: &Parts,
    tokens: &ApiTokens,
    may_use_cookie: bool,
) -> Decision {
    let Parts { method, uri, headers, .. } = request;
    let query = uri.query().unwrap_or_default();
    let has_key_in_url = route.access == Access::Link
        && parameters(query).filter_map(|(_, key)| key).any(|key| is_key(route, &key));
    let is_page = matches!(*method, Method::GET | Method::HEAD) && !is_upgrade(headers);
    if has_key_in_url && is_page {
        return Decision::Enter;
    }
    let has_header = || {
        let values = headers.get_all(ACCESS_HEADER).into_iter();
        values.filter_map(|value| value.to_str().ok()).any(|value| {
            let is_token = || tokens.role_of(&SecretString::from(value)).is_some();
            is_key(route, value) || (route.access == Access::Token && is_token())
        })
    };
    let has_cookie = || {
        let values =
            headers.get_all(COOKIE).into_iter().flat_map(|value| cookies(value.as_bytes()));
        // Another host may have set a second cookie of this name.
        values
            .filter_map(access_cookie)
            .any(|value| std::str::from_utf8(value).is_ok_and(|value| is_key(route, value)))
    };
    let is_open = route.access == Access::Public || has_key_in_url || has_header();
    if is_open || may_use_cookie && has_cookie() {
        Decision::Pass { is_authorized: true }
    } else if is_public(&route.public_paths, uri.path()) {
        Decision::Pass { is_authorized: false }
    } else if has_cookie() {
        Decision::Foreign
    } else {
        Decision::Refuse
    }
}

/// Compares the hashes, in constant time.
fn is_key(route: &Route, offered: &str) -> bool {
    !route.access_key.expose_secret().is_empty()
        && TokenHash::of(&route.access_key).matches(&TokenHash::of(&SecretString::from(offered)))
}

/// The cookie that opens the preview of `route`; `None` if its key cannot stand in one.
pub(super) fn access_cookie_header(route: &Route, scheme: &str) -> Option<HeaderValue> {
    let key = route.access_key.expose_secret();
    let (name, secure) =
        if scheme == "https" { (SECURE_COOKIE, " Secure;") } else { (PLAIN_COOKIE, "") };
    let cookie =
        format!("{name}={key}; Path=/;{secure} HttpOnly; SameSite=Lax; Max-Age={COOKIE_SECONDS}");
    HeaderValue::try_from(cookie).ok()
}

/// The cookies of a header's value, without surrounding spaces.
fn cookies(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii)
}

/// The value of a cookie that is ours.
fn access_cookie(cookie: &[u8]) -> Option<&[u8]> {
    let cookie = cookie.strip_prefix(b"=").unwrap_or(cookie);
    let end = cookie.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&cookie[..end], &cookie[end + 1..]);
    is_access_cookie(name).then(|| value.trim_ascii())
}

/// Removes our cookie and header, and our parameter from the address of the page that the browser comes from.
pub(super) fn remove_credentials(headers: &mut HeaderMap) {
    headers.remove(ACCESS_HEADER);
    remove_key_of_referer(headers);
    let is_ours = |cookie: &[u8]| access_cookie(cookie).is_some() || is_access_cookie(cookie);
    let values: Vec<HeaderValue> = headers.get_all(COOKIE).into_iter().cloned().collect();
    if !values.iter().any(|value| cookies(value.as_bytes()).any(is_ours)) {
        return;
    }
    headers.remove(COOKIE);
    for value in values {
        let kept: Vec<&[u8]> =
            cookies(value.as_bytes()).filter(|cookie| !is_ours(cookie)).collect();
        let kept = kept.join(&b"; "[..]);
        if let Ok(value) = HeaderValue::from_bytes(&kept)
            && !value.is_empty()
        {
            headers.append(COOKIE, value);
        }
    }
}

fn remove_key_of_referer(headers: &mut HeaderMap) {
    let mut referers = headers.get_all(REFERER).into_iter();
    let has_key = |referer: &HeaderValue| {
        let referer = referer.to_str().unwrap_or_default();
        let query = referer.split_once('?').map(|(_, query)| query).unwrap_or_default();
        parameters(query).any(|(_, key)| key.is_some())
    };
    if referers.any(has_key) {
        headers.remove(REFERER);
    }
}

/// The target of a request without our parameter. The rest stays as it is.
pub(super) fn without_key(target: &PathAndQuery) -> PathAndQuery {
    let Some(query) = target.query() else { return target.clone() };
    let mut has_key = false;
    let kept: Vec<&str> = parameters(query)
        .filter(|(_, key)| {
            has_key |= key.is_some();
            key.is_none()
        })
        .map(|(parameter, _)| parameter)
        .collect();
    if !has_key {
        return target.clone();
    }
    let path = target.path();
    let query = kept.join("&");
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    target.parse().expect("parts of a valid target make one")
}

/// The parameters of a query as they stand in it, each with its value if it is ours.
fn parameters(query: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    query.split('&').map(|parameter| {
        let decoded = form_urlencoded::parse(parameter.as_bytes()).next();
        let key = decoded.filter(|(name, _)| name == ACCESS_PARAMETER);
        (parameter, key.map(|(_, value)| value.into_owned()))
    })
}

/// Whether a path is one of those that need no access. An unclear path is none: apps and servers do not agree on what
/// it names. What `*` stands for is printable ASCII, because some servers take overlong UTF-8 and full-width characters
/// for the ASCII ones that they look like: `%c0%ae` and `%ef%bc%8e` are dots then.
fn is_public(public_paths: &[String], path: &str) -> bool {
    let Some(path) = plain_path(path) else { return false };
    public_paths.iter().any(|public| {
        let (public, is_prefix) = match public.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (public.as_str(), false),
        };
        decoded(public).is_some_and(|public| {
            path.strip_prefix(public.as_slice()).is_some_and(|rest| {
                let is_plain = rest.iter().all(|byte| matches!(byte, b' '..=b'~'));
                rest.is_empty() || is_prefix && is_plain
            })
        })
    })
}

/// The decoded path; `None` if something in it may be read in two ways.
fn plain_path(path: &str) -> Option<Vec<u8>> {
    let lower = path.to_ascii_lowercase();
    if ["%2f", "%5c", "%25", "%00"].iter().any(|encoded| lower.contains(encoded)) {
        return None;
    }
    let path = decoded(path)?;
    let is_unclear = |byte: &u8| byte.is_ascii_control() || *byte == b'\\';
    // Some servers take what follows `;` for parameters: `..;` is `..`.
    let is_dots = |segment: &[u8]| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    };
    let mut segments = path.split(|byte| *byte == b'/').skip(1);
    let is_clear = path.starts_with(b"/")
        && !path.windows(2).any(|pair| pair == b"//")
        && !path.iter().any(is_unclear)
        && !segments.any(is_dots);
    is_clear.then_some(path)
}

/// Decodes `%XX`; `None` if it is not valid.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clear_paths_are_public() {
        let paths = ["/webhooks/*".to_owned(), "/status".to_owned(), "/caf%C3%A9*".to_owned()];
        let is_public = |path: &str| is_public(&paths, path);
        for path in ["/webhooks/", "/webhooks/github", "/webhooks/%67it", "/status", "/caf%c3%a9/x"]
        {
            assert!(is_public(path), "{path}");
        }
        for path in [
            "/",
            "/webhooks",
            "/webhooksx",
            "/status/",
            "/Status",
            "/statusx",
            "/webhooks/../admin",
            "/webhooks/%2e%2e/admin",
            "/webhooks/.%2E/admin",
            "/webhooks/..;/admin",
            "/webhooks/..;x=1/admin",
            "/webhooks/..%2fadmin",
            "/webhooks/..%252fadmin",
            "/webhooks/%252e%252e/admin",
            "/webhooks/..\\admin",
            "/webhooks/..%5cadmin",
            "/webhooks//admin",
            "//webhooks/x",
            "/webhooks/.",
            "/webhooks/%00",
            "/webhooks/%zz",
            "/webhooks/%",
            "/webhooks/%0d%0a",
            "/webhooks/%c0%ae%c0%ae/env",
            "/webhooks/%c0%af",
            "/webhooks/%e0%80%ae%e0%80%ae/env",
            "/webhooks/%ef%bc%8e%ef%bc%8e/env",
            "/webhooks/a%ef%bc%8fb",
            "/webhooks/%e2%80%a4%e2%80%a4/env",
            "/webhooks/a%e2%88%95b",
            "/webhooks/%ff%2e",
            "/webhooks/caf%c3%a9",
            "*",
            "",
        ] {
            assert!(!is_public(path), "{path}");
        }
    }

    #[test]
    fn the_key_is_removed_from_the_target_alone() {
        let without = |target: &str| without_key(&target.parse().unwrap()).to_string();
        assert_eq!(without("/a?stagely-access=k"), "/a");
        assert_eq!(without("/a?x=%20&stagely-access=k&y"), "/a?x=%20&y");
        assert_eq!(without("/a?stagely%2Daccess=k&stagely-access=l&b=1"), "/a?b=1");
        assert_eq!(without("/a?stagely-access"), "/a");
        assert_eq!(without("/a?xstagely-access=k&"), "/a?xstagely-access=k&");
        assert_eq!(without("/a?"), "/a?");
    }

    #[test]
    fn our_cookies_are_removed_and_others_stay() {
        let mut headers = HeaderMap::new();
        for value in [
            "a=1; __Host-stagely-access=k; b=\"2; stagely-access=k\"",
            "stagely-access=k",
            "=stagely-access=k;__host-Stagely-Access=k;c=3",
        ] {
            headers.append(COOKIE, HeaderValue::from_static(value));
        }
        headers.insert(ACCESS_HEADER, HeaderValue::from_static("k"));
        remove_credentials(&mut headers);
        let left: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(left, ["a=1; b=\"2", "c=3"]);
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn an_address_with_the_key_is_no_referer() {
        for (referer, stays) in [
            ("http://pr-7-app.localhost/a?b=1&stagely-access=k", false),
            ("http://pr-7-app.localhost/a?stagely%2Daccess=k#x", false),
            ("http://pr-7-app.localhost/stagely-access?a=1", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(REFERER, HeaderValue::from_static(referer));
            remove_credentials(&mut headers);
            assert_eq!(headers.contains_key(REFERER), stays, "{referer}");
        }
    }

    #[test]
    fn other_cookies_stay_as_they_are() {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_static("a=1;b=2 ; xstagely-access=k"));
        let before = headers.clone();
        remove_credentials(&mut headers);
        assert_eq!(headers, before);
    }
}
