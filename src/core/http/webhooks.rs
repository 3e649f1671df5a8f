//! `/webhooks/github`: what GitHub delivers.
//!
//! Anybody may send to this address, so nothing is read before the signature is known to be good, and what
//! is held in memory at once is limited.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use url::form_urlencoded;

use super::ApiError;
use crate::api::{DeliveryOutcome, DeliveryView, ErrorBody};
use crate::config::{Config, ConfigError};
use crate::core::github::webhook::delivery_id;
use crate::core::github::webhook::event::{self, Hook};
use crate::core::intake::{Heard, Intake, github_events};

/// The largest body that GitHub sends.
const WEBHOOK_BYTES_MAX: usize = 25 * 1024 * 1024;

/// Bodies up to this size are the usual ones. Large ones have memory of their own, so that a few of them
/// do not keep the others waiting.
const SMALL_BYTES_MAX: usize = 256 * 1024;

/// The memory for bodies of each kind, in bytes: 1,000 of GitHub's usual 30 KiB fit.
const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a delivery waits for memory. GitHub gives one up after 10 s.
const MEMORY_WAIT: Duration = Duration::from_secs(5);

/// How long a body may take to come.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// HMAC-SHA256 of the body, in hexadecimal digits behind `sha256=`.
const SIGNATURE: &str = "x-hub-signature-256";

/// The longest name of a delivery. GitHub's are UUIDs.
const DELIVERY_CHARS_MAX: usize = 100;

/// Takes deliveries. Clones share its memory.
#[derive(Clone, Debug)]
pub(crate) struct WebhookEndpoint {
    config: Arc<Config>,
    secret: Option<SecretString>,
    memory: WebhookMemory,
    intake: Intake,
}

impl WebhookEndpoint {
    /// # Errors
    /// The secret cannot be read.
    pub(crate) fn new(config: &Arc<Config>, intake: Intake) -> Result<Self, ConfigError> {
        let secret = config.github.webhook_secret()?;
        Ok(Self { config: Arc::clone(config), secret, memory: WebhookMemory::default(), intake })
    }

    /// Whether there is a secret, without which no delivery is taken.
    pub(crate) const fn has_secret(&self) -> bool {
        self.secret.is_some()
    }
}

/// The memory for bodies that are being read. Clones share it.
#[derive(Clone, Debug)]
struct WebhookMemory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Default for WebhookMemory {
    fn default() -> Self {
        let memory = || Arc::new(Semaphore::new(MEMORY_BYTES_MAX));
        Self { small: memory(), large: memory() }
    }
}

impl WebhookMemory {
    /// Waits for memory for a body of `bytes`.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let memory = if bytes <= SMALL_BYTES_MAX { &self.small } else { &self.large };
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let taken = timeout(MEMORY_WAIT, Arc::clone(memory).acquire_many_owned(permits)).await;
        taken.ok().and_then(Result::ok).ok_or_else(ApiError::busy)
    }
}

/// Takes a delivery of GitHub's. It is answered when it is stored; what it comes to is done after that.
#[utoipa::path(post, path = "/webhooks/github", security(()),
    request_body(content = String, content_type = "application/json"), responses(
        (status = 202, body = DeliveryView),
        (status = 400, body = ErrorBody, description = "A header is missing, or the payload cannot be read."),
        (status = 401, body = ErrorBody, description = "It is not signed with the webhook's secret."),
        (status = 413, body = ErrorBody, description = "The body is longer than 25 MiB."),
        (status = 503, body = ErrorBody, description = "No secret is configured, or too much comes at once."),
        (status = 507, body = ErrorBody, description = "Core's disk is nearly full."),
    ))]
