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

/// The most questions in one second. A proxy asks once for each new host, and strangers must not try out names fast.
const QUESTIONS_A_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("50 is not zero");

/// The longest name of the DNS.
const DOMAIN_CHARS_MAX: usize = 253;

#[derive(Clone)]
struct TlsAsk {
    parts: PreviewParts,
    limiter: Arc<DefaultDirectRateLimiter>,
}

#[derive(Debug, Deserialize)]
struct Question {
    domain: String,
}

pub(super) fn router<S: Clone + Send + Sync + 'static>(parts: PreviewParts) -> Router<S> {
    let limiter = Arc::new(RateLimiter::direct(Quota::per_second(QUESTIONS_A_SECOND)));
    Router::new().route("/v1/previews/tls-ask", get(ask)).with_state(TlsAsk { parts, limiter })
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
    let label = (domain.len() <= DOMAIN_CHARS_MAX).then(|| hosts.label_of_domain(&domain));
    match label.flatten().and_then(|label| routes.find(&label)) {
        Some(_) => StatusCode::OK,
        None => StatusCode::NOT_FOUND,
    }
}
