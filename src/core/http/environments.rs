//! `/environments`: list and close.

use axum::Json;
use axum::extract::State;

use super::auth::{Reader, Writer};
use super::{Api, ApiError, ApiPath, ApiQuery, views};
use crate::api::{EnvironmentView, ErrorBody, ListEnvironments};
use crate::core::state::Event;
use crate::ids::EnvironmentId;

/// Lists environments, the oldest first.
#[utoipa::path(get, path = "/environments", params(ListEnvironments), responses(
    (status = 200, body = Vec<EnvironmentView>),
))]
pub(super) async fn list(
    State(api): State<Api>,
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

/// Closes an environment: its runs are cancelled, and the cache refs that only it writes deleted. The
/// next run in it opens it again.
#[utoipa::path(post, path = "/environments/{id}/close", params(("id" = String, Path)), responses(
    (status = 200, body = EnvironmentView), (status = 404, body = ErrorBody),
))]
pub(super) async fn close(
    State(api): State<Api>,
    _: Writer,
    ApiPath(id): ApiPath<EnvironmentId>,
) -> Result<Json<EnvironmentView>, ApiError> {
    find(&api, id)?;
    api.events.store(Event::EnvironmentClosed { environment: id }).await?;
    find(&api, id).map(Json)
}

fn find(api: &Api, id: EnvironmentId) -> Result<EnvironmentView, ApiError> {
    let records = api.records.read();
    let found = records.environments.get(&id);
    let found = found.ok_or_else(|| ApiError::not_found("environment", &id.to_string()))?;
    Ok(views::environment(&records, found))
}
