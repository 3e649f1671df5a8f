//! `/v1/agent/binary/{arch}`: the agent's program, for booting machines with stock images.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use axum::http::{HeaderName, Method};
use axum::response::{IntoResponse, Response};
use stagely_protocol::Arch;
use tokio_util::io::ReaderStream;

use super::{ApiError, ApiPath};
use crate::api::ErrorBody;
use crate::core::binaries::{Binaries, BinaryError};

/// The bytes that are read from the file at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The SHA-256 of the program, in hexadecimal digits.
const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum-sha256");

/// Serves the agent's program for an arch.
///
/// No token is needed, because it is the public program of a release, and the machine that downloads it has no token of
/// the API.
#[utoipa::path(get, path = "/v1/agent/binary/{arch}", params(("arch" = String, Path)), security(()),
    responses(
        (status = 200, content_type = "application/octet-stream", headers(
            ("x-checksum-sha256" = String, description = "The SHA-256 of the program, in hexadecimal digits."),
            ("etag" = String, description = "The same."),
        )),
        (status = 404, body = ErrorBody, description = "Core has none for this arch; it says what to configure."),
    ),
)]
pub(super) async fn get(
    State(binaries): State<Binaries>,
    method: Method,
    ApiPath(arch): ApiPath<Arch>,
) -> Result<Response, ApiError> {
    let binary = binaries.open(arch).await.map_err(|error| match &error {
        BinaryError::Missing { .. } => ApiError::missing(error.to_string()),
        BinaryError::Read { .. } => ApiError::internal(&error),
    })?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, binary.bytes.to_string()),
        (ETAG, format!("\"{}\"", binary.sha256)),
        (CHECKSUM, binary.sha256),
    ];
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let file = tokio::fs::File::from_std(binary.file);
        Body::from_stream(ReaderStream::with_capacity(file, CHUNK_BYTES))
    };
    Ok((headers, body).into_response())
}
