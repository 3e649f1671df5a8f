//! `/previews`: lists and shows previews, puts them to sleep, wakes, resets, extends and ends them, and reads
//! their logs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use stagely_state::ids::PreviewId;
use stagely_state::{Event, PREVIEW_EXTENSION_MAX};

use super::auth::{Reader, Writer};
use super::log_streams::{self, Gone, LogViewer};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, ApiState};
use crate::api::{
    ErrorBody, ExtendPreview, ListPreviews, PreviewLogRange, PreviewStatus, PreviewView, Role,
};
use crate::core::logs::LogId;
use crate::core::previews::is_tested;
use crate::core::records::Records;

/// Lists the open previews, or also those that have ended, the oldest first.
#[utoipa::path(get, path = "/previews", params(ListPreviews),
    responses((status = 200, body = Vec<PreviewView>), (status = 400, body = ErrorBody)))]
pub(super) async fn list(
    State(api): State<ApiState>,
    reader: Reader,
    ApiQuery(query): ApiQuery<ListPreviews>,
) -> Json<Vec<PreviewView>> {
    let records = api.records.read();
    let previews = api.previews(&records, Some(reader.role));
    let views = records.previews.values().map(|preview| previews.view(preview));
    Json(views.filter(|view| is_listed(view, &query)).collect())
}

fn is_listed(view: &PreviewView, query: &ListPreviews) -> bool {
    (query.all || query.status.is_some() || view.status.is_open())
        && query.project.as_ref().is_none_or(|project| *project == view.project)
        && query.environment.as_ref().is_none_or(|environment| *environment == view.environment)
        && query.pull_request.is_none_or(|number| view.pull_request == Some(number))
        && query.status.is_none_or(|status| view.status == status)
}

/// Shows a preview.
#[utoipa::path(get, path = "/previews/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = PreviewView), (status = 404, body = ErrorBody),
))]
pub(super) async fn get(
    State(api): State<ApiState>,
    reader: Reader,
    ApiPath(id): ApiPath<PreviewId>,
) -> Result<Json<PreviewView>, ApiError> {
    find(&api, id, reader.role).map(Json)
}

/// Archives a preview's data and gives its machine back. The next request wakes it.
#[utoipa::path(post, path = "/previews/{id}/sleep", params(("id" = String, Path)), responses(
    (status = 200, body = PreviewView, description = "It archives, or is asleep already."),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It is deployed or tested, or has ended."),
))]
pub(super) async fn sleep(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
) -> Result<Json<PreviewView>, ApiError> {
    let preview = find(&api, id, writer.role)?;
    match preview.status {
        PreviewStatus::Live if is_under_test(&api, id) => {
            return Err(conflict(&preview, "try again when its tests have ended"));
        }
        PreviewStatus::Live => {}
        PreviewStatus::Archiving | PreviewStatus::Asleep => return Ok(Json(preview)),
        PreviewStatus::Deploying | PreviewStatus::Updating | PreviewStatus::Waking => {
            return Err(conflict(&preview, "try again when it is live"));
        }
        PreviewStatus::Ending | PreviewStatus::Ended | PreviewStatus::Failed => {
            return Err(conflict(&preview, "it has no data to keep"));
        }
    }
    api.events.store(Event::PreviewSleepRequested { preview: id }).await?;
    find(&api, id, writer.role).map(Json)
}

fn is_under_test(api: &ApiState, id: PreviewId) -> bool {
    let records = api.records.read();
    records.previews.get(&id).is_some_and(|preview| is_tested(&records, preview))
}

/// Wakes a sleeping preview, as a visit does; one that is about to sleep wakes afterwards. For one that serves it counts as
/// a visit.
#[utoipa::path(post, path = "/previews/{id}/wake", params(("id" = String, Path)), responses(
    (status = 200, body = PreviewView, description = "It wakes, or serves already."),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It has ended, or was never deployed."),
))]
pub(super) async fn wake(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
) -> Result<Json<PreviewView>, ApiError> {
    let preview = find(&api, id, writer.role)?;
    match preview.status {
        PreviewStatus::Asleep
        | PreviewStatus::Deploying
        | PreviewStatus::Live
        | PreviewStatus::Updating
        | PreviewStatus::Archiving
        | PreviewStatus::Waking => {}
        PreviewStatus::Ending | PreviewStatus::Ended | PreviewStatus::Failed => {
            return Err(conflict(&preview, DEPLOY_AGAIN));
        }
    }
    api.events.store(Event::PreviewWakeRequested { preview: id }).await?;
    find(&api, id, writer.role).map(Json)
}

/// Deploys what a preview shows once more, with fresh data.
#[utoipa::path(post, path = "/previews/{id}/reset", params(("id" = String, Path)), responses(
    (status = 200, body = PreviewView, description = "It is deployed, or will be as soon as there is a machine."),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "A deployment is under way, or it has ended."),
))]
pub(super) async fn reset(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
) -> Result<Json<PreviewView>, ApiError> {
    let preview = find(&api, id, writer.role)?;
    match preview.status {
        PreviewStatus::Live
        | PreviewStatus::Archiving
        | PreviewStatus::Asleep
        | PreviewStatus::Failed => {}
        PreviewStatus::Deploying | PreviewStatus::Updating | PreviewStatus::Waking => {
            return Err(conflict(&preview, "try again when its deployment has ended"));
        }
        PreviewStatus::Ending | PreviewStatus::Ended => {
            return Err(conflict(&preview, DEPLOY_AGAIN));
        }
    }
    api.events.store(Event::PreviewResetRequested { preview: id }).await?;
    find(&api, id, writer.role).map(Json)
}

