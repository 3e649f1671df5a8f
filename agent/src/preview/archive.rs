//! Moves the volumes of a preview to core and back, as one stream.

mod format;
mod volumes;

pub(crate) use self::volumes::{Volumes, patient};

use std::io;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Method, StatusCode};
use sha2::{Digest as _, Sha256};
use stagely_protocol::{ARCHIVES_PATH, Digest, StoredArchive, WireId};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::format::{Frame, compress, send, unpack};
use self::volumes::Budget;
use crate::core_client::{CoreClient, SILENCE_LIMIT, refusal};
use crate::pieces::{PIECES_MAX, PieceReader, digest_of};
use crate::retry::Backoff;

/// How long an archive is sent again while core does not answer. The machine may have two minutes left.
const RETRY_LIMIT: Duration = Duration::from_secs(90);

const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// Why volumes were not moved.
#[derive(Debug, Error)]
pub(crate) enum ArchiveError {
    #[error("the volumes have more than {}", mebibytes(*.max))]
    TooLarge { max: u64 },
    #[error("the engine cannot read or write the volumes")]
    Engine(#[from] EngineError),
    #[error("core did not take or send the archive")]
    Core(#[from] reqwest::Error),
    #[error("core answered {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("core sent nothing for {SILENCE_LIMIT:?}")]
    Silent,
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    #[error("this agent has no core that keeps archives")]
    NoCore,
    #[error("stopped")]
    Stopped,
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

impl ArchiveError {
    /// Whether core may take the same archive a moment later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Core(_) | Self::Silent | Self::Damaged(_) => true,
            // A full disk stays full while the preview is down.
            Self::Refused { status, .. } => {
                status.is_server_error() && *status != StatusCode::INSUFFICIENT_STORAGE
            }
            Self::TooLarge { .. } | Self::Engine(_) | Self::NoCore | Self::Stopped => false,
        }
    }
}

/// An archive that core has.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    /// As it is stored.
    pub(crate) bytes: u64,
}

/// Core, as the place where archives are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Archives<'a> {
    pub(crate) core: &'a CoreClient,
}

