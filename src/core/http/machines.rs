//! `/machines` and `/queue`: machines, waiting jobs, and the registration of machines.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use stagely_state::ids::MachineId;
use stagely_state::{Event, MachineKind};
use tokio::task::spawn_blocking;

use super::auth::{Admin, Reader};
use super::{ApiError, ApiJson, ApiPath, ApiQuery, ApiState, views};
use crate::api::{AddMachine, AddedMachine, ErrorBody, ListMachines, MachineView, QueueView};
use crate::core::clock::new_id;
use crate::core::clock::now;
use crate::core::records::Records;

/// Most ended machines in a list.
const ENDED_MACHINES_MAX: usize = 1_000;

/// The longest name of a registered machine, in characters.
const NAME_CHARS_MAX: usize = 100;

/// Lists the live machines, or also the 1,000 newest ones that have ended, the oldest first.
#[utoipa::path(get, path = "/machines", params(ListMachines),
    responses((status = 200, body = Vec<MachineView>)))]
pub(super) async fn list(
    State(api): State<ApiState>,
    _: Reader,
    ApiQuery(which): ApiQuery<ListMachines>,
) -> Result<Json<Vec<MachineView>>, ApiError> {
    let now = now();
    let view = |machine: &_| views::machine(machine, now);
    if which.all {
        let machines = api.history.machines(ENDED_MACHINES_MAX).await?;
        return Ok(Json(machines.iter().map(view).collect()));
    }
    Ok(Json(api.records.read().live_machines().map(view).collect()))
}

/// Shows the waiting jobs, in the order in which they will be assigned.
#[utoipa::path(get, path = "/queue", responses((status = 200, body = QueueView)))]
pub(super) async fn queue(State(api): State<ApiState>, _: Reader) -> Json<QueueView> {
    let records = api.records.read();
    Json(views::queue(&records, api.config.builders.max_concurrent.get()))
}

/// Registers an existing machine, and creates its `agent.json`.
#[utoipa::path(post, path = "/machines", request_body = AddMachine, responses(
    (status = 201, body = AddedMachine), (status = 400, body = ErrorBody),
))]
pub(super) async fn add(
    State(api): State<ApiState>,
    _: Admin,
    ApiJson(add): ApiJson<AddMachine>,
) -> Result<(StatusCode, Json<AddedMachine>), ApiError> {
    let machine = new_id::<MachineId>();
    let name = add.name.unwrap_or_else(|| machine.to_string());
    if name.is_empty()
        || name.chars().count() > NAME_CHARS_MAX
        || name.chars().any(char::is_control)
    {
        return Err(ApiError::invalid("name: must be 1 to 100 printable characters"));
    }
    let secrets = api.secrets.clone();
    let token = spawn_blocking(move || secrets.add_machine_token(machine))
        .await
        .expect("storing a token does not panic")
        .map_err(|error| ApiError::internal(&error))?;
    api.events
        .store(Event::MachineRegistered { machine, name, arch: add.arch, fleet: add.fleet })
        .await?;
    let agent_json = serde_json::to_value(api.config.agent_config(machine, token))
        .map_err(|error| ApiError::internal(&error))?;
    Ok((StatusCode::CREATED, Json(AddedMachine { id: machine, agent_json })))
}

/// Removes a registered machine. Its job moves to another machine.
#[utoipa::path(delete, path = "/machines/{id}", params(("id" = String, Path)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It was launched, not registered, or it serves a preview."),
))]
pub(super) async fn remove(
    State(api): State<ApiState>,
    _: Admin,
    ApiPath(id): ApiPath<MachineId>,
) -> Result<StatusCode, ApiError> {
    let kind =
        api.records.read().live_machines().find(|found| found.id == id).map(|found| found.kind);
    match kind {
        None => Err(ApiError::not_found("machine", &id.to_string())),
        Some(MachineKind::Launched) => Err(ApiError::conflict(format!(
            "{id} was launched for a job and ends with it; cancel its run instead"
        ))),
        Some(MachineKind::Registered) => {
            api.events.store(Event::MachineUnregistered { machine: id }).await?;
            // It stays if it serves a preview.
            match serving(&api.records.read(), id) {
                Some(sentence) => Err(ApiError::conflict(sentence)),
                None => Ok(StatusCode::NO_CONTENT),
            }
        }
    }
}

/// Why a registered machine was not removed: it has the data of a preview.
fn serving(records: &Records, id: MachineId) -> Option<String> {
    let machine = records.live_machines().find(|machine| machine.id == id)?;
    let preview = records.previews.get(&machine.serves?)?;
    let environment = records.environments.get(&preview.environment);
    let project = records.projects.get(&preview.project);
    let environment = environment.map_or("", |environment| &environment.name);
    let project = project.map_or("", |project| &project.name);
    let preview = preview.id;
    Some(format!(
        "{id} serves the preview {preview} ({environment} of {project}), whose data is there: `stagely previews sleep \
         {preview}` archives the data, `stagely previews end {preview}` deletes it; then remove the machine"
    ))
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::{EnvironmentId, PreviewId, ProjectId};
    use stagely_state::{Environment, Machine, Preview, Project, Timestamp};

    use super::*;
    use crate::core::fixtures;

    #[test]
    fn a_machine_that_serves_a_preview_is_kept_with_a_sentence_that_says_what_helps() {
        let (project, environment) = (ProjectId::from_bits(1), EnvironmentId::from_bits(2));
        let preview = Preview::new(PreviewId::from_bits(3), project, environment, Timestamp(0));
        let machine = Machine { serves: Some(preview.id), ..fixtures::machine(4) };
        let mut records = Records::default();
        let project = Project::new(project, "app".to_owned(), String::new());
        let environment = Environment::new(environment, project.id, "pr-7".to_owned());
        records.live.insert(machine.id, None);
        records.projects.insert(project.id, project);
        records.environments.insert(environment.id, environment);
        let (id, preview_id) = (machine.id, preview.id);
        records.machines.insert(id, machine);
        assert_eq!(serving(&records, id), None, "its preview is not known");
        records.previews.insert(preview_id, preview);
        let sentence = serving(&records, id).unwrap();
        assert!(sentence.contains("pr-7 of app"), "{sentence}");
        assert!(sentence.contains(&format!("`stagely previews sleep {preview_id}`")), "{sentence}");
    }
}
