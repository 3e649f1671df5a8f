//! `/v1/agent/artifacts`: agents store what tests have left, in pieces.

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::header::CONTENT_RANGE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::put;
use http_body_util::BodyExt as _;
use stagely_protocol::{ARTIFACTS_PATH, DIGEST_HEADER, Digest, InvalidValue, OFFSET_HEADER};
use stagely_state::Attempt;
use stagely_state::ids::MachineId;
use tokio::time::timeout;

use super::super::auth::AgentMachine;
use super::super::error::ApiError;
use super::super::extract::ApiPath;
use super::AgentEndpoint;
use super::archives::{DRAIN_LIMIT, next_bytes};
use crate::core::artifacts::{ArtifactError, Piece, PieceUpload, Progress};

pub(super) fn router() -> Router<AgentEndpoint> {
    // A HEAD route of its own: there is nothing to GET.
    Router::new().route(&format!("{ARTIFACTS_PATH}/{{attempt}}"), put(store).head(offset))
}

/// Who stores which archive.
struct Uploader {
    machine: MachineId,
    attempt: Attempt,
    digest: Digest,
}

impl Uploader {
    async fn of(endpoint: &AgentEndpoint, parts: &mut Parts) -> Result<Self, ApiError> {
        let AgentMachine(machine) = AgentMachine::from_request_parts(parts, endpoint).await?;
        let ApiPath(id) = ApiPath::<String>::from_request_parts(parts, endpoint).await?;
        let attempt: Attempt =
            id.parse().map_err(|error: InvalidValue| ApiError::invalid(error.to_string()))?;
        let digest = header(&parts.headers, DIGEST_HEADER).and_then(|text| text.parse().ok());
        let digest = digest.ok_or_else(|| {
            ApiError::invalid(format!("{DIGEST_HEADER}: must be the digest of the archive"))
        })?;
        Ok(Self { machine, attempt, digest })
    }
}

/// Says how much of an archive has arrived.
async fn offset(
    State(endpoint): State<AgentEndpoint>,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let Uploader { machine, attempt, digest } = Uploader::of(&endpoint, &mut parts).await?;
    let bytes = endpoint.artifacts.offset(machine, attempt, digest).await?;
    Ok(with_offset(StatusCode::OK, bytes))
}

/// Adds a piece to an archive.
async fn store(State(endpoint): State<AgentEndpoint>, request: Request) -> Response {
    let (mut parts, mut body) = request.into_parts();
    match store_piece(&endpoint, &mut parts, &mut body).await {
        Ok(Progress::Complete) => StatusCode::OK.into_response(),
        Ok(Progress::Partial { bytes }) => with_offset(StatusCode::ACCEPTED, bytes),
        Err(refused) => {
            tokio::spawn(timeout(DRAIN_LIMIT, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
            refused
        }
    }
}

async fn store_piece(
    endpoint: &AgentEndpoint,
    parts: &mut Parts,
    body: &mut Body,
) -> Result<Progress, Response> {
    let refused = |error: ApiError| error.into_response();
    let Uploader { machine, attempt, digest } =
        Uploader::of(endpoint, parts).await.map_err(refused)?;
    let piece = piece(&parts.headers).map_err(refused)?;
    let upload = endpoint.artifacts.begin(machine, attempt, digest, piece).await;
    let upload = upload.map_err(refusal)?;
    let superseded = upload.superseded();
    match superseded.run_until_cancelled(receive(upload, body)).await {
        None => Err(refusal(ArtifactError::Superseded)),
        Some(received) => received,
    }
}

async fn receive(mut upload: PieceUpload, body: &mut Body) -> Result<Progress, Response> {
    while let Some(bytes) = next_bytes(body).await.map_err(ApiError::into_response)? {
        upload = upload.append(bytes).await.map_err(refusal)?;
    }
    upload.finish().await.map_err(refusal)
}

/// The answer to a piece that begins elsewhere says where the next one begins.
fn refusal(error: ArtifactError) -> Response {
    let offset = match &error {
        ArtifactError::Elsewhere { bytes } => Some(*bytes),
        _ => None,
    };
    let mut response = ApiError::from(error).into_response();
    if let Some(offset) = offset {
        response.headers_mut().insert(OFFSET_HEADER, offset.into());
    }
    response
}

fn with_offset(status: StatusCode, bytes: u64) -> Response {
    (status, [(OFFSET_HEADER, bytes.to_string())]).into_response()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Reads `Content-Range: bytes {first}-{last}/{size}`.
fn piece(headers: &HeaderMap) -> Result<Piece, ApiError> {
    let invalid =
        || ApiError::invalid("Content-Range: must be `bytes {first}-{last}/{size}`".to_owned());
    let text = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let range = text.and_then(|text| text.strip_prefix("bytes ")).ok_or_else(invalid)?;
    let (range, size) = range.split_once('/').ok_or_else(invalid)?;
    let (first, last) = range.split_once('-').ok_or_else(invalid)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| invalid());
    Ok(Piece { first: number(first)?, last: number(last)?, size: number(size)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_ranges_are_read() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            piece(&headers).ok()
        };
        assert_eq!(read("bytes 0-99/100"), Some(Piece { first: 0, last: 99, size: 100 }));
        for text in ["", "bytes 0-/100", "bytes -5/100", "bytes 0-99/*", "0-99/100", "bytes a-b/c"]
        {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(piece(&HeaderMap::new()).is_err());
    }
}
