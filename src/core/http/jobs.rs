//! `/jobs`: show a job, and read or follow its log.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use stagely_protocol::ErrorChain;
use stagely_state::ids::JobId;
use stagely_state::{Attempt, Job};
use tokio::sync::watch;
use tracing::warn;

use super::auth::Reader;
use super::{ApiError, ApiPath, ApiQuery, ApiState, views};
use crate::api::{ErrorBody, FollowMessage, FollowedLine, JobStatus, JobView, LogRange};
use crate::core::logs::{LiveLines, LogError, NewLines, StoredLine};

/// Most lines that are read from the store at a time for one reader.
const PAGE_LINES: usize = 2_000;

/// Shows a job.
#[utoipa::path(get, path = "/jobs/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = JobView), (status = 404, body = ErrorBody),
))]
pub(super) async fn get(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<JobId>,
) -> Result<Json<JobView>, ApiError> {
    let found = api.history.with_job(id, views::job).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("job", &id.to_string()))
}

/// Reads a job's log as plain text with its ANSI sequences.
#[utoipa::path(get, path = "/jobs/{id}/logs", params(("id" = String, Path), LogRange), responses(
    (status = 200, content_type = "text/plain", body = String), (status = 404, body = ErrorBody),
))]
pub(super) async fn logs(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<JobId>,
    ApiQuery(range): ApiQuery<LogRange>,
) -> Result<Response, ApiError> {
    let job = find(&api, id).await?;
    let attempt = Attempt { job: id, number: range.attempt.unwrap_or(job.attempt) };
    let from = range.from.unwrap_or(0);
    // Pages are read as fast as the client takes them, so a long log is never in memory as a whole.
    // An error breaks off the transfer, because an incomplete log must not look complete.
    let pages = stream::try_unfold(from, move |from| {
        let logs = api.logs.clone();
        async move {
            let lines = logs.read(attempt, from, PAGE_LINES).await.inspect_err(
                |error| warn!(job = %id, error = %ErrorChain(error), "a log cannot be read"),
            )?;
            let next = from + lines.len() as u64;
            Ok::<_, LogError>((!lines.is_empty()).then(|| (text_of(&lines), next)))
        }
    });
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, Body::from_stream(pages)).into_response())
}

fn text_of(lines: &[StoredLine]) -> Bytes {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.data);
        text.push('\n');
    }
    text.into()
}

/// Follows a job's log over a WebSocket: the stored lines, then the new ones, then the job's end. A job that is tried
/// again continues with its next attempt.
#[utoipa::path(get, path = "/jobs/{id}/logs/follow", params(("id" = String, Path), LogRange), responses(
    (status = 101, description = "Text messages: `lines` with attempt, first and lines; at last `end`."),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn follow(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<JobId>,
    ApiQuery(range): ApiQuery<LogRange>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    find(&api, id).await?;
    let sockets = api.sockets.clone();
    Ok(sockets.open(upgrade, move |socket| Follower { api, id, socket }.run(range)))
}

/// One viewer of one job.
struct Follower {
    api: ApiState,
    id: JobId,
    socket: WebSocket,
}

/// The viewer has disconnected, or core is stopping.
struct Gone;

impl Follower {
    async fn run(mut self, range: LogRange) {
        if self.send_all(range).await.is_ok() {
            let _ = self.socket.send(Message::Close(None)).await;
        }
    }

