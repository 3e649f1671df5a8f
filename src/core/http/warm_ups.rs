//! `/warm-up` and `/projects/{name}/warm-ups`: filling caches, now or by schedule.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::auth::{Reader, Writer};
use super::{ApiError, ApiJson, ApiPath, ApiState, runs};
use crate::api::{CreateWarmUp, ErrorBody, RunView, WarmUpView};
use crate::core::clock::now;
use crate::core::intake::request;

/// Starts a run that fills a project's caches and pushes no image.
#[utoipa::path(post, path = "/projects/{name}/warm-ups", params(("name" = String, Path)),
    request_body = CreateWarmUp, responses(
        (status = 201, body = RunView),
        (status = 400, body = ErrorBody, description = "The branch cannot be one."),
        (status = 404, body = ErrorBody, description = "Nothing of this name was ever built."),
        (status = 507, body = ErrorBody, description = "Core's disk is nearly full."),
    ))]
pub(super) async fn create(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(name): ApiPath<String>,
    ApiJson(create): ApiJson<CreateWarmUp>,
) -> Result<(StatusCode, Json<RunView>), ApiError> {
    let make = move |records: &crate::core::records::Records| {
        let made = request::warm_up(records, &name, create).map_err(ApiError::from)?;
        made.ok_or_else(|| ApiError::not_found("project", &name))
    };
    let id = api.intake.take(make).await?;
    Ok((StatusCode::CREATED, Json(runs::find(&api, id).await?)))
}

/// Shows the schedule of warm-ups, and the time of the next ones.
#[utoipa::path(get, path = "/warm-up", responses((status = 200, body = WarmUpView)))]
pub(super) async fn schedule(State(api): State<ApiState>, _: Reader) -> Json<WarmUpView> {
    let config = &api.config.warm_up;
    // The schedule was checked at the start.
    let schedule = config.schedule().ok().flatten();
    Json(WarmUpView {
        schedule: config.schedule.clone(),
        next_due_at: schedule.and_then(|schedule| schedule.next_after(now())),
        projects: config.projects.clone(),
        branches: config.branches.clone(),
    })
}
