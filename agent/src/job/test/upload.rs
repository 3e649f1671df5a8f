//! Uploads an archive of artifacts to core in pieces, and goes on where an upload was cut.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, StatusCode};
use stagely_protocol::{
    ARTIFACT_PIECE_BYTES_MAX, ARTIFACTS_PATH, DIGEST_HEADER, Digest, OFFSET_HEADER, WireId,
};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::core_client::{CoreClient, refusal};
use crate::retry::Backoff;

/// How long core may need for one piece.
const PIECE_LIMIT: Duration = Duration::from_mins(2);

/// How long an upload is tried again while it makes no progress.
const RETRY_LIMIT: Duration = Duration::from_mins(3);

const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(15);

/// Why an archive was not uploaded.
#[derive(Debug, Error)]
pub(super) enum UploadError {
    #[error("core does not answer")]
    Core(#[from] reqwest::Error),
    #[error("core answered {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("core does not say which bytes it has")]
    NoOffset,
    #[error("the archive cannot be read")]
    Read(#[from] io::Error),
    #[error("that takes too long")]
    Late,
    #[error("this agent has no core that keeps artifacts")]
    NoCore,
    #[error("stopped")]
    Stopped,
}

impl UploadError {
    /// Whether core may take the same bytes a moment later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Core(_) => true,
            // A full disk stays full for a while, and nobody waits for the artifacts.
            Self::Refused { status, .. } => {
                *status == StatusCode::TOO_MANY_REQUESTS
                    || (status.is_server_error() && *status != StatusCode::INSUFFICIENT_STORAGE)
            }
            Self::NoOffset | Self::Read(_) | Self::Late | Self::NoCore | Self::Stopped => false,
        }
    }
}

/// An archive that is to be uploaded.
pub(super) struct Upload<'a> {
    pub(super) core: &'a CoreClient,
    pub(super) job: &'a WireId,
    pub(super) path: &'a Path,
    /// Of the whole archive.
    pub(super) digest: &'a Digest,
    /// The size of the whole archive.
    pub(super) bytes: u64,
}

impl Upload<'_> {
    /// Returns when core has the whole archive.
    ///
    /// # Errors
    /// [`UploadError`]
    pub(super) async fn run(
        &self,
        deadline: Instant,
        stop: &CancellationToken,
    ) -> Result<(), UploadError> {
        match stop.run_until_cancelled(timeout_at(deadline, self.upload(stop))).await {
            None => Err(UploadError::Stopped),
            Some(Err(_)) => Err(UploadError::Late),
            Some(Ok(uploaded)) => uploaded,
        }
    }

    async fn upload(&self, stop: &CancellationToken) -> Result<(), UploadError> {
        let file = Arc::new(File::open(self.path)?);
        let backoff = || Backoff::exponential(RETRY_DELAY_MIN, RETRY_DELAY_MAX, RETRY_LIMIT);
        let (mut retries, mut farthest) = (backoff(), 0);
        loop {
            // A new client has no connections that have ended without a word.
            let mut reached = farthest;
            let uploaded = self.send_rest(&CoreClient::http()?, &file, &mut reached).await;
            let Err(error) = uploaded else { return Ok(()) };
            tracing::warn!(job = %self.job, %error, "cannot upload artifacts");
            if reached > farthest {
                (retries, farthest) = (backoff(), reached);
            }
            if !error.is_transient() || !retries.wait(stop, |_| {}).await {
                return Err(error);
            }
        }
    }

    /// Asks core what it has, and sends the rest. `reached` is set to the most bytes that core has had.
    async fn send_rest(
        &self,
        http: &Client,
        file: &Arc<File>,
        reached: &mut u64,
    ) -> Result<(), UploadError> {
        let path = format!("{ARTIFACTS_PATH}/{}", self.job);
        let head = self.core.request(http, Method::HEAD, &path);
        let head = head.header(DIGEST_HEADER, self.digest.as_str()).timeout(PIECE_LIMIT);
        let response = head.send().await?;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        let mut offset = self.offset(response.headers())?;
        // A core that wants another offset again and again does not keep what it gets.
        let mut corrections = 0;
        while offset < self.bytes {
            *reached = offset.max(*reached);
            let piece = read_piece(file, offset, self.bytes).await?;
            let last = offset + piece.len() as u64 - 1;
            let range = format!("bytes {offset}-{last}/{}", self.bytes);
            let put = self.core.request(http, Method::PUT, &path).timeout(PIECE_LIMIT);
            let put = put.header(DIGEST_HEADER, self.digest.as_str()).header(CONTENT_RANGE, range);
            let put = put.header(CONTENT_TYPE, "application/x-tar").body(piece);
            let response = put.send().await?;
            match response.status() {
                StatusCode::OK => return Ok(()),
                StatusCode::ACCEPTED => offset = self.offset(response.headers())?,
                StatusCode::CONFLICT if corrections < 3 => {
                    corrections += 1;
                    offset = self.offset(response.headers())?;
                }
                _ => return Err(refused(response).await),
            }
        }
        Ok(())
    }

    fn offset(&self, headers: &HeaderMap) -> Result<u64, UploadError> {
        let offset = headers.get(OFFSET_HEADER).and_then(|value| value.to_str().ok());
        let offset = offset.and_then(|text| text.parse().ok());
        offset.filter(|offset| *offset <= self.bytes).ok_or(UploadError::NoOffset)
    }
}

async fn read_piece(file: &Arc<File>, offset: u64, end: u64) -> Result<Vec<u8>, UploadError> {
    let length = ARTIFACT_PIECE_BYTES_MAX.min(end - offset);
    let file = Arc::clone(file);
    let read = spawn_blocking(move || {
        let mut piece = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut piece, offset)?;
        Ok(piece)
    });
    Ok(read.await.map_err(io::Error::other).flatten()?)
}

async fn refused(response: reqwest::Response) -> UploadError {
    let status = response.status();
    let message = refusal(response).await;
    UploadError::Refused { status, message }
}
