//! `/runs`: create, list, show, cancel, approve, rebuild and follow runs.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use stagely_state::ids::RunId;
use stagely_state::{Approval, CancelReason, Event};

use super::auth::{Reader, Writer};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, ApiState, views};
use crate::api::{CreateRun, ErrorBody, JobView, ListRuns, RebuildRun, RunView};
use crate::core::intake::{rebuild, request};

const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 1_000;

/// Starts a run.
///
/// The response is sent when the run is stored. Its plan is made after that, so errors of `stagely.yaml` are in the run
/// and not in this response.
#[utoipa::path(post, path = "/runs", request_body = CreateRun, responses(
    (status = 201, body = RunView),
    (status = 400, body = ErrorBody, description = "A field cannot be what it is."),
    (status = 507, body = ErrorBody, description = "Core's disk is nearly full."),
))]
pub(super) async fn create(
    State(api): State<ApiState>,
    _: Writer,
    ApiJson(create): ApiJson<CreateRun>,
) -> Result<(StatusCode, Json<RunView>), ApiError> {
    let id = api.intake.take(move |records| request::run(records, create)).await?;
    Ok((StatusCode::CREATED, Json(find(&api, id).await?)))
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/runs", params(ListRuns), responses((status = 200, body = Vec<RunView>)))]
pub(super) async fn list(
    State(api): State<ApiState>,
    _: Reader,
    ApiQuery(query): ApiQuery<ListRuns>,
) -> Result<Json<Vec<RunView>>, ApiError> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    Ok(Json(api.history.newest_runs(query.before, limit, views::run_summary).await?))
}

/// Shows a run and its jobs.
#[utoipa::path(get, path = "/runs/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = RunView), (status = 404, body = ErrorBody),
))]
pub(super) async fn get(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<RunId>,
) -> Result<Json<RunView>, ApiError> {
    find(&api, id).await.map(Json)
}

/// Lists the jobs of a run, in the order of the plan.
#[utoipa::path(get, path = "/runs/{id}/jobs", params(("id" = String, Path)), responses(
    (status = 200, body = Vec<JobView>), (status = 404, body = ErrorBody),
))]
pub(super) async fn jobs(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<RunId>,
) -> Result<Json<Vec<JobView>>, ApiError> {
    find(&api, id).await.map(|run| Json(run.jobs))
}

/// Cancels a run. A run that has ended does not change.
#[utoipa::path(post, path = "/runs/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, body = RunView), (status = 404, body = ErrorBody),
))]
pub(super) async fn cancel(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(id): ApiPath<RunId>,
) -> Result<Json<RunView>, ApiError> {
    find(&api, id).await?;
    api.events.store(Event::CancelRequested { run: id, reason: CancelReason::Requested }).await?;
    find(&api, id).await.map(Json)
}

/// Approves a run of a fork's commit.
#[utoipa::path(post, path = "/runs/{id}/approve", params(("id" = String, Path)), responses(
    (status = 200, body = RunView), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It does not wait for approval."),
))]
pub(super) async fn approve(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<RunId>,
) -> Result<Json<RunView>, ApiError> {
    let run = find(&api, id).await?;
    if run.approval != Approval::Awaited || run.status.is_final() {
        return Err(ApiError::conflict(format!("{id} does not wait for approval")));
    }
    api.events.store(Event::RunApproved { run: id, by: writer.name }).await?;
    find(&api, id).await.map(Json)
}

/// Builds a run's commit once more, as a new run in the same environment.
#[utoipa::path(post, path = "/runs/{id}/rebuild", params(("id" = String, Path)),
    request_body = RebuildRun, responses(
        (status = 201, body = RunView, description = "The new run."),
        (status = 400, body = ErrorBody, description = "Build arguments are missing."),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It is under way, or nothing failed in it."),
        (status = 507, body = ErrorBody, description = "Core's disk is nearly full."),
    ))]
pub(super) async fn rebuild(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(id): ApiPath<RunId>,
    ApiJson(rebuild): ApiJson<RebuildRun>,
) -> Result<(StatusCode, Json<RunView>), ApiError> {
    let earlier = api.history.with_run(id, |_, run| run.clone()).await?;
    let earlier = earlier.ok_or_else(|| ApiError::not_found("run", &id.to_string()))?;
    let id = api.intake.take(move |records| rebuild::rebuild(records, &earlier, rebuild)).await?;
    Ok((StatusCode::CREATED, Json(find(&api, id).await?)))
}

/// Follows a run over a WebSocket: its JSON at once and after each change, until it has ended and its
/// machines are gone.
#[utoipa::path(get, path = "/runs/{id}/follow", params(("id" = String, Path)), responses(
    (status = 101, description = "Text messages, each a RunView."), (status = 404, body = ErrorBody),
))]
pub(super) async fn follow(
    State(api): State<ApiState>,
    _: Reader,
    ApiPath(id): ApiPath<RunId>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    find(&api, id).await?;
    let sockets = api.sockets.clone();
    Ok(sockets.open(upgrade, move |socket| send_changes(api, id, socket)))
}

async fn send_changes(api: ApiState, id: RunId, mut socket: WebSocket) {
    let mut changes = api.records.changes();
    let mut pings = api.sockets.pings();
    let mut sent = String::new();
    let mut is_stopping = false;
    loop {
        changes.mark_unchanged();
        let Ok(view) = find(&api, id).await else { break };
        let json = serde_json::to_string(&view).expect("a view has string keys");
        if json != sent {
            if socket.send(Message::Text(json.as_str().into())).await.is_err() {
                return;
            }
            sent = json;
        }
        if is_stopping || view.status.is_final() && view.live_machines == 0 {
            break;
        }
        tokio::select! {
            notified = changes.changed() => if notified.is_err() { break },
            _ = pings.tick() => if socket.send(Message::Ping(Bytes::new())).await.is_err() { return },
            // The viewer sends nothing, so any other message ends the connection.
            received = socket.recv() => if !matches!(received, Some(Ok(Message::Pong(_) | Message::Ping(_)))) { return },
            // The core of `stagely run` stops when its run is over, and other viewers must get the last state first.
            () = api.sockets.stop.cancelled() => is_stopping = true,
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

pub(super) async fn find(api: &ApiState, id: RunId) -> Result<RunView, ApiError> {
    let found = api.history.with_run(id, views::run).await?;
    found.ok_or_else(|| ApiError::not_found("run", &id.to_string()))
}