/// Lets a preview stay unused for longer. It ends at most 30 days from now.
#[utoipa::path(post, path = "/previews/{id}/extend", params(("id" = String, Path)),
    request_body = ExtendPreview, responses(
        (status = 200, body = PreviewView),
        (status = 400, body = ErrorBody, description = "The time is zero, or longer than 30 days."),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It shows nothing."),
    ))]
pub(super) async fn extend(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
    ApiJson(ExtendPreview { seconds }): ApiJson<ExtendPreview>,
) -> Result<Json<PreviewView>, ApiError> {
    let by = Duration::from_secs(seconds);
    if by.is_zero() || by > PREVIEW_EXTENSION_MAX {
        return Err(ApiError::invalid("seconds: must be more than zero and at most 30 days"));
    }
    let preview = find(&api, id, writer.role)?;
    if preview.generation.is_none() {
        return Err(conflict(&preview, "there is nothing to keep"));
    }
    api.events.store(Event::PreviewExtended { preview: id, by }).await?;
    find(&api, id, writer.role).map(Json)
}

/// Ends a preview: its machine and its data are deleted. The next deployment begins it again.
#[utoipa::path(delete, path = "/previews/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = PreviewView, description = "It is ending, or has ended already."),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn end(
    State(api): State<ApiState>,
    writer: Writer,
    ApiPath(id): ApiPath<PreviewId>,
) -> Result<Json<PreviewView>, ApiError> {
    find(&api, id, writer.role)?;
    api.events.store(Event::PreviewEndRequested { preview: id }).await?;
    find(&api, id, writer.role).map(Json)
}

/// Reads the log of a preview's services as plain text with its ANSI sequences. Each line begins with the service's name.
#[utoipa::path(get, path = "/previews/{id}/logs", params(("id" = String, Path), PreviewLogRange), responses(
    (status = 200, content_type = "text/plain", body = String), (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody, description = "Too many clients read logs at the moment."),
))]
pub(super) async fn logs(
    State(api): State<ApiState>,
    reader: Reader,
    ApiPath(id): ApiPath<PreviewId>,
    ApiQuery(range): ApiQuery<PreviewLogRange>,
) -> Result<Response, ApiError> {
    let shown = find(&api, id, reader.role)?.generation.unwrap_or_default();
    let log = LogId::Services { preview: id, generation: range.generation.unwrap_or(shown) };
    let from = first_line(&api, log, &range).await?;
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    let reader = api.log_readers.api()?;
    let text = log_streams::text(&api.logs, reader, log, from, |line| line.into());
    Ok((headers, text).into_response())
}

/// Follows the log of a preview's services over a WebSocket: the stored lines, and then the new ones. Goes on with
/// the next deployment unless `generation` is given, and ends with the preview.
#[utoipa::path(get, path = "/previews/{id}/logs/follow", params(("id" = String, Path), PreviewLogRange),
    responses(
        (status = 101, description = "Text messages: `lines` with attempt (the generation), first and lines."),
        (status = 404, body = ErrorBody),
    ))]
pub(super) async fn follow(
    State(api): State<ApiState>,
    reader: Reader,
    ApiPath(id): ApiPath<PreviewId>,
    ApiQuery(range): ApiQuery<PreviewLogRange>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let shown = find(&api, id, reader.role)?.generation.unwrap_or_default();
    let log = LogId::Services { preview: id, generation: range.generation.unwrap_or(shown) };
    let from = first_line(&api, log, &range).await?;
    let sockets = api.sockets.clone();
    Ok(sockets.open(upgrade, async move |socket| {
        let mut viewer = LogViewer { api, socket };
        let is_one = range.generation.is_some();
        let generation = range.generation.unwrap_or(shown);
        if send_generations(&mut viewer, id, generation, from, is_one).await.is_ok() {
            viewer.close().await;
        }
    }))
}

/// The number of the line with which a part of a log begins.
async fn first_line(api: &ApiState, log: LogId, range: &PreviewLogRange) -> Result<u64, ApiError> {
    let Some(tail) = range.tail else { return Ok(range.from.unwrap_or_default()) };
    let next = api.logs.next_line(log).await.map_err(|error| ApiError::internal(&error))?;
    Ok(next.saturating_sub(tail))
}

/// Sends the lines of one deployment, and of those after it, unless `is_one`.
async fn send_generations(
    viewer: &mut LogViewer,
    preview: PreviewId,
    mut generation: u64,
    mut from: u64,
    is_one: bool,
) -> Result<(), Gone> {
    loop {
        let log = LogId::Services { preview, generation };
        let is_over = |records: &Records| {
            let Some(found) = records.previews.get(&preview) else { return true };
            let shown = found.shown.as_ref().map(|shown| shown.number);
            found.has_ended() || shown.is_some_and(|shown| shown > generation)
        };
        viewer.send_log(log, from, is_over).await?;
        let records = viewer.api.records.read();
        let shown = records.previews.get(&preview).and_then(|found| found.shown.as_ref());
        match shown.map(|shown| shown.number).filter(|shown| *shown > generation) {
            Some(shown) if !is_one => (generation, from) = (shown, 0),
            _ => return Ok(()),
        }
    }
}

/// What brings back a preview that is over.
const DEPLOY_AGAIN: &str = "a new run or a rebuild deploys it again";

pub(super) fn conflict(preview: &PreviewView, advice: &str) -> ApiError {
    let PreviewView { label, status, .. } = preview;
    ApiError::conflict(format!("the preview {label} is {}: {advice}", status.as_str()))
}

pub(super) fn find(api: &ApiState, id: PreviewId, role: Role) -> Result<PreviewView, ApiError> {
    let records = api.records.read();
    let found = records.previews.get(&id);
    let found = found.ok_or_else(|| ApiError::not_found("preview", &id.to_string()))?;
    Ok(api.previews(&records, Some(role)).view(found))
}
