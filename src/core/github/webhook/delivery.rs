//! A delivery as an HTTP request: its headers, its signature, and its body.

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use secrecy::SecretString;
use thiserror::Error;
use url::form_urlencoded;

use super::event::{InvalidPayload, WebhookEvent};
use super::{parse, signature};

const SIGNATURE: &str = "x-hub-signature-256";

/// The longest name of a delivery. GitHub's are UUIDs.
const NAME_BYTES_MAX: usize = 100;

/// A delivery with a valid signature.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// GitHub's name for it.
    pub(crate) name: String,
    pub(crate) event: WebhookEvent,
}

/// A request that is no delivery.
#[derive(Debug, Error)]
pub(crate) enum DeliveryError {
    #[error("the header {SIGNATURE} is missing")]
    NoSignature,
    #[error(
        "the signature is not that of the body under the webhook's secret; give GitHub the same secret as \
         github.webhook-secret-file"
    )]
    BadSignature,
    #[error("the header {0} is missing")]
    MissingHeader(&'static str),
    #[error("the header X-GitHub-Delivery is not a UUID")]
    BadName,
    #[error("the form has no field `payload`")]
    NoPayload,
    #[error(transparent)]
    InvalidPayload(#[from] InvalidPayload),
}

/// Whether the request claims to be signed: its body is read only if it does.
pub(crate) fn check_signed(headers: &HeaderMap) -> Result<(), DeliveryError> {
    let is_signed = text(headers, SIGNATURE).is_some_and(|value| value.starts_with("sha256="));
    if is_signed { Ok(()) } else { Err(DeliveryError::NoSignature) }
}

impl Delivery {
    /// Checks the signature under `secret`, then reads the event.
    pub(crate) fn read(
        secret: &SecretString,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Self, DeliveryError> {
        if !signature::is_valid(secret, &body, text(headers, SIGNATURE)) {
            return Err(DeliveryError::BadSignature);
        }
        let required = |name| text(headers, name).ok_or(DeliveryError::MissingHeader(name));
        let name = required("X-GitHub-Delivery")?.to_owned();
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(DeliveryError::BadName);
        }
        let event = required("X-GitHub-Event")?;
        let content_type = text(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
        // The form of a new webhook at GitHub preselects this type.
        let is_form = content_type.starts_with("application/x-www-form-urlencoded");
        let payload = if is_form { form_payload(&body)? } else { body };
        let event = parse::parse(event, &payload)?;
        Ok(Self { name, event })
    }
}

fn form_payload(body: &[u8]) -> Result<Bytes, DeliveryError> {
    let mut fields = form_urlencoded::parse(body);
    let payload = fields.find(|(name, _)| name == "payload");
    Ok(payload.ok_or(DeliveryError::NoPayload)?.1.into_owned().into())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
