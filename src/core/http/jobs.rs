//! `/jobs`: show a job, and read or follow its log.

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use stagely_state::ids::JobId;
use stagely_state::{Attempt, Job};

use super::auth::Reader;
use super::log_streams::{self, Gone, LogViewer};
use super::{ApiError, ApiPath, ApiQuery, ApiState, views};
use crate::api::{ErrorBody, FollowMessage, JobStatus, JobView, LogRange};
use crate::core::records::Records;

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
    (status = 503, body = ErrorBody, description = "Too many clients read logs at the moment."),
))]
pub(super) async fn logs(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<JobId>,
    ApiQuery(range): ApiQuery<LogRange>,
) -> Result<Response, ApiError> {
    let job = find(&api, id).await?;
    let attempt = Attempt { job: id, number: range.attempt.unwrap_or(job.attempt) };
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    let (reader, from) = (api.log_readers.api()?, range.from.unwrap_or(0));
    let text = log_streams::text(&api.logs, reader, attempt, from, |line| line.into());
    Ok((headers, text).into_response())
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
    Ok(sockets
        .open(upgrade, move |socket| Follower { viewer: LogViewer { api, socket }, id }.run(range)))
}

/// One viewer of one job.
struct Follower {
    viewer: LogViewer,
    id: JobId,
}

impl Follower {
    async fn run(mut self, range: LogRange) {
        if self.send_all(range).await.is_ok() {
            self.viewer.close().await;
        }
    }

    async fn send_all(&mut self, range: LogRange) -> Result<(), Gone> {
        let mut from = range.from.unwrap_or(0);
        let mut number = match range.attempt {
            Some(attempt) => attempt,
            None => find(&self.viewer.api, self.id).await.map_or(1, |job| job.attempt.max(1)),
        };
        loop {
            let attempt = Attempt { job: self.id, number };
            self.viewer.send_log(attempt.into(), from, |records| is_over(records, attempt)).await?;
            match find(&self.viewer.api, self.id).await {
                Ok(job) if range.attempt.is_none() && job.attempt > number => {
                    number = job.attempt;
                    from = 0;
                }
                Ok(job) => {
                    let status = views::job_status(&job.state);
                    let end = FollowMessage::End { status, attempt: job.attempt };
                    return self.viewer.send(&end).await;
                }
                Err(error) if error.is_not_found() => {
                    let status = JobStatus::Failed;
                    return self.viewer.send(&FollowMessage::End { status, attempt: number }).await;
                }
                Err(_) => return Err(Gone),
            }
        }
    }
}

/// Whether the attempt logs nothing more. The agent of a completed job may still export the cache.
fn is_over(records: &Records, attempt: Attempt) -> bool {
    let Some(job) = records.jobs.get(&attempt.job) else { return true };
    job.attempt > attempt.number || (job.state.is_final() && !records.is_exporting(attempt))
}

async fn find(api: &ApiState, id: JobId) -> Result<Job, ApiError> {
    let found = api.history.with_job(id, |_, job| job.clone()).await?;
    found.ok_or_else(|| ApiError::not_found("job", &id.to_string()))
}