pub(super) async fn take(
    State(endpoint): State<WebhookEndpoint>,
    request: Request,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    let Some(secret) = endpoint.secret.clone() else {
        return Err(ApiError::unavailable(
            "core has no secret of webhooks: set github.webhook-secret-file or \
             STAGELY_GITHUB_WEBHOOK_SECRET",
        ));
    };
    let (parts, body) = request.into_parts();
    // Nobody takes memory who does not even try.
    if text(&parts.headers, SIGNATURE).is_none_or(|signature| !signature.starts_with("sha256=")) {
        return Err(ApiError::bad_signature(format!("the header {SIGNATURE} is missing")));
    }
    let length = body.size_hint().upper().and_then(|upper| usize::try_from(upper).ok());
    let length = length.unwrap_or(WEBHOOK_BYTES_MAX);
    if length > WEBHOOK_BYTES_MAX {
        return Err(ApiError::too_large(WEBHOOK_BYTES_MAX));
    }
    let memory = endpoint.memory.take(length).await?;
    let body = read_body(body).await?;
    let headers = parts.headers;
    let read = move || {
        let _memory = memory;
        let signature = text(&headers, SIGNATURE);
        event::verify(&secret, &body, signature).map_err(|bad| {
            ApiError::bad_signature(format!(
                "{bad}; give GitHub the same secret as github.webhook-secret-file"
            ))
        })?;
        read_delivery(&headers, body)
    };
    // Megabytes take a while.
    let (name, hook) = if length > SMALL_BYTES_MAX {
        spawn_blocking(read).await.map_err(|error| ApiError::internal(&error))??
    } else {
        read()?
    };
    let is_ping = hook == Hook::Ping;
    let config = Arc::clone(&endpoint.config);
    let delivery = delivery_id(&name);
    let make = move |records: &_| github_events::event(records, &config.github, &hook);
    let (outcome, detail) = match endpoint.intake.hear(Some(delivery), make).await? {
        Heard::Accepted(what) => (DeliveryOutcome::Accepted, what.to_owned()),
        Heard::Ignored(why) if is_ping => (DeliveryOutcome::Accepted, why),
        Heard::Ignored(why) => (DeliveryOutcome::Ignored, why),
        Heard::Repeated => (DeliveryOutcome::Repeated, "it came before".to_owned()),
    };
    Ok((StatusCode::ACCEPTED, Json(DeliveryView { delivery: name, outcome, detail })))
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let read = async {
        let mut read = BytesMut::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| ApiError::invalid("the body broke off"))?;
            if read.len() + chunk.len() > WEBHOOK_BYTES_MAX {
                return Err(ApiError::too_large(WEBHOOK_BYTES_MAX));
            }
            read.extend_from_slice(&chunk);
        }
        Ok(read.freeze())
    };
    timeout(BODY_WAIT, read).await.unwrap_or_else(|_| Err(ApiError::too_slow()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What a delivery says whose signature is good.
fn read_delivery(headers: &HeaderMap, body: Bytes) -> Result<(String, Hook), ApiError> {
    let required = |name: &str| {
        text(headers, name)
            .ok_or_else(|| ApiError::invalid(format!("the header {name} is missing")))
    };
    let delivery = required("X-GitHub-Delivery")?.to_owned();
    if delivery.is_empty() || delivery.len() > DELIVERY_CHARS_MAX {
        return Err(ApiError::invalid("the header X-GitHub-Delivery is not a UUID"));
    }
    let event = required("X-GitHub-Event")?;
    let content_type = text(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    // What GitHub's form preselects.
    let is_form = content_type.starts_with("application/x-www-form-urlencoded");
    let payload = if is_form { form_payload(&body)? } else { body };
    let hook =
        event::parse(event, &payload).map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok((delivery, hook))
}

fn form_payload(body: &[u8]) -> Result<Bytes, ApiError> {
    let mut fields = form_urlencoded::parse(body);
    let payload = fields.find(|(name, _)| name == "payload");
    let payload = payload.ok_or_else(|| ApiError::invalid("the form has no field `payload`"))?;
    Ok(payload.1.into_owned().into())
}
