//! What the engine has of a preview: containers, volumes and networks, found by their labels.

use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum,
    HostConfig, Mount, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptionsBuilder, InspectContainerOptions,
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptions,
    RemoveVolumeOptionsBuilder,
};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use stagely_protocol::{FailureReason, ServiceState, WireId};
use tokio::time::{Instant, sleep};

use crate::docker::container_start_failure;

/// Holds a preview's id, on containers, volumes and networks.
pub(crate) const PREVIEW_LABEL: &str = "stagely.preview";

/// Holds the machine's id. Several machines may share an engine.
pub(crate) const MACHINE_LABEL: &str = "stagely.machine";

/// Holds the generation, on the containers of services that a run built. The others stay as they are over many generations.
pub(crate) const GENERATION_LABEL: &str = "stagely.generation";

const PROJECT_LABEL: &str = "com.docker.compose.project";
const SERVICE_LABEL: &str = "com.docker.compose.service";
const VOLUME_LABEL: &str = "com.docker.compose.volume";

/// `True` on a container of `docker compose run`.
const ONE_OFF_LABEL: &str = "com.docker.compose.oneoff";

/// On a container through which the agent reads or writes volumes or files. It never runs.
const HELPER_LABEL: &str = "stagely.helper";

/// The engine's time of the start of a container that was never started.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How many of a container's last lines explain its end.
const LAST_LINES: &str = "50";

/// How often the lines of a container are looked for while there are none, and the time between.
const LATE_LINES_TRIES: u32 = 5;
const LATE_LINES_PAUSE: Duration = Duration::from_millis(200);

/// How long something may be in use that is to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(15);

const REMOVE_INTERVAL: Duration = Duration::from_millis(100);

/// The name of the compose project of a preview. While a preview moves, two machines that share an engine may both have it.
/// Ids have only letters that compose allows, in lower case.
pub(crate) fn project_name(machine: &WireId, preview: &WireId) -> String {
    format!("stagely-{preview}-{machine}").to_ascii_lowercase()
}

/// A container of a service.
#[derive(Clone, Debug)]
pub(crate) struct ServiceContainer {
    pub(crate) id: String,
    pub(crate) service: String,
    /// The id of its image.
    pub(crate) image: String,
    pub(crate) status: ContainerStateStatusEnum,
    pub(crate) exit_code: i64,
    pub(crate) was_out_of_memory: bool,
    /// The engine's own words about a container that it could not start.
    pub(crate) error: String,
    pub(crate) health: Option<HealthStatusEnum>,
    /// How often the engine has restarted it.
    pub(crate) restarts: i64,
    policy: RestartPolicyNameEnum,
    pub(crate) started_at: String,
    /// The addresses on this machine, by port of the container.
    pub(crate) addresses: BTreeMap<u16, SocketAddr>,
}

impl ServiceContainer {
    fn from_engine(inspected: ContainerInspectResponse) -> Option<Self> {
        let labels = inspected.config.and_then(|config| config.labels).unwrap_or_default();
        let state = inspected.state.unwrap_or_default();
        let host = inspected.host_config.unwrap_or_default();
        let policy = host.restart_policy.and_then(|policy| policy.name);
        let ports = inspected.network_settings.and_then(|network| network.ports);
        let health = state.health.and_then(|health| health.status);
        Some(Self {
            id: inspected.id?,
            service: labels.get(SERVICE_LABEL)?.clone(),
            image: inspected.image.unwrap_or_default(),
            status: state.status.unwrap_or(ContainerStateStatusEnum::EMPTY),
            exit_code: state.exit_code.unwrap_or(0),
            was_out_of_memory: state.oom_killed.unwrap_or(false),
            error: state.error.unwrap_or_default(),
            health: health.filter(|health| {
                !matches!(health, HealthStatusEnum::EMPTY | HealthStatusEnum::NONE)
            }),
            restarts: inspected.restart_count.unwrap_or(0),
            policy: policy.unwrap_or(RestartPolicyNameEnum::NO),
            started_at: state.started_at.unwrap_or_default(),
            addresses: addresses(ports.unwrap_or_default()),
        })
    }

