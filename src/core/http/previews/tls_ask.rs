//! `GET /v1/previews/tls-ask`: whether a TLS proxy may request a certificate for a host.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;

use super::PreviewParts;
use crate::core::previews::Host;
use crate::core::records::SharedRecords;

/// The most questions in one second. A proxy asks once for each new host, and strangers must not try out names fast.
const QUESTIONS_A_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("50 is not zero");

/// The longest name of the DNS.
const DOMAIN_CHARS_MAX: usize = 253;

#[derive(Clone)]
struct TlsAsk {
    parts: PreviewParts,
    records: SharedRecords,
    limiter: Arc<DefaultDirectRateLimiter>,
}

#[derive(Debug, Deserialize)]
struct Question {
    domain: String,
}

pub(super) fn router<S: Clone + Send + Sync + 'static>(
    parts: PreviewParts,
    records: SharedRecords,
) -> Router<S> {
    let limiter = Arc::new(RateLimiter::direct(Quota::per_second(QUESTIONS_A_SECOND)));
    Router::new().route("/v1/previews/tls-ask", get(ask)).with_state(TlsAsk {
        parts,
        records,
        limiter,
    })
}

async fn ask(
    State(state): State<TlsAsk>,
    question: Result<Query<Question>, QueryRejection>,
) -> StatusCode {
    if state.limiter.check().is_err() {
        return StatusCode::TOO_MANY_REQUESTS;
    }
    let Ok(Query(Question { domain })) = question else { return StatusCode::BAD_REQUEST };
    let PreviewParts { hosts, routes, .. } = &state.parts;
    if domain.len() > DOMAIN_CHARS_MAX {
        return StatusCode::NOT_FOUND;
    }
    let is_known = match hosts.find_in_domain(&domain) {
        Host::Preview { label, .. } => routes.find(&label).is_some(),
        Host::Artifacts(environment) => {
            state.records.read().environments.contains_key(&environment)
        }
        Host::Core | Host::Nobody => false,
    };
    if is_known { StatusCode::OK } else { StatusCode::NOT_FOUND }
}
