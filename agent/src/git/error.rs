//! Why a commit could not be fetched, and how libgit2's errors are classified.

use std::io;
use std::path::Path;

use git2::{ErrorClass, ErrorCode};
use stagely_protocol::{CloneProblem, FailureReason};
use thiserror::Error;
use url::Url;

use crate::transient::{is_connection_failure, is_transient_status};

/// Why a commit could not be fetched. Messages contain no credentials.
#[derive(Debug, Error)]
pub enum CloneError {
    /// The repository does not exist, or the token has no access to it.
    #[error("{url} was not found")]
    NotFound { url: String },
    /// The server refused the token, or needs one.
    #[error("{url} refused the token, or needs one")]
    Authentication { url: String },
    /// The repository has no such commit, branch or tag.
    #[error("{url} has no {wanted}")]
    CommitGone {
        url: String,
        /// The commit, branch or tag.
        wanted: String,
    },
    /// The server did not answer, or the connection broke.
    #[error("cannot fetch from {url}: {detail}")]
    Network {
        url: String,
        /// The error of libgit2.
        detail: String,
    },
    /// The server or the repository cannot be used, and another attempt does not change that.
    #[error("cannot fetch from {url}: {detail}")]
    Refused {
        url: String,
        /// The error of libgit2.
        detail: String,
    },
    /// The address cannot be used.
    #[error("{url:?} cannot be cloned: {detail}")]
    Address {
        /// The address, without credentials.
        url: String,
        /// Why it cannot be used.
        detail: &'static str,
    },
    /// Its server refers to another address, to which no token may go.
    #[error("{url} cannot be cloned: it has moved ({detail}); use its new address")]
    Moved {
        url: String,
        /// Where.
        detail: String,
    },
    /// A submodule could not be fetched.
    #[error("cannot fetch the submodule `{path}` from {address}")]
    Submodule {
        path: String,
        /// The address in `.gitmodules`.
        address: String,
        #[source]
        source: Box<CloneError>,
    },
    /// A file of Git LFS could not be fetched.
    #[error("cannot fetch `{path}` with Git LFS from {url}: {detail}")]
    LargeFile {
        path: String,
        /// The LFS server.
        url: String,
        detail: String,
        problem: LargeFileProblem,
    },
    /// A file cannot have the encoding that its attributes ask for.
    #[error("cannot write `{path}` with `working-tree-encoding={encoding}`: {detail}")]
    Encoding { path: String, encoding: String, detail: String },
    /// The commit is more than Stagely checks out.
    #[error("the repository {0}")]
    TooLarge(String),
    /// The caller cancelled.
    #[error("the clone was cancelled")]
    Cancelled,
    /// No space is left.
    #[error("no space is left for the clone")]
    DiskFull,
    /// Any other error.
    #[error("git failed: {0}")]
    Internal(String),
}

/// Why an object of Git LFS could not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LargeFileProblem {
    /// The server has no such object, or no Git LFS, or something else instead.
    Missing,
    /// The server refused the token, or needs one.
    Authentication,
    /// The server did not answer.
    Network,
}

impl CloneError {
    /// The reason that core gets.
    pub fn reason(&self) -> FailureReason {
        let problem = match self {
            Self::NotFound { .. } | Self::Address { .. } | Self::Moved { .. } => {
                CloneProblem::NotFound
            }
            Self::Authentication { .. }
            | Self::LargeFile { problem: LargeFileProblem::Authentication, .. } => {
                CloneProblem::Authentication
            }
            Self::Submodule { source, .. } => return source.reason(),
            Self::CommitGone { .. } => CloneProblem::CommitGone,
            Self::Network { .. } | Self::LargeFile { problem: LargeFileProblem::Network, .. } => {
                CloneProblem::Network
            }
            Self::Refused { .. } => CloneProblem::Refused,
            Self::TooLarge(_)
            | Self::Encoding { .. }
            | Self::LargeFile { problem: LargeFileProblem::Missing, .. } => {
                return FailureReason::User { step: String::new(), exit_code: 1 };
            }
            Self::Cancelled => return FailureReason::Cancelled,
            Self::DiskFull => return FailureReason::DiskFull,
            Self::Internal(_) => return FailureReason::Internal,
        };
        FailureReason::Clone { problem }
    }
}