impl Archives<'_> {
    fn path(preview: &WireId, digest: Option<&Digest>) -> String {
        let digest = digest.map(|digest| format!("/{digest}")).unwrap_or_default();
        format!("{ARCHIVES_PATH}/{preview}{digest}")
    }

    /// Stores `names`, the volumes by name in the compose file with the engine's names. Tries again while core does not
    /// answer.
    ///
    /// # Errors
    /// [`ArchiveError`]; then core has no archive.
    pub(crate) async fn store(
        &self,
        volumes: &Volumes<'_>,
        names: &[(String, String)],
        bytes_max: u64,
        stop: &CancellationToken,
    ) -> Result<Stored, ArchiveError> {
        let mut backoff = Backoff::exponential(RETRY_DELAY_MIN, RETRY_DELAY_MAX, RETRY_LIMIT);
        loop {
            let stored = stop.run_until_cancelled(self.store_once(volumes, names, bytes_max)).await;
            let error = match stored {
                None => return Err(ArchiveError::Stopped),
                Some(Ok(stored)) => return Ok(stored),
                Some(Err(error)) => error,
            };
            tracing::warn!(preview = %volumes.preview, %error, "cannot archive a preview");
            if !error.is_transient() || !backoff.wait(stop, |_| {}).await {
                return Err(error);
            }
        }
    }

    async fn store_once(
        &self,
        volumes: &Volumes<'_>,
        names: &[(String, String)],
        bytes_max: u64,
    ) -> Result<Stored, ArchiveError> {
        let (frames, waiting) = mpsc::channel(PIECES_MAX);
        let (output, body) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
        let compressed = spawn_blocking(move || compress(waiting, &output));
        let body = stream::unfold(body, |mut body| async move {
            let piece = body.recv().await?;
            Some((piece, body))
        });
        let path = Self::path(volumes.preview, None);
        let request = self.core.request(&CoreClient::http()?, Method::PUT, &path);
        let request = request.body(Body::wrap_stream(body));
        let read = async {
            let mut left = Budget::new(bytes_max);
            let frames = frames;
            for (key, name) in names {
                send(&frames, Frame::Bytes(Bytes::from(key.clone()))).await?;
                volumes.read(name, &frames, &mut left).await?;
                send(&frames, Frame::Bytes(Bytes::new())).await?;
            }
            send(&frames, Frame::Bytes(Bytes::new())).await?;
            send(&frames, Frame::Finished).await
        };
        let (read, response, compressed) = tokio::join!(read, request.send(), compressed);
        match read {
            // Core's answer says why the pieces were not taken.
            Ok(()) | Err(ArchiveError::Stopped) => {}
            Err(error) => return Err(error),
        }
        let response = checked(response?).await?;
        let stored: StoredArchive = response.json().await?;
        let (digest, bytes) = compressed
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| ArchiveError::Damaged(error.to_string()))?;
        if stored.digest != digest {
            let detail = format!("core stored {} instead of {digest}", stored.digest);
            return Err(ArchiveError::Damaged(detail));
        }
        Ok(Stored { digest, bytes })
    }

    /// Puts the volumes of the archive `digest` into new volumes of the engine. Tries again while core does not answer.
    /// Returns their names in the compose file.
    ///
    /// # Errors
    /// [`ArchiveError`]; then some volumes may exist.
    pub(crate) async fn restore(
        &self,
        volumes: &Volumes<'_>,
        digest: &Digest,
        stop: &CancellationToken,
    ) -> Result<Vec<String>, ArchiveError> {
        let mut backoff = Backoff::exponential(RETRY_DELAY_MIN, RETRY_DELAY_MAX, RETRY_LIMIT);
        loop {
            let restored = self.restore_once(volumes, digest);
            let error = match stop.run_until_cancelled(restored).await {
                None => return Err(ArchiveError::Stopped),
                Some(Ok(names)) => return Ok(names),
                Some(Err(error)) => error,
            };
            tracing::warn!(preview = %volumes.preview, %error, "cannot restore a preview");
            // What was written is written again.
            let is_damaged = matches!(error, ArchiveError::Damaged(_));
            if is_damaged || !error.is_transient() || !backoff.wait(stop, |_| {}).await {
                return Err(error);
            }
        }
    }

    async fn restore_once(
        &self,
        volumes: &Volumes<'_>,
        digest: &Digest,
    ) -> Result<Vec<String>, ArchiveError> {
        let path = Self::path(volumes.preview, Some(digest));
        let request = self.core.request(&CoreClient::http()?, Method::GET, &path);
        let mut response = checked(request.send().await?).await?;
        let (received, waiting) = mpsc::channel::<Bytes>(PIECES_MAX);
        let (found, mut volumes_found) = mpsc::channel(1);
        let unpacked = spawn_blocking(move || unpack(PieceReader::new(waiting), &found));
        let receive = async {
            let (received, mut hash) = (received, Sha256::new());
            loop {
                let piece = timeout(SILENCE_LIMIT, response.chunk()).await;
                let Some(piece) = piece.map_err(|_| ArchiveError::Silent)?? else { break };
                hash.update(&piece);
                if received.send(piece).await.is_err() {
                    break;
                }
            }
            Ok::<_, ArchiveError>(digest_of(hash))
        };
        let write = async {
            let (mut first_error, mut names) = (None, Vec::new());
            while let Some((name, mut pieces)) = volumes_found.recv().await {
                if first_error.is_none() {
                    first_error = volumes.write(&name, pieces).await.err();
                } else {
                    while pieces.recv().await.is_some() {}
                }
                names.push(name);
            }
            first_error.map_or(Ok(names), Err)
        };
        let (received, written, unpacked) = tokio::join!(receive, write, unpacked);
        let received = received?;
        // First, because the engine also refuses the tar archive of a damaged one.
        unpacked
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| ArchiveError::Damaged(error.to_string()))?;
        let names = written?;
        if received != *digest {
            let detail = format!("core sent {received} instead of {digest}");
            return Err(ArchiveError::Damaged(detail));
        }
        Ok(names)
    }
}

async fn checked(response: reqwest::Response) -> Result<reqwest::Response, ArchiveError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let message = refusal(response).await;
    Err(ArchiveError::Refused { status, message })
}
