//! The responses to requests that cannot be served.

use std::convert::Infallible;
use std::io;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tracing::error;

use crate::api::ErrorBody;
use crate::core::archives::ArchiveError;
use crate::core::artifacts::ArtifactError;
use crate::core::disk::DiskNearlyFull;
use crate::core::intake::IntakeError;
use crate::core::intake::fields::InvalidRequest;
use crate::core::intake::projects::LinkError;
use crate::core::intake::rebuild::RebuildError;
use crate::core::orchestrator::ShuttingDown;
use crate::core::store::StoreError;

/// A refusal: the status, a code for programs, and a sentence with advice.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 400: the request is invalid.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// 404: there is no such resource.
    pub(super) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {what} {id}"))
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// 404: the resource could exist, and the sentence has the advice.
    pub(super) fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405: the path exists, but not with this method.
    pub(super) fn method_not_allowed() -> Self {
        let message = "this address does not take this method; see /api/v1/openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// 413: the body is too long.
    pub(super) fn too_large(bytes_max: usize) -> Self {
        let message = format!("the body is longer than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 409: the resource's state does not allow the request.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 401: no token, or an unknown one.
    pub(super) fn unauthorized() -> Self {
        let message = "send a token that `stagely token create` made, as `Authorization: Bearer …`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 401: the body is not signed with the webhook's secret.
    pub(super) fn bad_signature(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "bad_signature", message)
    }

    /// 408: the body did not arrive in time.
    pub(super) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time")
    }

    /// 503: too many requests at once.
    pub(super) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many webhooks at once; send it again",
        )
    }

    pub(super) fn too_many_log_readers() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many clients read logs at the moment; try again",
        )
    }

    /// 403: the token's role does not allow the request.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 503: core cannot serve the request now.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    /// 500: the log has the reason, and the response does not.
    pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        error!(error, "a request failed");
        let message = "core failed to serve this request; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl From<ArchiveError> for ApiError {
    fn from(error: ArchiveError) -> Self {
        let message = error.to_string();
        match error {
            ArchiveError::NotArchiving(_) | ArchiveError::NotNamed(_) => Self::forbidden(message),
            ArchiveError::Superseded => Self::conflict(message),
            ArchiveError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            ArchiveError::Missing(_) => Self::missing(message),
            ArchiveError::DiskNearlyFull(error) => error.into(),
            ArchiveError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_nearly_full", message)
            }
            ArchiveError::Disk(_) => Self::internal(&error),
        }
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        let message = error.to_string();
        match error {
            ArtifactError::NotTesting(_) => Self::forbidden(message),
            ArtifactError::TooLarge { .. } | ArtifactError::PieceTooLarge => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            ArtifactError::Elsewhere { .. } | ArtifactError::Superseded => Self::conflict(message),
            ArtifactError::WrongLength | ArtifactError::WrongDigest | ArtifactError::Invalid(_) => {
                Self::invalid(message)
            }
            ArtifactError::DiskNearlyFull(error) => error.into(),
            ArtifactError::Disk(error) if error.kind() == io::ErrorKind::StorageFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_nearly_full", message)
            }
            ArtifactError::Disk(_) => Self::internal(&error),
        }
    }
}

impl From<ShuttingDown> for ApiError {
    fn from(error: ShuttingDown) -> Self {
        Self::unavailable(format!("{error}; try again when it is back"))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<RebuildError> for ApiError {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::NotFound(run) => Self::not_found("run", &run.to_string()),
            RebuildError::NoEnvironment(id) => Self::not_found("environment", &id.to_string()),
            RebuildError::Conflict(reason) => Self::conflict(reason.to_string()),
            RebuildError::Invalid(error) => error.into(),
        }
    }
}

impl From<LinkError> for ApiError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Conflict(reason) => Self::conflict(reason.to_string()),
            LinkError::Invalid(error) => error.into(),
        }
    }
}

impl From<Infallible> for ApiError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl<E: Into<Self>> From<IntakeError<E>> for ApiError {
    fn from(error: IntakeError<E>) -> Self {
        match error {
            IntakeError::Refused(error) => error.into(),
            IntakeError::Disk(error) => error.into(),
            IntakeError::ShuttingDown(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { code: self.code.to_owned(), message: self.message };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, challenge);
        }
        if self.code == "busy" {
            let wait = axum::http::HeaderValue::from_static("10");
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, wait);
        }
        response
    }
}

impl From<DiskNearlyFull> for ApiError {
    fn from(error: DiskNearlyFull) -> Self {
        let status = StatusCode::INSUFFICIENT_STORAGE;
        Self::new(status, "disk_nearly_full", error.to_string())
    }
}
