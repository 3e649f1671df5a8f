//! A folder is served on loopback by the command that builds it, so nothing serves it once that command has ended.

use url::Url;

use super::CloneError;
use crate::proxy::is_loopback;

/// The first segment of the paths at which `stagely run` serves folders. It tells them from other servers on loopback, which
/// may be starting.
pub const SERVED_FOLDER: &str = "stagely-run";

const ENDED: &str = "nothing serves it any more. The run was made from a folder, by a command that has ended: start it \
                     again with `stagely run` in the folder";

impl CloneError {
    /// The error as a permanent one, if the server of a folder refused the connection.
    #[must_use]
    pub fn or_ended_server(self) -> Self {
        match self {
            Self::Network { url, detail } if is_refused(&detail) && is_of_folder(&url) => {
                Self::Refused { url, detail: ENDED.to_owned() }
            }
            error => error,
        }
    }
}

fn is_refused(detail: &str) -> bool {
    detail.to_ascii_lowercase().contains("connection refused")
}

fn is_of_folder(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let first = url.path_segments().and_then(|mut segments| segments.next());
    is_loopback(&url) && first == Some(SERVED_FOLDER)
}

#[cfg(test)]
mod tests {
    use stagely_protocol::{CloneProblem, FailureReason};

    use super::*;

    #[test]
    fn only_a_refused_connection_to_a_served_folder_is_final() {
        let problem = |url: &str, detail: &str| {
            let (url, detail) = (url.to_owned(), detail.to_owned());
            let error = CloneError::Network { url, detail }.or_ended_server();
            let FailureReason::Clone { problem } = error.reason() else { panic!("{error:?}") };
            (problem, error.to_string())
        };
        let refused = "failed to connect to 127.0.0.1: Connection refused";
        for url in [
            "http://127.0.0.1:7/stagely-run/app.git",
            "http://[::1]:7/stagely-run/app.git/stagely/0",
        ] {
            let (problem, text) = problem(url, refused);
            assert_eq!(problem, CloneProblem::Refused, "{url}");
            assert!(text.contains(url) && text.contains("`stagely run`"), "{text}");
        }
        for (url, detail) in [
            ("https://git.example/stagely-run/app.git", refused),
            ("http://127.0.0.1:3000/me/app.git", refused),
            ("http://127.0.0.1:7/stagely-run/app.git", "timed out"),
        ] {
            assert_eq!(problem(url, detail).0, CloneProblem::Network, "{url}: {detail}");
        }
    }
}
