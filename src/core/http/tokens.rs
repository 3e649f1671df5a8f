//! `/tokens`: creates bearer tokens.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::auth::Admin;
use super::{ApiError, ApiJson, ApiState};
use crate::api::{CreateToken, CreatedToken, ErrorBody};

/// The longest name of a token, in characters.
const NAME_CHARS_MAX: usize = 100;

/// Creates a token. It is shown only here, because core stores its hash.
#[utoipa::path(post, path = "/tokens", request_body = CreateToken, responses(
    (status = 201, body = CreatedToken), (status = 400, body = ErrorBody),
))]
pub(super) async fn create(
    State(api): State<ApiState>,
    _: Admin,
    ApiJson(create): ApiJson<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let CreateToken { name, role } = create;
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        return Err(ApiError::invalid("name: must be 1 to 100 characters"));
    }
    let token = api.tokens.create(&name, role).await.map_err(|error| ApiError::internal(&error))?;
    Ok((StatusCode::CREATED, Json(CreatedToken { name, role, token })))
}
