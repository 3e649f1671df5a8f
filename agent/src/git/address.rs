//! Addresses that people write for a repository, as the agent can use them.

/// `git@host:path` and `ssh://git@host/path` as https: the machine has no SSH key, but the token may give access.
pub(super) fn over_https(url: &str) -> String {
    if let Some(rest) = url.strip_prefix("ssh://") {
        let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
        return format!("https://{rest}");
    }
    match url.strip_prefix("git@").and_then(|rest| rest.split_once(':')) {
        Some((host, path)) => format!("https://{host}/{path}"),
        None => url.to_owned(),
    }
}
