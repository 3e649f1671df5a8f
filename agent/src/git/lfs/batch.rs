//! The messages of the batch API, and what a failed request means.

use std::collections::HashMap;
use std::error::Error;

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use stagely_protocol::ErrorChain;

use crate::git::error::LargeFileProblem;
use crate::transient::{is_transient_error, is_transient_status};

#[derive(Serialize)]
pub(super) struct BatchRequest<'a> {
    pub(super) operation: &'static str,
    pub(super) transfers: [&'static str; 1],
    pub(super) objects: Vec<RequestedObject<'a>>,
    pub(super) hash_algo: &'static str,
}

#[derive(Serialize)]
pub(super) struct RequestedObject<'a> {
    pub(super) oid: &'a str,
    pub(super) size: u64,
}

#[derive(Deserialize)]
pub(super) struct BatchResponse {
    #[serde(default)]
    pub(super) transfer: Option<String>,
    pub(super) objects: Vec<OfferedObject>,
}

#[derive(Deserialize)]
pub(super) struct OfferedObject {
    pub(super) oid: String,
    #[serde(default)]
    pub(super) actions: Option<Actions>,
    #[serde(default)]
    pub(super) error: Option<ObjectError>,
}

#[derive(Deserialize)]
pub(super) struct Actions {
    pub(super) download: Option<Action>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Action {
    pub(super) href: String,
    #[serde(default)]
    pub(super) header: HashMap<String, String>,
}

#[derive(Deserialize)]
pub(super) struct ObjectError {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) message: String,
}

/// What a server says about a failure.
#[derive(Deserialize)]
pub(super) struct ServerMessage {
    pub(super) message: String,
}

/// A failed request.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) problem: LargeFileProblem,
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn network(error: &(dyn Error + 'static)) -> Self {
        let is_transient = is_transient_error(error);
        let problem =
            if is_transient { LargeFileProblem::Network } else { LargeFileProblem::Missing };
        Self { problem, detail: ErrorChain(error).to_string() }
    }

    pub(super) fn missing(detail: impl Into<String>) -> Self {
        Self { problem: LargeFileProblem::Missing, detail: detail.into() }
    }

    pub(super) fn of_status(status: StatusCode, words: &str) -> Self {
        let problem = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => LargeFileProblem::Authentication,
            status if is_transient_status(status.as_u16()) => LargeFileProblem::Network,
            _ => LargeFileProblem::Missing,
        };
        let detail =
            if words.is_empty() { format!("it answers {status}") } else { words.to_owned() };
        Self { problem, detail }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_servers_that_are_away_or_overloaded_are_asked_again() {
        let cases = [
            (401, LargeFileProblem::Authentication),
            (403, LargeFileProblem::Authentication),
            (404, LargeFileProblem::Missing),
            (408, LargeFileProblem::Network),
            (410, LargeFileProblem::Missing),
            (422, LargeFileProblem::Missing),
            (425, LargeFileProblem::Network),
            (429, LargeFileProblem::Network),
            (500, LargeFileProblem::Network),
            (507, LargeFileProblem::Network),
        ];
        for (status, problem) in cases {
            let failure = Failure::of_status(StatusCode::from_u16(status).unwrap(), "its words");
            assert_eq!((failure.problem, &*failure.detail), (problem, "its words"), "{status}");
        }
        for (words, problem) in [
            ("connection refused", LargeFileProblem::Network),
            ("certificate verify failed", LargeFileProblem::Missing),
            ("Name or service not known", LargeFileProblem::Missing),
        ] {
            let failure = Failure::network(&io::Error::other(words));
            assert_eq!((failure.problem, &*failure.detail), (problem, words));
        }
    }
}
