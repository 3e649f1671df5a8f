//! `/projects/{name}/secrets`: the secrets that the services of a project's previews get.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use stagely_state::ids::ProjectId;
use tokio::task::spawn_blocking;
use tracing::info;

use super::auth::Writer;
use super::{ApiError, ApiJson, ApiPath, ApiState};
use crate::api::{ErrorBody, SecretView, SetSecret};
use crate::core::intake::fields::{check_secret_name, check_secret_value};
use crate::core::secrets::SecretStore;
use crate::core::secrets::project_secrets::SECRETS_MAX;
use crate::core::store::{SecretEntry, SetOutcome, StoreError};

/// Lists the names of a project's secrets. Nobody can read their values.
#[utoipa::path(get, path = "/projects/{name}/secrets", params(("name" = String, Path)), responses(
    (status = 200, body = Vec<SecretView>),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn list(
    State(api): State<ApiState>,
    _: Writer,
    ApiPath(project): ApiPath<String>,
) -> Result<Json<Vec<SecretView>>, ApiError> {
    let project = project_id(&api, &project)?;
    let secrets = with_secrets(&api, move |secrets| secrets.project_secrets(project)).await?;
    Ok(Json(secrets.into_iter().map(view).collect()))
}

/// Sets a secret of a project. Previews get the value with their next deployment.
#[utoipa::path(put, path = "/projects/{name}/secrets/{secret}", request_body = SetSecret,
    params(("name" = String, Path), ("secret" = String, Path)), responses(
    (status = 201, body = SecretView),
    (status = 200, body = SecretView, description = "The secret had another value before."),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "The project has 100 other secrets."),
))]
pub(super) async fn set(
    State(api): State<ApiState>,
    Writer { name: by, .. }: Writer,
    ApiPath((project, name)): ApiPath<(String, String)>,
    ApiJson(SetSecret { value }): ApiJson<SetSecret>,
) -> Result<(StatusCode, Json<SecretView>), ApiError> {
    check_secret_name(&name)?;
    check_secret_value(&value)?;
    let id = project_id(&api, &project)?;
    let set = move |secrets: &SecretStore| secrets.set_project_secret(id, &name, &value);
    let (entry, outcome) = with_secrets(&api, set).await?;
    let status = match outcome {
        SetOutcome::Added => StatusCode::CREATED,
        SetOutcome::Replaced => StatusCode::OK,
        SetOutcome::TooMany => {
            let message = format!("{project} has {SECRETS_MAX} secrets; remove one first");
            return Err(ApiError::conflict(message));
        }
    };
    info!(project, secret = entry.name, by, "a secret is set");
    Ok((status, Json(view(entry))))
}

/// Removes a secret of a project. Deployments that need it fail from then on.
#[utoipa::path(delete, path = "/projects/{name}/secrets/{secret}",
    params(("name" = String, Path), ("secret" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn remove(
    State(api): State<ApiState>,
    Writer { name: by, .. }: Writer,
    ApiPath((project, name)): ApiPath<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let id = project_id(&api, &project)?;
    let secret = name.clone();
    let remove = move |secrets: &SecretStore| secrets.remove_project_secret(id, &secret);
    if !with_secrets(&api, remove).await? {
        return Err(ApiError::not_found("secret", &name));
    }
    info!(project, secret = name, by, "a secret is removed");
    Ok(StatusCode::NO_CONTENT)
}

fn view(SecretEntry { name, set_at }: SecretEntry) -> SecretView {
    SecretView { name, set_at }
}

fn project_id(api: &ApiState, name: &str) -> Result<ProjectId, ApiError> {
    let records = api.records.read();
    let project = records.projects.values().find(|project| project.name == name);
    Ok(project.ok_or_else(|| ApiError::not_found("project", name))?.id)
}

async fn with_secrets<T: Send + 'static>(
    api: &ApiState,
    work: impl FnOnce(&SecretStore) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let secrets = api.secrets.clone();
    let done = spawn_blocking(move || work(&secrets)).await;
    Ok(done.map_err(|error| ApiError::internal(&error))??)
}
