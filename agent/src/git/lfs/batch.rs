//! The messages of the batch API, and what a failed request means.

use std::collections::HashMap;

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use crate::git::error::LargeFileProblem;

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
    pub(super) fn network(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            detail = format!("{detail}: {error}");
            cause = error.source();
        }
        // Another attempt finds the same certificate.
        let is_permanent = detail.contains("certificate");
        let problem =
            if is_permanent { LargeFileProblem::Missing } else { LargeFileProblem::Network };
        Self { problem, detail }
    }

    pub(super) fn missing(detail: impl Into<String>) -> Self {
        Self { problem: LargeFileProblem::Missing, detail: detail.into() }
    }

    pub(super) fn of_status(status: StatusCode, words: &str) -> Self {
        let problem = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => LargeFileProblem::Authentication,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                LargeFileProblem::Network
            }
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                LargeFileProblem::Network
            }
            _ => LargeFileProblem::Missing,
        };
        let detail =
            if words.is_empty() { format!("it answers {status}") } else { words.to_owned() };
        Self { problem, detail }
    }
}
