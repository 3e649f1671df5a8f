//! `/jobs/{id}/artifacts`: what a test has left, as one tar archive.

use std::io::{self, SeekFrom};
use std::ops::RangeInclusive;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use stagely_protocol::{Digest, StoredArtifacts};
use stagely_state::ids::JobId;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::auth::Reader;
use super::{ApiError, ApiPath, ApiState};
use crate::api::ErrorBody;
use crate::core::artifacts::Extent;
use crate::core::blobs::Blob;

/// The bytes that are read from the file at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A browser runs nothing of it, whatever it takes it for.
const POLICY: &str = "sandbox; default-src 'none'";

/// Reads the files that a test has left, as a tar archive of regular files. Takes one range of bytes.
#[utoipa::path(get, path = "/jobs/{id}/artifacts", params(("id" = String, Path)), responses(
    (status = 200, content_type = "application/x-tar", body = Vec<u8>),
    (status = 206, content_type = "application/x-tar", body = Vec<u8>),
    (status = 404, body = ErrorBody, description = "There is no such job, it has left nothing, or that is not stored any more."),
    (status = 416, body = ErrorBody),
))]
pub(super) async fn read(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<JobId>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // A job that reuses the result of another one has its artifacts.
    let found = api.history.with_job(id, |_, job| {
        job.artifacts.clone().map(|artifacts| (job.reused_from.unwrap_or(job.id), artifacts))
    });
    let found = found.await?.ok_or_else(|| ApiError::not_found("job", &id.to_string()))?;
    let Some((owner, StoredArtifacts { digest, .. })) = found else {
        return Err(ApiError::missing(format!("{id} has left no artifacts")));
    };
    let blob = api.artifacts.open(owner, digest.clone()).await;
    let blob = blob.map_err(|error| ApiError::internal(&error))?.ok_or_else(|| {
        let days = humantime::format_duration(api.config.retention.artifacts);
        ApiError::missing(format!(
            "the artifacts of {id} are not stored any more; retention.artifacts is {days}"
        ))
    })?;
    serve(id, &digest, blob, &headers).await
}

async fn serve(
    id: JobId,
    digest: &Digest,
    blob: Blob,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let mut answer = HeaderMap::new();
    let fixed = [
        (CONTENT_TYPE, "application/x-tar"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fixed {
        answer.insert(name, HeaderValue::from_static(value));
    }
    answer.insert(CONTENT_DISPOSITION, plain(&format!("attachment; filename=\"{id}.tar\"")));
    let whole = Extent { first: 0, bytes: blob.bytes };
    let served = ranged(blob.file, whole, &format!("\"{digest}\""), headers, answer).await;
    served.map_err(|error| ApiError::internal(&error))
}

/// Serves a part of a file, or the one range of it that the request's `headers` ask for. `answer` are the headers of both.
///
/// # Errors
/// The disk's.
pub(super) async fn ranged(
    file: std::fs::File,
    extent: Extent,
    tag: &str,
    headers: &HeaderMap,
    mut answer: HeaderMap,
) -> io::Result<Response> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_same = text(IF_RANGE).is_none_or(|of| of == tag);
    let range = text(RANGE).filter(|_| is_same).and_then(|range| range_of(range, extent.bytes));
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(ETAG, plain(tag));
    let Ok(range) = range.transpose() else {
        answer.insert(CONTENT_RANGE, plain(&format!("bytes */{}", extent.bytes)));
        answer.remove(CONTENT_DISPOSITION);
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, answer).into_response());
    };
    let (status, first, length) = match range {
        Some(range) => {
            let value = format!("bytes {}-{}/{}", range.start(), range.end(), extent.bytes);
            answer.insert(CONTENT_RANGE, plain(&value));
            (StatusCode::PARTIAL_CONTENT, *range.start(), range.end() - range.start() + 1)
        }
        None => (StatusCode::OK, 0, extent.bytes),
    };
    answer.insert(CONTENT_LENGTH, length.into());
    let mut file = tokio::fs::File::from_std(file);
    file.seek(SeekFrom::Start(extent.first + first)).await?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK_BYTES));
    Ok((status, answer, body).into_response())
}

fn plain(text: &str) -> HeaderValue {
    text.parse().expect("letters, digits and punctuation")
}

/// The one range that the header asks for; `None` if it is of another kind, which counts as none, and an error if it begins
/// after the end.
fn range_of(header: &str, bytes: u64) -> Option<Result<RangeInclusive<u64>, ()>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if last.is_empty() => (first, u64::MAX),
        // The last bytes.
        (Err(_), Ok(count)) if header.starts_with("bytes=-") && count > 0 => {
            (bytes.saturating_sub(count), u64::MAX)
        }
        _ => return None,
    };
    Some(if first < bytes { Ok(first..=last.min(bytes - 1)) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_and_others_count_as_none() {
        assert_eq!(range_of("bytes=0-9", 100), Some(Ok(0..=9)));
        assert_eq!(range_of("bytes=90-", 100), Some(Ok(90..=99)));
        assert_eq!(range_of("bytes=-10", 100), Some(Ok(90..=99)));
        assert_eq!(range_of("bytes=-1000", 100), Some(Ok(0..=99)));
        assert_eq!(range_of("bytes=50-1000", 100), Some(Ok(50..=99)));
        assert_eq!(range_of("bytes=100-", 100), Some(Err(())));
        assert_eq!(range_of("bytes=0-", 0), Some(Err(())));
        for other in ["bytes=0-1,5-6", "bytes=9-1", "bytes=", "bytes=-", "lines=0-1", "0-1"] {
            assert_eq!(range_of(other, 100), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_range_of_the_archive_is_served_and_nothing_of_it_runs() {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let serve = async |range: Option<&'static str>| {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), "0123456789").unwrap();
            let blob = Blob { file: std::fs::File::open(path.path()).unwrap(), bytes: 10 };
            let mut headers = HeaderMap::new();
            if let Some(range) = range {
                headers.insert(RANGE, HeaderValue::from_static(range));
            }
            let answer = serve(JobId::from_bits(1), &digest, blob, &headers).await.unwrap();
            let (parts, body) = answer.into_parts();
            let body = axum::body::to_bytes(body, 100).await.unwrap();
            (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
        };
        let (status, headers, body) = serve(None).await;
        assert_eq!((status, body.as_str()), (200, "0123456789"));
        assert_eq!(headers[CONTENT_SECURITY_POLICY], POLICY);
        assert!(headers[CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment"));
        let (status, headers, body) = serve(Some("bytes=3-5")).await;
        assert_eq!((status, body.as_str()), (206, "345"));
        assert_eq!(headers[CONTENT_RANGE], "bytes 3-5/10");
        let (status, headers, _) = serve(Some("bytes=10-")).await;
        assert_eq!((status, &headers[CONTENT_RANGE]), (416, &"bytes */10".parse().unwrap()));
    }
}