impl CloneError {
    /// Classifies an error of a conversation with the server at `url`.
    pub(super) fn from_server(error: &git2::Error, url: &Url) -> Self {
        let url = without_credentials(url.as_str());
        let text = error.message().to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if error.code() == ErrorCode::Auth || has(&["code: 401", "code: 403", "replays"]) {
            Self::Authentication { url }
        } else if has(&["code: 404", "code: 410", "repository not found", "not exported"]) {
            Self::NotFound { url }
        } else if has(&["redirect"]) {
            Self::Moved { url, detail: error.message().to_owned() }
        } else if has(&["unknown remote object format"]) {
            let detail = "its object names are not sha1, and libgit2 reads no others";
            Self::Refused { url, detail: detail.to_owned() }
        } else if text == "invalid packet line" {
            let detail = "it is a shallow clone, which libgit2 cannot read; unshallow it";
            Self::Refused { url, detail: detail.to_owned() }
        } else if has(&DISK_FULL) {
            Self::DiskFull
        } else {
            match error.class() {
                ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Os => {
                    let detail = error.message().to_owned();
                    if is_transient(&text) {
                        Self::Network { url, detail }
                    } else {
                        Self::Refused { url, detail }
                    }
                }
                _ => Self::Internal(error.message().to_owned()),
            }
        }
    }

    /// Classifies an error of the connection through a proxy to the server at `url`.
    pub(super) fn from_proxy(detail: String, url: &Url) -> Self {
        let url = without_credentials(url.as_str());
        if is_transient(&detail.to_ascii_lowercase()) {
            Self::Network { url, detail }
        } else {
            Self::Refused { url, detail }
        }
    }

    /// Classifies an error of an operation on the file at `path`.
    pub(super) fn from_file(operation: &str, path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Internal(format!("cannot {operation} `{}`: {error}", path.display())),
        }
    }

    /// Classifies an error of an operation on local files.
    #[expect(clippy::needless_pass_by_value, reason = "the signature that map_err needs")]
    pub(super) fn from_local(error: git2::Error) -> Self {
        let text = error.message().to_ascii_lowercase();
        if DISK_FULL.iter().any(|words| text.contains(words)) {
            return Self::DiskFull;
        }
        Self::Internal(error.message().to_owned())
    }
}

/// Whether another attempt may succeed. `text` is in lower case.
fn is_transient(text: &str) -> bool {
    // libgit2 reports a status as `unexpected http status code: 502`.
    let status = text.rsplit_once("code: ").and_then(|(_, status)| status.get(..3)?.parse().ok());
    is_connection_failure(text) || status.is_some_and(is_transient_status)
}

/// libgit2's messages when a file cannot be written for lack of space.
const DISK_FULL: [&str; 2] = ["no space left", "disk quota"];

/// Whether a server refuses a commit that it does not have. Over HTTP libgit2 reports the refusal of a shallow fetch
/// as a packet of the wrong type.
pub(super) fn is_not_our_ref(error: &git2::Error) -> bool {
    error.message().contains("not our ref") || error.message() == "unexpected packet type"
}

/// `url` without user name, password and query.
pub(crate) fn without_credentials(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return "the repository".to_owned() };
    // Only an address without a host refuses these, and that has no credentials.
    let _ = parsed.set_password(None);
    let _ = parsed.set_username("");
    parsed.set_query(None);
    parsed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_and_overloaded_servers_are_worth_another_attempt() {
        let url: Url = "https://git.example/app".parse().unwrap();
        let problem = |class, message: &str| {
            let error = git2::Error::new(ErrorCode::GenericError, class, message);
            CloneError::from_server(&error, &url).reason()
        };
        let transient = FailureReason::Clone { problem: CloneProblem::Network };
        for (class, message) in [
            (ErrorClass::Os, "failed to connect to git.example: Connection refused"),
            (
                ErrorClass::Net,
                "failed to resolve address for git.example: Temporary failure in name resolution",
            ),
            (ErrorClass::Http, "unexpected http status code: 408"),
            (ErrorClass::Http, "unexpected http status code: 425"),
            (ErrorClass::Http, "unexpected http status code: 429"),
            (ErrorClass::Http, "unexpected http status code: 502"),
            (ErrorClass::Http, "unexpected http status code: 507"),
            (ErrorClass::Http, "unexpected http status code: 520"),
            (ErrorClass::Net, "early EOF"),
            (ErrorClass::Ssl, "SSL error: syscall failure: Connection reset by peer"),
        ] {
            assert_eq!(problem(class, message), transient, "{message}");
        }
        let refused = FailureReason::Clone { problem: CloneProblem::Refused };
        for (class, message) in [
            (
                ErrorClass::Net,
                "failed to resolve address for git.example: Name or service not known",
            ),
            (ErrorClass::Ssl, "the SSL certificate is invalid"),
            (ErrorClass::Http, "unexpected http status code: 418"),
            (ErrorClass::Net, "unexpected packet type 7"),
            (ErrorClass::Http, "proxy authentication required"),
        ] {
            assert_eq!(problem(class, message), refused, "{message}");
        }
    }
}
