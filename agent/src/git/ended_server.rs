//! A folder is served on loopback by the command that builds it, so nothing serves it once that command has ended.

use url::{Host, Url};

use super::CloneError;

const ENDED: &str = "nothing serves it any more. The run was made from a folder, by a command that has ended: start it \
                     again with `stagely run` in the folder";

impl CloneError {
    /// The error as a permanent one, if a server on loopback refused the connection.
    #[must_use]
    pub fn or_ended_server(self) -> Self {
        match self {
            Self::Network { url, detail } if is_refused(&detail) && is_loopback(&url) => {
                Self::Refused { url, detail: ENDED.to_owned() }
            }
            error => error,
        }
    }
}

fn is_refused(detail: &str) -> bool {
    detail.to_ascii_lowercase().contains("connection refused")
}

fn is_loopback(url: &str) -> bool {
    let url = Url::parse(url);
    match url.as_ref().ok().and_then(Url::host) {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{CloneProblem, FailureReason};

    use super::*;

    #[test]
    fn only_a_refused_connection_on_loopback_is_final() {
        let problem = |url: &str, detail: &str| {
            let (url, detail) = (url.to_owned(), detail.to_owned());
            let error = CloneError::Network { url, detail }.or_ended_server();
            let FailureReason::Clone { problem } = error.reason() else { panic!("{error:?}") };
            (problem, error.to_string())
        };
        let refused = "failed to connect to 127.0.0.1: Connection refused";
        for url in ["http://127.0.0.1:7/app", "http://[::1]:7/app", "http://localhost:7/app"] {
            let (problem, text) = problem(url, refused);
            assert_eq!(problem, CloneProblem::Refused, "{url}");
            assert!(text.contains(url) && text.contains("`stagely run`"), "{text}");
        }
        assert_eq!(problem("https://git.example/app", refused).0, CloneProblem::Network);
        assert_eq!(problem("http://127.0.0.1:7/app", "timed out").0, CloneProblem::Network);
    }
}
