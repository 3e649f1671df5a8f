//! The names of the cookie that opens a preview. Apps neither see it nor set it.

/// The name of the cookie where TLS protects it. Browsers accept a name with this prefix from its own host alone.
pub(super) const SECURE_COOKIE: &str = "__Host-stagely-access";

/// The name of the cookie without TLS. Not every browser takes a secure cookie from `http://…localhost`.
pub(super) const PLAIN_COOKIE: &str = "stagely-access";

/// Whether a cookie's name is one of ours. Browsers send a cookie without a name as its value alone, which may look like
/// a name.
pub(super) fn is_access_cookie(name: &[u8]) -> bool {
    let name = name.trim_ascii_start();
    let name = name.strip_prefix(b"=").unwrap_or(name).trim_ascii();
    [SECURE_COOKIE, PLAIN_COOKIE].iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
}
