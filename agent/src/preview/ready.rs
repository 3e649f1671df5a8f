//! Waits until the services of a deployment run and its endpoints answer, or until one of them has failed.
//!
//! `docker compose up --wait` is of no use: it fails when a one-shot service ends with exit code 0.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as EngineError;
use reqwest::Client;
use reqwest::header::HOST;
use reqwest::redirect::Policy;
use stagely_protocol::{DeployProblem, Endpoint, EndpointAddress, ErrorChain, FailureReason};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::containers::{ServiceContainer, containers};
use crate::job_log::JobLog;

/// The time between two looks is this part of the time that has passed, within the limits below.
const POLL_SHARE: u32 = 20;

const POLL_INTERVAL_MIN: Duration = Duration::from_millis(20);
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// The longest time without a line about what is not ready.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// An answer to a health check may take this long.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long services may take that have no endpoint.
const SERVICE_LIMIT: Duration = Duration::from_mins(2);

/// A service without a health check must run for this long, unless it has an endpoint: many a worker ends at once.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// A container that the engine has restarted so often has failed.
const RESTARTS_MAX: i64 = 3;

/// Why a deployment is not ready.
#[derive(Debug, Error)]
pub(crate) enum NotReady {
    #[error("the service `{service}` {problem}")]
    Service {
        service: String,
        problem: String,
        /// If the machine is at fault.
        machine: Option<FailureReason>,
        /// The container whose last lines explain it.
        container: String,
    },
    #[error("the endpoint `{endpoint}` was not healthy within {seconds} s: GET {path} {answer}")]
    Health {
        endpoint: String,
        seconds: u64,
        path: String,
        answer: String,
        /// The container whose last lines may explain it.
        container: Option<String>,
    },
    #[error("the Docker engine does not answer")]
    Engine(#[from] EngineError),
    #[error("stopped")]
    Stopped,
}

impl NotReady {
    pub(crate) fn reason(&self) -> FailureReason {
        match self {
            Self::Service { machine: Some(machine), .. } => machine.clone(),
            Self::Service { .. } => FailureReason::Deploy { problem: DeployProblem::Service },
            Self::Health { .. } => FailureReason::Deploy { problem: DeployProblem::Health },
            Self::Engine(_) => FailureReason::Engine,
            Self::Stopped => FailureReason::Internal,
        }
    }

    pub(crate) fn container(&self) -> Option<&str> {
        match self {
            Self::Service { container, .. } => Some(container),
            Self::Health { container, .. } => container.as_deref(),
            Self::Engine(_) | Self::Stopped => None,
        }
    }
}

/// The container of a service that has failed, if there is one.
pub(crate) fn failed(containers: &[ServiceContainer]) -> Option<NotReady> {
    containers.iter().find_map(|container| {
        let is_looping = container.restarts >= RESTARTS_MAX;
        let problem = container.problem().filter(|_| {
            // A service that the engine restarts may find what it waits for the next time.
            is_looping || !container.is_restarted() || container.is_running()
        });
        let problem = problem.or_else(|| {
            let text = format!("ends again and again, with exit code {}", container.exit_code);
            (is_looping && !container.is_healthy()).then_some(text)
        });
        Some(NotReady::Service {
            service: container.service.clone(),
            problem: problem?,
            machine: container.start_failure(),
            container: container.id.clone(),
        })
    })
}

/// What the services or the endpoints of a deployment wait for, if they are not ready.
pub(super) async fn not_ready(
    containers: &[ServiceContainer],
    endpoints: &[Endpoint],
) -> Option<String> {
    let mut others = containers.iter().filter(|container| !container.is_done());
    if let Some(container) = others.find(|container| !container.is_healthy()) {
        return Some(waiting_for(container));
    }
    let client = match client() {
        Ok(client) => client,
        Err(error) => return Some(error.to_string()),
    };
    for endpoint in endpoints {
        if let HealthResult::Unhealthy(answer) =
            check(&client, endpoint, container_of(containers, endpoint)).await
        {
            let path = &endpoint.health.path;
            return Some(format!(
                "the endpoint `{}` is not healthy: GET {path} {answer}",
                endpoint.name
            ));
        }
    }
    None
}

fn client() -> Result<Client, NotReady> {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(ANSWER_LIMIT)
        .build()
        .map_err(|error| NotReady::Engine(std::io::Error::other(error).into()))
}

/// A container that has the port of the endpoint.
fn container_of<'a>(
    containers: &'a [ServiceContainer],
    endpoint: &Endpoint,
) -> Option<&'a ServiceContainer> {
    containers.iter().find(|container| {
        container.service == endpoint.service && container.addresses.contains_key(&endpoint.port)
    })
}

enum HealthResult {
    Healthy(SocketAddr),
    /// Why, in words that follow the request.
    Unhealthy(String),
}

/// Waits for a deployment.
pub(crate) struct Readiness<'a> {
    pub(crate) engine: &'a Docker,
    pub(crate) project: &'a str,
    pub(crate) endpoints: &'a [Endpoint],
    pub(crate) log: &'a JobLog,
}

