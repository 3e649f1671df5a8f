//! Reads the registry's responses: their status becomes an error, and their body has a largest size.

use bytes::Bytes;
use reqwest::{Response, StatusCode};
use stagely_agent::transient::is_transient_status;
use stagely_protocol::ImageRef;

use super::error::RegistryError;

/// Most bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Most characters of a refusal that are shown.
const DETAIL_CHARS_MAX: usize = 300;

/// Checks the status of a response about `image`.
///
/// # Errors
/// [`RegistryError::Missing`] for status 404; else as [`checked`].
pub(super) async fn found(image: &ImageRef, response: Response) -> Result<Response, RegistryError> {
    if response.status() == StatusCode::NOT_FOUND {
        return Err(RegistryError::Missing(image.clone()));
    }
    checked(response).await
}

/// Checks that the status is a success.
///
/// # Errors
/// [`RegistryError`] with the start of the body.
pub(super) async fn checked(response: Response) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let detail = String::from_utf8_lossy(&text).chars().map(shown).take(DETAIL_CHARS_MAX).collect();
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            RegistryError::AccessDenied { status: status.as_u16(), detail }
        }
        _ if is_transient_status(status.as_u16()) => {
            RegistryError::Unavailable { status: status.as_u16(), detail }
        }
        _ => RegistryError::InvalidResponse(format!("status {}: {detail}", status.as_u16())),
    })
}

/// Reads a body of up to `bytes_max` bytes.
pub(super) async fn read(mut response: Response, bytes_max: usize) -> Result<Bytes, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Err(RegistryError::InvalidResponse(format!(
                "the body is longer than {bytes_max} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusals_are_final_but_for_a_short_list_and_have_the_registrys_words() {
        for (status, is_transient) in [
            (400, false),
            (401, false),
            (403, false),
            (405, false),
            (408, true),
            (409, false),
            (413, false),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
            (507, true),
        ] {
            let response =
                axum::http::Response::builder().status(status).body("its words").unwrap();
            let error = checked(Response::from(response)).await.unwrap_err();
            assert_eq!(error.is_transient(), is_transient, "{status}");
            assert!(error.to_string().contains("its words"), "{error}");
        }
    }
}