    async fn send_all(&mut self, range: LogRange) -> Result<(), Gone> {
        let mut from = range.from.unwrap_or(0);
        let mut attempt = match range.attempt {
            Some(attempt) => attempt,
            None => find(&self.api, self.id).await.map_or(1, |job| job.attempt.max(1)),
        };
        loop {
            self.send_attempt(Attempt { job: self.id, number: attempt }, from).await?;
            match find(&self.api, self.id).await {
                Ok(job) if range.attempt.is_none() && job.attempt > attempt => {
                    attempt = job.attempt;
                    from = 0;
                }
                Ok(job) => {
                    let status = views::job_status(&job.state);
                    return self.send(&FollowMessage::End { status, attempt: job.attempt }).await;
                }
                Err(error) if error.is_not_found() => {
                    let status = JobStatus::Failed;
                    return self.send(&FollowMessage::End { status, attempt }).await;
                }
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Sends the lines of one attempt until it is over.
    async fn send_attempt(&mut self, attempt: Attempt, mut next: u64) -> Result<(), Gone> {
        let mut changes = self.api.records.changes();
        let mut live = self.api.logs.follow(attempt);
        loop {
            changes.mark_unchanged();
            // Checked before the lines are read, so that all lines of an ended attempt are in the store.
            let over = self.is_over(attempt);
            next = self.send_stored(attempt, next).await?;
            if over {
                return Ok(());
            }
            next = self.send_live(attempt, next, &mut live, &mut changes).await?;
        }
    }

    /// Sends new lines as long as they need not be read, and the attempt may go on. Returns the number of the following
    /// line.
    async fn send_live(
        &mut self,
        attempt: Attempt,
        mut next: u64,
        live: &mut LiveLines,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<u64, Gone> {
        let mut pings = self.api.sockets.pings();
        loop {
            tokio::select! {
                lines = live.after(next) => match lines {
                    NewLines::Encoded { message, end } => {
                        self.send_text(message).await?;
                        next = end;
                    }
                    NewLines::Stored => return Ok(next),
                },
                notified = changes.changed() => {
                    notified.map_err(|_| Gone)?;
                    if self.is_over(attempt) {
                        return Ok(next);
                    }
                }
                _ = pings.tick() => {
                    self.socket.send(Message::Ping(Bytes::new())).await.map_err(|_| Gone)?;
                }
                // The viewer sends nothing, so any other message ends the connection.
                received = self.socket.recv() => {
                    if !matches!(received, Some(Ok(Message::Pong(_) | Message::Ping(_)))) {
                        return Err(Gone);
                    }
                }
                () = self.api.sockets.stop.cancelled() => return Err(Gone),
            }
        }
    }

    /// Whether the attempt logs nothing more. The agent of a completed job may still export the cache.
    fn is_over(&self, attempt: Attempt) -> bool {
        let records = self.api.records.read();
        let Some(job) = records.jobs.get(&self.id) else { return true };
        job.attempt > attempt.number || (job.state.is_final() && !records.is_exporting(attempt))
    }

    /// Sends the stored lines from `next` on. Returns the number of the following line.
    async fn send_stored(&mut self, attempt: Attempt, mut next: u64) -> Result<u64, Gone> {
        loop {
            let lines = self
                .api
                .logs
                .read(attempt, next, PAGE_LINES)
                .await
                .map_err(|error| warn!(job = %self.id, error = %ErrorChain(&error), "a log cannot be read"))
                .map_err(|()| Gone)?;
            if lines.is_empty() {
                return Ok(next);
            }
            let first = next;
            next += lines.len() as u64;
            let lines = lines
                .into_iter()
                .map(|line| FollowedLine { t: line.t, stream: line.stream, data: line.data.into() })
                .collect();
            self.send(&FollowMessage::Lines { attempt: attempt.number, first, lines }).await?;
        }
    }

    async fn send(&mut self, message: &FollowMessage<'_>) -> Result<(), Gone> {
        let json = serde_json::to_string(message).expect("a message has string keys");
        self.send_text(json.into()).await
    }

    async fn send_text(&mut self, json: Utf8Bytes) -> Result<(), Gone> {
        self.socket.send(Message::Text(json)).await.map_err(|_| Gone)
    }
}

async fn find(api: &ApiState, id: JobId) -> Result<Job, ApiError> {
    let found = api.history.with_job(id, |_, job| job.clone()).await?;
    found.ok_or_else(|| ApiError::not_found("job", &id.to_string()))
}
