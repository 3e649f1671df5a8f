//! Extractors of bodies, paths and queries that refuse a malformed request with an [`ApiError`].

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::{ApiError, ApiState, BODY_BYTES_MAX};

#[derive(Debug)]
pub(super) struct ApiJson<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<ApiState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &ApiState) -> Result<Self, ApiError> {
        let read: Result<Json<T>, JsonRejection> =
            <Json<T> as FromRequest<ApiState>>::from_request(request, api).await;
        match read {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large(BODY_BYTES_MAX))
            }
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<ApiState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &ApiState) -> Result<Option<Self>, ApiError> {
        if request.body().size_hint().exact() == Some(0) {
            return Ok(None);
        }
        <Self as FromRequest<ApiState>>::from_request(request, api).await.map(Some)
    }
}

#[derive(Debug)]
pub(super) struct ApiPath<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        read.map(|Path(named)| Self(named)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}

#[derive(Debug)]
pub(super) struct ApiQuery<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        let read = Query::<T>::from_request_parts(parts, api).await;
        read.map(|Query(query)| Self(query)).map_err(|error| ApiError::invalid(error.body_text()))
    }
}
