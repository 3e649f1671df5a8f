//! `/environments`: list, close and rebuild.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use stagely_state::Event;
use stagely_state::ids::EnvironmentId;

use super::auth::{Reader, Writer};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, ApiState, runs, views};
use crate::api::{EnvironmentView, ErrorBody, ListEnvironments, RebuildEnvironment, RunView};
use crate::core::intake::rebuild::rebuild_environment;

/// Lists environments, the oldest first.
#[utoipa::path(get, path = "/environments", params(ListEnvironments), responses(
    (status = 200, body = Vec<EnvironmentView>),
))]
pub(super) async fn list(
    State(api): State<ApiState>,
    _: Reader,
    ApiQuery(query): ApiQuery<ListEnvironments>,
) -> Json<Vec<EnvironmentView>> {
    let records = api.records.read();
    let all = records.environments.values().map(|found| views::environment(&records, found));
    let is_wanted = |view: &EnvironmentView| {
        query.project.as_ref().is_none_or(|project| *project == view.project)
    };
    Json(all.filter(is_wanted).collect())
}

/// Closes an environment: its runs are cancelled, and its own cache refs are deleted. The next run in it opens it
/// again.
#[utoipa::path(post, path = "/environments/{id}/close", params(("id" = String, Path)), responses(
    (status = 200, body = EnvironmentView), (status = 404, body = ErrorBody),
))]
pub(super) async fn close(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(id): ApiPath<EnvironmentId>,
) -> Result<Json<EnvironmentView>, ApiError> {
    find(&api, id)?;
    api.events.store(Event::EnvironmentClosed { environment: id }).await?;
    find(&api, id).map(Json)
}

/// Builds the newest run of an environment once more, as a new run that takes its place.
#[utoipa::path(post, path = "/environments/{id}/rebuild", params(("id" = String, Path)),
    request_body = RebuildEnvironment, responses(
        (status = 201, body = RunView, description = "The new run."),
        (status = 400, body = ErrorBody, description = "The run had build arguments: rebuild the run."),
        (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "Nothing can be built again."),
        (status = 507, body = ErrorBody, description = "Core's disk is nearly full."),
    ))]
pub(super) async fn rebuild(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(id): ApiPath<EnvironmentId>,
    rebuild: Option<ApiJson<RebuildEnvironment>>,
) -> Result<(StatusCode, Json<RunView>), ApiError> {
    let rebuild = rebuild.map(|ApiJson(rebuild)| rebuild).unwrap_or_default();
    let newest = api.history.newest_run_of(id).await?;
    let make = move |records: &_| rebuild_environment(records, id, newest.as_ref(), rebuild);
    let run = api.intake.take(make).await?;
    Ok((StatusCode::CREATED, Json(runs::find(&api, run).await?)))
}

fn find(api: &ApiState, id: EnvironmentId) -> Result<EnvironmentView, ApiError> {
    let records = api.records.read();
    let found = records.environments.get(&id);
    let found = found.ok_or_else(|| ApiError::not_found("environment", &id.to_string()))?;
    Ok(views::environment(&records, found))
}
