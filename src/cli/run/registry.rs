//! Starts a registry in a container of this machine, for runs without a configured registry. The container
//! keeps running, so that its images can be pulled and the next run finds its caches.

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, HostConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    StartContainerOptions,
};
use futures_util::TryStreamExt as _;
use stagely_agent::docker::Endpoint;

use crate::cli::output::note;
use crate::client::retry::retry_until_started;

/// The name of the container and of its volume.
const NAME: &str = "stagely-registry";

/// The CNCF's registry image.
const IMAGE: &str = "registry";
const TAG: &str = "2";

/// The registry's address: on loopback, where Docker needs no TLS. Not the usual port 5000, which is in use
/// on many machines.
const ADDRESS: &str = "127.0.0.1:7781";
const HOST: &str = "127.0.0.1";
const PORT: &str = "7781";

/// The port inside the container.
const CONTAINER_PORT: &str = "5000/tcp";

/// Ensures that the registry runs, and returns its address.
///
/// # Errors
/// Docker does not respond; the image cannot be pulled; the port is in use.
pub(super) async fn ensure(endpoint: &Endpoint) -> anyhow::Result<String> {
    start(endpoint).await.context(
        "no registry is configured, and none can be started on this machine's Docker; name one \
         with --registry",
    )?;
    Ok(ADDRESS.to_owned())
}

async fn start(endpoint: &Endpoint) -> anyhow::Result<()> {
    if !endpoint.is_on_this_machine() {
        bail!(
            "the engine is at {}, whose loopback addresses are not those of this machine",
            endpoint.host()
        );
    }
    let docker = endpoint.connect()?;
    let is_running = match docker.inspect_container(NAME, None::<InspectContainerOptions>).await {
        Ok(found) => found.state.and_then(|state| state.running).unwrap_or(false),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            note(&format!("No registry is configured: starting one in the container {NAME}"));
            pull(&docker).await?;
            create(&docker).await?;
            false
        }
        Err(error) => return Err(error).context("Docker does not respond"),
    };
    if !is_running {
        docker.start_container(NAME, None::<StartContainerOptions>).await?;
    }
    let client = reqwest::Client::builder().no_proxy().build()?;
    let ping = || client.get(format!("http://{ADDRESS}/v2/")).send();
    retry_until_started(ping).await.with_context(|| format!("{NAME} does not respond"))?;
    Ok(())
}

async fn pull(docker: &Docker) -> anyhow::Result<()> {
    let image = CreateImageOptionsBuilder::new().from_image(IMAGE).tag(TAG).build();
    let pulled = docker.create_image(Some(image), None, None);
    pulled.try_for_each(|_| async { Ok(()) }).await.context("cannot pull the registry's image")
}

async fn create(docker: &Docker) -> anyhow::Result<()> {
    let binding = PortBinding { host_ip: Some(HOST.into()), host_port: Some(PORT.into()) };
    let host_config = HostConfig {
        port_bindings: Some(HashMap::from([(CONTAINER_PORT.to_owned(), Some(vec![binding]))])),
        binds: Some(vec![format!("{NAME}:/var/lib/registry")]),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(format!("{IMAGE}:{TAG}")),
        env: Some(vec!["REGISTRY_STORAGE_DELETE_ENABLED=true".to_owned()]),
        exposed_ports: Some(vec![CONTAINER_PORT.to_owned()]),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    };
    let name = CreateContainerOptionsBuilder::new().name(NAME).build();
    match docker.create_container(Some(name), body).await {
        // Another command of this moment has created it.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
        created => created.map(drop).context("cannot create the container"),
    }
}