impl Readiness<'_> {
    /// Waits until all services are ready. Returns the addresses of the endpoints.
    ///
    /// # Errors
    /// [`NotReady`]
    pub(crate) async fn wait(
        &self,
        stop: &CancellationToken,
    ) -> Result<Vec<EndpointAddress>, NotReady> {
        stop.run_until_cancelled(self.poll()).await.unwrap_or(Err(NotReady::Stopped))
    }

    async fn poll(&self) -> Result<Vec<EndpointAddress>, NotReady> {
        let started = Instant::now();
        let client = client()?;
        let mut last_line = started;
        let mut first_seen: BTreeMap<(String, String), Instant> = BTreeMap::new();
        let mut healthy: BTreeSet<&str> = BTreeSet::new();
        loop {
            let found = containers(self.engine, self.project).await?;
            if let Some(failed) = failed(&found) {
                return Err(failed);
            }
            let mut waiting = Vec::new();
            for container in found.iter().filter(|container| !container.is_done()) {
                let run = (container.id.clone(), container.started_at.clone());
                let since = *first_seen.entry(run).or_insert_with(Instant::now);
                let has_check = container.health.is_some()
                    || self.endpoints.iter().any(|endpoint| endpoint.service == container.service);
                let is_settled = has_check || since.elapsed() >= SETTLE_TIME;
                if !container.is_healthy() || !is_settled {
                    waiting.push(waiting_for(container));
                    let limit = self.service_limit();
                    if started.elapsed() >= limit && !container.is_healthy() {
                        return Err(NotReady::Service {
                            service: container.service.clone(),
                            problem: format!("was not healthy within {} s", limit.as_secs()),
                            machine: None,
                            container: container.id.clone(),
                        });
                    }
                }
            }
            let mut addresses = Vec::new();
            for endpoint in self.endpoints {
                let container = container_of(&found, endpoint);
                let answer = if healthy.contains(&*endpoint.name)
                    && let Some(address) =
                        container.and_then(|found| found.addresses.get(&endpoint.port))
                {
                    HealthResult::Healthy(*address)
                } else {
                    check(&client, endpoint, container).await
                };
                match answer {
                    HealthResult::Healthy(address) => {
                        healthy.insert(&endpoint.name);
                        addresses.push(EndpointAddress {
                            name: endpoint.name.clone(),
                            address: address.to_string(),
                        });
                    }
                    HealthResult::Unhealthy(answer) => {
                        let (path, seconds) =
                            (&endpoint.health.path, endpoint.health.timeout_seconds);
                        if started.elapsed() >= Duration::from_secs(seconds) {
                            return Err(NotReady::Health {
                                endpoint: endpoint.name.clone(),
                                seconds,
                                path: path.clone(),
                                answer,
                                container: container.map(|container| container.id.clone()),
                            });
                        }
                        waiting.push(format!("{}: GET {path} {answer}", endpoint.name));
                    }
                }
            }
            if waiting.is_empty() && !found.is_empty() {
                return Ok(addresses);
            }
            if last_line.elapsed() >= SILENCE_MAX {
                last_line = Instant::now();
                let seconds = started.elapsed().as_secs();
                self.log.info(&format!("Waiting since {seconds}s for {}", waiting.join("; ")));
            }
            let pause = started.elapsed() / POLL_SHARE;
            sleep(pause.clamp(POLL_INTERVAL_MIN, POLL_INTERVAL_MAX)).await;
        }
    }

    /// How long services may take: as long as the most patient endpoint.
    fn service_limit(&self) -> Duration {
        let limits = self.endpoints.iter().map(|endpoint| endpoint.health.timeout_seconds);
        limits.map(Duration::from_secs).chain([SERVICE_LIMIT]).max().unwrap_or(SERVICE_LIMIT)
    }
}

fn waiting_for(container: &ServiceContainer) -> String {
    let state = container.state();
    format!("{}: {}", state.name, state.health.unwrap_or(state.state))
}

/// Sends the request of a health check.
async fn check(
    client: &Client,
    endpoint: &Endpoint,
    container: Option<&ServiceContainer>,
) -> HealthResult {
    let Some(address) = container.and_then(|container| container.addresses.get(&endpoint.port))
    else {
        return HealthResult::Unhealthy("has nowhere to go: its container does not run".to_owned());
    };
    let path = endpoint.health.path.trim_start_matches('/');
    let host = endpoint.host.as_deref().unwrap_or("localhost");
    let request = client.get(format!("http://{address}/{path}")).header(HOST, host);
    match request.send().await {
        Ok(response) => {
            let status = response.status().as_u16();
            let [lowest, highest] = endpoint.health.status;
            if (lowest..=highest).contains(&status) {
                HealthResult::Healthy(*address)
            } else {
                HealthResult::Unhealthy(format!("answered {status}"))
            }
        }
        Err(error) if error.is_timeout() => {
            HealthResult::Unhealthy(format!("had no answer within {} s", ANSWER_LIMIT.as_secs()))
        }
        Err(error) => {
            // The engine accepts connections to a published port before the service does.
            tracing::debug!(error = %ErrorChain(&error), "a health check failed");
            let port = endpoint.port;
            HealthResult::Unhealthy(format!(
                "found nothing that listens on port {port} of the container (on all of its addresses, 0.0.0.0, not on \
                 127.0.0.1 alone)"
            ))
        }
    }
}
