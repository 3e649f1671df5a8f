//! `/projects`: the repositories whose pull requests are built.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::SecretString;
use stagely_state::Event;
use stagely_state::ids::ProjectId;
use tokio::task::spawn_blocking;

use super::auth::{Admin, Reader};
use super::{ApiError, ApiJson, ApiPath, ApiState, views};
use crate::api::{AddProject, ErrorBody, ProjectView};
use crate::core::intake::projects::LinkProject;

/// Lists projects, the oldest first, with those that were created by runs.
#[utoipa::path(get, path = "/projects", responses((status = 200, body = Vec<ProjectView>)))]
pub(super) async fn list(State(api): State<ApiState>, _: Reader) -> Json<Vec<ProjectView>> {
    let records = api.records.read();
    Json(records.projects.values().map(|project| views::project(&api.secrets, project)).collect())
}

/// Links a repository, whose pull requests are built from now on, or changes a linked project.
#[utoipa::path(post, path = "/projects", request_body = AddProject, responses(
    (status = 201, body = ProjectView),
    (status = 200, body = ProjectView, description = "The project was linked before and is changed."),
    (status = 400, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Another project has the name, or `stagely.toml` has the project."),
))]
pub(super) async fn add(
    State(api): State<ApiState>,
    _: Admin,
    ApiJson(add): ApiJson<AddProject>,
) -> Result<(StatusCode, Json<ProjectView>), ApiError> {
    let wanted = LinkProject {
        clone_url: api.config.github.clone_address(&add.github),
        repository: add.github,
        name: add.name,
        forks: add.forks,
        max_concurrent: add.max_concurrent,
        is_configured: false,
    };
    let (project, is_new) = api.intake.link(wanted).await?;
    if let Some(token) = add.token {
        set_token(&api, project.id, Some(token)).await?;
    }
    api.github.reconciled.trigger();
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(views::project(&api.secrets, &project))))
}

/// Unlinks a project's repository and closes the environments of its pull requests. Its secrets are deleted. Images and
/// the name stay.
#[utoipa::path(delete, path = "/projects/{name}", params(("name" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "`stagely.toml` has it."),
))]
pub(super) async fn remove(
    State(api): State<ApiState>,
    _: Admin,
    ApiPath(name): ApiPath<String>,
) -> Result<StatusCode, ApiError> {
    let (project, is_configured) = {
        let records = api.records.read();
        let found = records.projects.values().find(|project| project.name == name);
        let link = found.and_then(|project| Some((project.id, project.github.as_ref()?)));
        let (id, link) = link.ok_or_else(|| ApiError::not_found("project", &name))?;
        (id, link.is_configured)
    };
    if is_configured {
        let message = format!("stagely.toml has the project {name}; remove it there");
        return Err(ApiError::conflict(message));
    }
    // They are deleted before the link, so that a crash in between leaves nothing for a later one.
    set_token(&api, project, None).await?;
    remove_secrets(&api, project).await?;
    api.events.store(Event::ProjectRemoved { project }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_secrets(api: &ApiState, project: ProjectId) -> Result<(), ApiError> {
    let secrets = api.secrets.clone();
    spawn_blocking(move || secrets.remove_project_secrets(project))
        .await
        .map_err(|error| ApiError::internal(&error))?
        .map_err(|error| ApiError::internal(&error))
}

async fn set_token(
    api: &ApiState,
    project: ProjectId,
    token: Option<SecretString>,
) -> Result<(), ApiError> {
    let secrets = api.secrets.clone();
    spawn_blocking(move || secrets.set_project_token(project, token.as_ref()))
        .await
        .map_err(|error| ApiError::internal(&error))?
        .map_err(|error| ApiError::internal(&error))
}
