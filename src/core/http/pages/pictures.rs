//! The pictures that a test has left, for its page and for comments.

use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use stagely_protocol::{ErrorChain, StoredArtifacts};
use tracing::error;

use super::{ApiState, Visitor, find_job, not_found, refused};
use crate::api::JobView;
use crate::core::artifacts::PictureError;

/// A browser runs nothing of it, whatever it takes it for.
const POLICY: &str = "sandbox; default-src 'none'";

/// A picture never changes. It may be kept by the one who has seen it, as long as a day.
const CACHING: &str = "private, max-age=86400, immutable";

/// The job, and the number of the picture from 1.
pub(super) struct PictureId {
    job: String,
    number: usize,
}

impl FromRequestParts<ApiState> for PictureId {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, Response> {
        let id = Path::<(String, usize)>::from_request_parts(parts, api).await;
        id.map(|Path((job, number))| Self { job, number }).map_err(|_| not_found("picture"))
    }
}

/// One of `comment_images`. Whoever may read the log may see it.
pub(super) async fn show(State(api): State<ApiState>, _: Visitor, id: PictureId) -> Response {
    let job = match find_job(&api, &id.job).await {
        Ok(job) => job,
        Err(refused) => return refused,
    };
    let Some((artifacts, name)) = picture_of(&job, id.number) else { return not_found("picture") };
    // A job that reuses the result of another one has its artifacts.
    let owner = job.reused_from.unwrap_or(job.id);
    match api.artifacts.picture(owner, artifacts.digest.clone(), name.to_owned()).await {
        Ok(Some(picture)) => {
            let tag = format!("\"{}-{}\"", artifacts.digest, id.number);
            let headers = [
                (CONTENT_TYPE, picture.content_type),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (CONTENT_SECURITY_POLICY, POLICY),
                (CACHE_CONTROL, CACHING),
                (ETAG, &tag),
            ];
            (headers, picture.bytes).into_response()
        }
        Ok(None) | Err(PictureError::Missing) => not_found("picture"),
        Err(error @ PictureError::Io(_)) => {
            error!(job = %job.id, error = %ErrorChain(&error), "a picture cannot be read");
            let advice = "Core's own log says why.";
            refused(StatusCode::INTERNAL_SERVER_ERROR, "This cannot be read", advice)
        }
        Err(error @ (PictureError::TooLarge | PictureError::OtherKind)) => {
            let title = "This cannot be shown as a picture";
            let advice = format!("{error}. `stagely artifacts` downloads it.");
            refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, title, &advice)
        }
    }
}

fn picture_of(job: &JobView, number: usize) -> Option<(&StoredArtifacts, &str)> {
    let artifacts = job.test.as_ref()?.artifacts.as_ref()?;
    Some((artifacts, artifacts.comment_images.get(number.checked_sub(1)?)?))
}
