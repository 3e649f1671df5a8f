//! The registry of a run without a server: checks that the configured one accepts connections, or else starts one in a
//! container of this machine. The container keeps running, so that its images can be pulled and the next run finds its
//! caches.

use std::collections::HashMap;
use std::time::Duration;

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
use stagely_agent::proxy;
use tokio::time::timeout;
use url::Url;

use crate::cli::output::note;
use crate::client::retry::retry_until_started;
use crate::config::RegistryConfig;

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

/// The time limit of a connection to the configured registry.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Checks that the configured registry accepts connections, so that a wrong address is an error before anything is built.
/// Another machine's engine may reach a registry that this machine does not.
///
/// # Errors
/// The registry has no address, or refuses the connection.
pub(super) async fn check(config: &RegistryConfig, endpoint: &Endpoint) -> anyhow::Result<()> {
    if !endpoint.is_on_this_machine() {
        return Ok(());
    }
    // The host of Docker Hub's API is not the host in the names of its images.
    let host = if config.host() == "docker.io" { "registry-1.docker.io" } else { config.host() };
    let scheme = if config.insecure { "http" } else { "https" };
    let mut url = Url::parse(&format!("{scheme}://{host}/"))?;
    if proxy::is_loopback(&url) {
        url = Url::parse(&format!("http://{host}/"))?;
    }
    let advice = || {
        format!(
            "the registry {host} cannot be reached: look at the spelling in --registry or STAGELY_REGISTRY, and whether \
             it runs"
        )
    };
    match timeout(CONNECT_LIMIT, proxy::connect(&url)).await {
        Ok(connected) => connected.map(drop).with_context(advice),
        Err(_) => bail!("{} (no answer within {CONNECT_LIMIT:?})", advice()),
    }
}

/// Ensures that a registry runs in a container, and returns its address.
///
/// # Errors
/// Docker does not respond; the image cannot be pulled; the port is in use.
pub(super) async fn ensure(endpoint: &Endpoint) -> anyhow::Result<String> {
    if !endpoint.is_on_this_machine() {
        bail!(
            "no registry is configured, and none can be started: the engine is at {}, whose loopback addresses are not \
             those of this machine; name one with --registry",
            endpoint.host()
        );
    }
    let no_engine = || {
        format!(
            "the Docker engine at {} does not answer; `stagely doctor` says what to do",
            endpoint.description()
        )
    };
    let docker = endpoint.connect().with_context(no_engine)?;
    docker.ping().await.with_context(no_engine)?;
    start(&docker).await.context(
        "no registry is configured, and none can be started on this machine's Docker; name one \
         with --registry",
    )?;
    Ok(ADDRESS.to_owned())
}

async fn start(docker: &Docker) -> anyhow::Result<()> {
    let is_running = match docker.inspect_container(NAME, None::<InspectContainerOptions>).await {
        Ok(found) => found.state.and_then(|state| state.running).unwrap_or(false),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            note(&format!("No registry is configured: starting one in the container {NAME}"));
            pull(docker).await?;
            create(docker).await?;
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
