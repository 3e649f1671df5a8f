//! Request bodies.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};

use super::{Api, ApiError};

/// A JSON body; one that cannot be read is refused in the API's own words.
#[derive(Debug)]
pub(super) struct ApiJson<T>(pub(super) T);

impl<T: serde::de::DeserializeOwned> FromRequest<Api> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let read: Result<Json<T>, JsonRejection> = Json::from_request(request, api).await;
        match read {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(ApiError::invalid(rejection.body_text())),
        }
    }
}
