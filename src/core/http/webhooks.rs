//! `/webhooks/github`: GitHub's deliveries.
//!
//! Anybody may send requests to this path. Therefore no part of a body is parsed before its signature is checked, and
//! the memory for bodies is limited.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use secrecy::SecretString;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::ApiError;
use crate::api::{DeliveryOutcome, DeliveryView, ErrorBody};
use crate::config::{Config, ConfigError};
use crate::core::github::webhook::delivery::{self, Delivery, DeliveryError};
use crate::core::github::webhook::delivery_id::delivery_id;
use crate::core::intake::github_events::{self, Ignored};
use crate::core::intake::{IngestOutcome, Intake};

/// GitHub's own limit.
const WEBHOOK_BYTES_MAX: usize = 25 * 1024 * 1024;

/// Most bodies are not larger than this. Larger ones have separate memory, so that the others do not wait for them.
const SMALL_BYTES_MAX: usize = 256 * 1024;

/// The memory for bodies of each kind, in bytes: enough for 1,000 of GitHub's usual 30 KiB.
const MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The time limit for memory. GitHub gives up a delivery after 10 s.
const MEMORY_WAIT: Duration = Duration::from_secs(5);

const BODY_WAIT: Duration = Duration::from_secs(10);

/// Accepts deliveries. Clones share its memory.
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

    /// Whether a secret is configured, without which no delivery is accepted.
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
    /// Reads `body`. Takes memory only for what has arrived: nobody proves who they are before the body is complete.
    async fn read(&self, mut body: Body) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), ApiError> {
        let (mut bytes, mut permits) = (BytesMut::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > WEBHOOK_BYTES_MAX {
                return Err(ApiError::too_large(WEBHOOK_BYTES_MAX));
            }
            let is_small = bytes.len() + data.len() <= SMALL_BYTES_MAX;
            permits.push(self.reserve(data.len(), is_small).await?);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), permits))
    }

    async fn reserve(
        &self,
        bytes: usize,
        is_small: bool,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let memory = if is_small { &self.small } else { &self.large };
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let reserved = timeout(MEMORY_WAIT, Arc::clone(memory).acquire_many_owned(permits)).await;
        reserved.ok().and_then(Result::ok).ok_or_else(ApiError::busy)
    }
}

/// Accepts a delivery from GitHub. The response is sent when the delivery is stored; its effects follow later.
#[utoipa::path(post, path = "/webhooks/github", security(()),
    request_body(content = String, content_type = "application/json"), responses(
        (status = 202, body = DeliveryView),
        (status = 400, body = ErrorBody, description = "A header is missing, or the payload cannot be read."),
        (status = 401, body = ErrorBody, description = "The signature is missing or wrong."),
        (status = 413, body = ErrorBody, description = "The body is longer than 25 MiB."),
        (status = 503, body = ErrorBody, description = "No secret is configured, or too many deliveries come at once."),
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
    // Checked first, so that a request without a signature takes no memory.
    delivery::check_signed(&parts.headers)?;
    if body.size_hint().lower() > WEBHOOK_BYTES_MAX as u64 {
        return Err(ApiError::too_large(WEBHOOK_BYTES_MAX));
    }
    let read = timeout(BODY_WAIT, endpoint.memory.read(body)).await;
    let (body, memory) = read.map_err(|_| ApiError::too_slow())??;
    let is_large = body.len() > SMALL_BYTES_MAX;
    let read = move || {
        let _memory = memory;
        Delivery::read(&secret, &parts.headers, body)
    };
    let Delivery { name, event } = if is_large {
        // The signature and the JSON of megabytes take long.
        spawn_blocking(read).await.map_err(|error| ApiError::internal(&error))??
    } else {
        read()?
    };
    let config = Arc::clone(&endpoint.config);
    let make = move |records: &_| github_events::event(records, &config.github, &event);
    let (outcome, detail) = match endpoint.intake.ingest(Some(delivery_id(&name)), make).await? {
        IngestOutcome::Accepted(meaning) => (DeliveryOutcome::Accepted, meaning.to_owned()),
        IngestOutcome::Ignored(ping @ Ignored::Ping) => {
            (DeliveryOutcome::Accepted, ping.to_string())
        }
        IngestOutcome::Ignored(reason) => (DeliveryOutcome::Ignored, reason.to_string()),
        IngestOutcome::Repeated => (DeliveryOutcome::Repeated, "it came before".to_owned()),
    };
    Ok((StatusCode::ACCEPTED, Json(DeliveryView { delivery: name, outcome, detail })))
}

impl From<DeliveryError> for ApiError {
    fn from(error: DeliveryError) -> Self {
        let message = error.to_string();
        match error {
            DeliveryError::NoSignature | DeliveryError::BadSignature => {
                Self::bad_signature(message)
            }
            DeliveryError::MissingHeader(_)
            | DeliveryError::BadName
            | DeliveryError::NoPayload
            | DeliveryError::InvalidPayload(_) => Self::invalid(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use tokio::task::JoinSet;

    use super::*;

    /// A body of which `bytes` have arrived, and which does not end.
    fn unfinished(bytes: usize) -> Body {
        let chunks = vec![Ok::<_, Infallible>(Bytes::from(vec![b'x'; bytes]))];
        Body::from_stream(stream::iter(chunks).chain(stream::pending()))
    }

    /// Begins to read `count` unfinished bodies.
    async fn read_unfinished(memory: &WebhookMemory, count: usize, bytes: usize) -> JoinSet<()> {
        let mut reading = JoinSet::new();
        for _ in 0..count {
            let memory = memory.clone();
            reading.spawn(async move {
                let _ = memory.read(unfinished(bytes)).await;
            });
        }
        // The paused clock moves on when all have read what has arrived.
        tokio::time::sleep(Duration::from_millis(1)).await;
        reading
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_bodies_take_memory_only_for_what_has_arrived() {
        let memory = WebhookMemory::default();
        let _reading = read_unfinished(&memory, 10_000, 1_024).await;

        let taken = MEMORY_BYTES_MAX - memory.small.available_permits();
        assert_eq!(taken, 10_000 * 1_024);
        // A complete delivery of either kind does not wait.
        for bytes in [30 * 1_024, 20 * 1_024 * 1_024] {
            let read = timeout(Duration::from_millis(1), memory.read(Body::from(vec![0; bytes])));
            let (body, permits) = read.await.expect("it does not wait").unwrap();
            assert_eq!(body.len(), bytes);
            drop(permits);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn small_deliveries_pass_while_large_unfinished_ones_use_up_their_memory() {
        let memory = WebhookMemory::default();
        let _reading = read_unfinished(&memory, 10, 10 * 1_024 * 1_024).await;
        let small = memory.read(Body::from(vec![0; 30 * 1_024])).await;
        assert_eq!(small.unwrap().0.len(), 30 * 1_024);
        let refused = memory.read(Body::from(vec![0; 20 * 1_024 * 1_024])).await;
        assert!(refused.is_err(), "more memory is used than allowed");
    }
}