    pub(crate) fn is_running(&self) -> bool {
        self.status == ContainerStateStatusEnum::RUNNING
    }

    /// Whether the engine starts it again when it fails.
    pub(crate) fn is_restarted(&self) -> bool {
        !matches!(self.policy, RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO)
    }

    /// Whether it ended with exit code 0, and will not be started again.
    pub(crate) fn is_done(&self) -> bool {
        let is_restarted_always = matches!(
            self.policy,
            RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED
        );
        self.status == ContainerStateStatusEnum::EXITED
            && self.exit_code == 0
            && !is_restarted_always
    }

    /// Whether it runs, and its health check, if there is one, succeeds.
    pub(crate) fn is_healthy(&self) -> bool {
        self.is_running() && self.health.is_none_or(|health| health == HealthStatusEnum::HEALTHY)
    }

    /// Whether it was started, and has ended.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status, ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD)
            && self.started_at != NEVER
    }

    /// Its end, in words that follow a name.
    pub(crate) fn end(&self) -> String {
        format!("ended {}", self.exit())
    }

    fn exit(&self) -> String {
        let memory = if self.was_out_of_memory { " (it ran out of memory)" } else { "" };
        format!("with exit code {}{memory}", self.exit_code)
    }

    /// Why the engine could not start it, if that is the machine's fault.
    pub(crate) fn start_failure(&self) -> Option<FailureReason> {
        container_start_failure(&self.error)
    }

    /// What is wrong with it, in words that follow the service's name. `None` also while it starts.
    pub(crate) fn problem(&self) -> Option<String> {
        match self.status {
            ContainerStateStatusEnum::RUNNING
                if self.health == Some(HealthStatusEnum::UNHEALTHY) =>
            {
                Some("is unhealthy".to_owned())
            }
            ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD
                if !self.is_done() =>
            {
                Some(self.end())
            }
            ContainerStateStatusEnum::RESTARTING => {
                Some(format!("ends again and again, {}", self.exit()))
            }
            ContainerStateStatusEnum::CREATED if !self.error.is_empty() => {
                Some(format!("cannot be started: {}", self.error))
            }
            ContainerStateStatusEnum::PAUSED => Some("is paused".to_owned()),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> ServiceState {
        let has_ended = matches!(
            self.status,
            ContainerStateStatusEnum::EXITED
                | ContainerStateStatusEnum::DEAD
                | ContainerStateStatusEnum::RESTARTING
        );
        ServiceState {
            name: self.service.clone(),
            state: self.status.to_string(),
            health: self.health.map(|health| health.to_string()),
            exit_code: has_ended.then_some(self.exit_code),
        }
    }
}

/// The published ports of loopback.
fn addresses(
    ports: HashMap<String, Option<Vec<bollard::models::PortBinding>>>,
) -> BTreeMap<u16, SocketAddr> {
    let mut addresses = BTreeMap::new();
    for (port, bindings) in ports {
        let Some(port) = port.strip_suffix("/tcp").and_then(|port| port.parse().ok()) else {
            continue;
        };
        let bindings = bindings.unwrap_or_default();
        let host_port = bindings.iter().find_map(|binding| {
            let is_loopback = binding.host_ip.as_deref() == Some("127.0.0.1");
            binding.host_port.as_ref().filter(|_| is_loopback)?.parse().ok()
        });
        if let Some(host_port) = host_port {
            addresses.insert(port, SocketAddr::from((Ipv4Addr::LOCALHOST, host_port)));
        }
    }
    addresses
}

fn filter(label: &str, value: &str) -> HashMap<String, Vec<String>> {
    filter_all(&[(label, value)])
}

/// What has all of these labels.
fn filter_all(labels: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
    let labels = labels.iter().map(|(label, value)| format!("{label}={value}"));
    [("label".to_owned(), labels.collect())].into()
}

/// The containers of the services of a compose project, sorted by service.
pub(crate) async fn containers(
    engine: &Docker,
    project: &str,
) -> Result<Vec<ServiceContainer>, EngineError> {
    let mut containers = Vec::new();
    for id in project_containers(engine, project, false).await? {
        containers.extend(inspect(engine, &id).await?);
    }
    containers.sort_by(|a, b| (&a.service, &a.id).cmp(&(&b.service, &b.id)));
    Ok(containers)
}

/// The container of `docker compose run` of a compose project. There is at most one at a time.
pub(crate) async fn one_off_container(
    engine: &Docker,
    project: &str,
) -> Result<Option<ServiceContainer>, EngineError> {
    match project_containers(engine, project, true).await?.first() {
        Some(id) => inspect(engine, id).await,
        None => Ok(None),
    }
}

/// The ids of a compose project's containers of services, or of those of `docker compose run`.
async fn project_containers(
    engine: &Docker,
    project: &str,
    is_one_off: bool,
) -> Result<Vec<String>, EngineError> {
    let options = ListContainersOptionsBuilder::new().all(true);
    let options = options.filters(&filter(PROJECT_LABEL, project)).build();
    let listed = engine.list_containers(Some(options)).await?.into_iter();
    let of_kind = listed.filter(|listed| {
        let label = listed.labels.as_ref().and_then(|labels| labels.get(ONE_OFF_LABEL));
        label.is_some_and(|value| value == "True") == is_one_off
    });
    Ok(of_kind.filter_map(|listed| listed.id).collect())
}

/// The container `id` of a service; `None` if it was removed meanwhile.
async fn inspect(engine: &Docker, id: &str) -> Result<Option<ServiceContainer>, EngineError> {
    match engine.inspect_container(id, None::<InspectContainerOptions>).await {
        Ok(inspected) => Ok(ServiceContainer::from_engine(inspected)),
        Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The previews that have containers of this machine, each with the highest generation of its containers.
pub(crate) async fn previews(
    engine: &Docker,
    machine: &WireId,
) -> Result<BTreeMap<WireId, u64>, EngineError> {
    let options = ListContainersOptionsBuilder::new().all(true);
    let options = options.filters(&filter(MACHINE_LABEL, machine.as_str())).build();
    let mut previews = BTreeMap::new();
    for listed in engine.list_containers(Some(options)).await? {
        let labels = listed.labels.unwrap_or_default();
        let Some(Ok(preview)) = labels.get(PREVIEW_LABEL).map(|id| id.parse()) else { continue };
        let generation = labels.get(GENERATION_LABEL).and_then(|text| text.parse().ok());
        let highest = previews.entry(preview).or_insert(0);
        *highest = generation.unwrap_or(0).max(*highest);
    }
    Ok(previews)
}

/// Yields something when a container of this machine's previews starts, ends, or changes its health. A started container
/// may have other ports.
pub(crate) fn changes(engine: Docker, machine: &WireId) -> BoxStream<'static, ()> {
    let mut filters = filter(MACHINE_LABEL, machine.as_str());
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    let events = ["start", "die", "health_status"].map(str::to_owned);
    filters.insert("event".to_owned(), events.into());
    let options = EventsOptionsBuilder::new().filters(&filters).build();
    let events = stream::once(async move { engine.events(Some(options)).boxed() }).flatten();
    events.take_while(|event| ready(event.is_ok())).map(drop).boxed()
}

/// The named volumes of a compose project: the name in the compose file, and the engine's.
pub(crate) async fn volumes(
    engine: &Docker,
    project: &str,
) -> Result<BTreeMap<String, String>, EngineError> {
    let options = ListVolumesOptionsBuilder::new().filters(&filter(PROJECT_LABEL, project)).build();
    let listed = engine.list_volumes(Some(options)).await?.volumes.unwrap_or_default();
    let named = listed.into_iter().filter_map(|volume| {
        let key = volume.labels.get(VOLUME_LABEL)?.clone();
        Some((key, volume.name))
    });
    Ok(named.collect())
}

/// The ids of the networks of a preview of `machine`.
pub(crate) async fn networks(
    engine: &Docker,
    machine: &WireId,
    preview: &WireId,
) -> Result<Vec<String>, EngineError> {
    let labels = [(PREVIEW_LABEL, preview.as_str()), (MACHINE_LABEL, machine.as_str())];
    let options = ListNetworksOptionsBuilder::new().filters(&filter_all(&labels)).build();
    let listed = engine.list_networks(Some(options)).await?;
    Ok(listed.into_iter().filter_map(|network| network.id).collect())
}

/// The engine's name of a volume of a compose project.
pub(crate) fn volume_name(project: &str, volume: &str) -> String {
    format!("{project}_{volume}")
}

/// The labels that make a volume one of a compose project, besides [`PREVIEW_LABEL`] and [`MACHINE_LABEL`].
pub(crate) fn volume_labels(project: &str, volume: &str) -> HashMap<String, String> {
    [(PROJECT_LABEL.to_owned(), project.to_owned()), (VOLUME_LABEL.to_owned(), volume.to_owned())]
        .into()
}

/// Removes the containers of `docker compose run` of a project: they stay after their commands.
pub(crate) async fn remove_one_off_containers(
    engine: &Docker,
    project: &str,
) -> Result<(), EngineError> {
    for id in project_containers(engine, project, true).await? {
        remove_container(engine, Some(id)).await?;
    }
    Ok(())
}

/// Removes the containers with [`HELPER_LABEL`] of a preview, which an agent that was killed has left.
pub(crate) async fn remove_helpers(
    engine: &Docker,
    machine: &WireId,
    preview: &WireId,
) -> Result<(), EngineError> {
    let labels = [(PREVIEW_LABEL, preview.as_str()), (MACHINE_LABEL, machine.as_str())];
    let mut filter = filter_all(&labels);
    filter.entry("label".to_owned()).or_default().push(HELPER_LABEL.to_owned());
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filter).build();
    for listed in engine.list_containers(Some(options)).await? {
        remove_container(engine, listed.id).await?;
    }
    Ok(())
}

/// Creates a container of `image` that mounts `mount` and is never started.
pub(super) async fn create_helper(
    engine: &Docker,
    machine: &WireId,
    preview: &WireId,
    image: String,
    name: &str,
    mount: Mount,
) -> Result<String, EngineError> {
    let labels = [
        (PREVIEW_LABEL.to_owned(), preview.to_string()),
        (MACHINE_LABEL.to_owned(), machine.to_string()),
        (HELPER_LABEL.to_owned(), name.to_owned()),
    ];
    let body = ContainerCreateBody {
        image: Some(image),
        // An image without a command needs one.
        cmd: Some(vec!["-".to_owned()]),
        labels: Some(labels.into()),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    Ok(engine.create_container(None::<CreateContainerOptions>, body).await?.id)
}

/// Removes a container of [`create_helper`], with the volumes that its image declares.
pub(super) async fn remove_helper(engine: &Docker, id: &str) -> Result<(), EngineError> {
    remove_container(engine, Some(id.to_owned())).await
}

pub(crate) async fn remove_container(
    engine: &Docker,
    id: Option<String>,
) -> Result<(), EngineError> {
    let Some(id) = id else { return Ok(()) };
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    gone(engine.remove_container(&id, Some(options)).await)
}

/// Removes all containers, networks and volumes that have all of `labels`, until nothing is found: the engine may still do
/// what a killed command has asked for. Tries again while something is in use by a container that another command, such as
/// a stopped `docker compose run`, is removing.
async fn remove_labelled(engine: &Docker, labels: &[(&str, &str)]) -> Result<(), EngineError> {
    let started = Instant::now();
    loop {
        let is_late = started.elapsed() >= REMOVE_LIMIT;
        match remove_labelled_once(engine, labels).await {
            Ok(true) if !is_late => {}
            Err(EngineError::DockerResponseServerError { status_code: 403 | 409, message })
                if !is_late =>
            {
                tracing::debug!(?labels, message, "something is in use");
                sleep(REMOVE_INTERVAL).await;
            }
            result => return result.map(drop),
        }
    }
}

/// Returns whether there was something to remove.
async fn remove_labelled_once(
    engine: &Docker,
    labels: &[(&str, &str)],
) -> Result<bool, EngineError> {
    let filter = filter_all(labels);
    let mut has_found = false;
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filter).build();
    let containers = engine.list_containers(Some(options)).await?;
    has_found |= !containers.is_empty();
    let removals = containers.into_iter().map(|listed| remove_container(engine, listed.id));
    for removed in futures_util::future::join_all(removals).await {
        removed?;
    }
    let options = ListNetworksOptionsBuilder::new().filters(&filter).build();
    for network in engine.list_networks(Some(options)).await? {
        has_found = true;
        if let Some(id) = network.id {
            gone(engine.remove_network(&id).await)?;
        }
    }
    let options = ListVolumesOptionsBuilder::new().filters(&filter).build();
    for volume in engine.list_volumes(Some(options)).await?.volumes.unwrap_or_default() {
        has_found = true;
        remove_volume(engine, &volume.name).await?;
    }
    Ok(has_found)
}

pub(crate) async fn remove_volume(engine: &Docker, name: &str) -> Result<(), EngineError> {
    let options = RemoveVolumeOptionsBuilder::new().force(true).build();
    gone(engine.remove_volume(name, Some(options)).await)
}

/// Removes everything of a preview of `machine` from the engine.
pub(crate) async fn remove_preview(
    engine: &Docker,
    machine: &WireId,
    preview: &WireId,
) -> Result<(), EngineError> {
    let labels = [(PREVIEW_LABEL, preview.as_str()), (MACHINE_LABEL, machine.as_str())];
    remove_labelled(engine, &labels).await?;
    remove_labelled(engine, &[(PROJECT_LABEL, &project_name(machine, preview))]).await
}

/// Removes everything of the previews of `machine` from the engine.
pub(crate) async fn remove_all_previews(
    engine: &Docker,
    machine: &WireId,
) -> Result<(), EngineError> {
    remove_labelled(engine, &[(MACHINE_LABEL, machine.as_str())]).await
}

/// Removes an image, unless a container needs it.
pub(crate) async fn remove_image(engine: &Docker, image: &str) {
    match engine.remove_image(image, None::<RemoveImageOptions>, None).await {
        Ok(_) | Err(EngineError::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
        Err(error) => tracing::warn!(image, %error, "cannot remove an image"),
    }
}

/// Something that is gone already has been removed.
fn gone(removed: Result<(), EngineError>) -> Result<(), EngineError> {
    match removed {
        Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
        removed => removed,
    }
}

/// The last lines of a container that has ended, not masked and of any length.
pub(crate) async fn last_lines(engine: &Docker, container: &str) -> Vec<String> {
    // An engine under load says that a container has ended before it has stored the lines.
    for _ in 0..LATE_LINES_TRIES {
        let lines = stored_lines(engine, container).await;
        if !lines.is_empty() {
            return lines;
        }
        sleep(LATE_LINES_PAUSE).await;
    }
    Vec::new()
}

async fn stored_lines(engine: &Docker, container: &str) -> Vec<String> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(LAST_LINES).build();
    let mut text = Vec::new();
    let mut logs = Box::pin(engine.logs(container, Some(options)));
    while let Some(Ok(output)) = logs.next().await {
        match output {
            LogOutput::StdOut { message }
            | LogOutput::StdErr { message }
            | LogOutput::Console { message } => text.extend_from_slice(&message),
            LogOutput::StdIn { .. } => {}
        }
    }
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}
