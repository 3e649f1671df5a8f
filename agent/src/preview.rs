//! The previews of this machine: which there are, how they are, what they log, and how they go to sleep and end.
//!
//! A deploy job starts or replaces a preview (`job/deploy`). Afterwards the engine runs the containers without the agent, so
//! they go on while the agent is away. What the next agent needs to know is on disk and in labels.

pub(crate) mod archive;
pub(crate) mod containers;
pub(crate) mod folder;
pub(crate) mod model;
pub(crate) mod ready;

mod sleep;
mod watch;

mod reports;

mod check;
mod files;

mod exec;
mod logs;
mod masked_values;
mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bollard::Docker;
use secrecy::SecretString;
use stagely_protocol::agent_config::PREVIEWS_FOLDER;
use stagely_protocol::{RunningPreview, WireId};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use self::archive::Archives;
pub use self::check::violations;
pub(crate) use self::check::{lost_writes, missing_sources};
use self::containers::{ServiceContainer, project_name};
pub(crate) use self::exec::{CommandControl, RunningCommand};
pub(crate) use self::files::{ComposeFiles, FilesError, find as find_compose_files};
use self::folder::{Deployment, DeploymentFolder, PreviewFolder};
use self::logs::ServiceLogs;
pub(crate) use self::masked_values::MaskedValues;
use self::reports::Report;
use crate::core_client::CoreClient;
use crate::docker::{self, ComposeProject, DockerCommand, Endpoint};
use crate::endpoints::Endpoints;

/// A private Docker configuration without logins, beside the previews.
const DOCKER_FOLDER: &str = "docker";
/// Starting a former deployment again may take this long.
pub(crate) const RETURN_LIMIT: Duration = Duration::from_mins(3);

/// How this machine runs previews.
#[derive(Debug)]
pub struct PreviewSettings {
    pub machine: WireId,
    pub work_dir: PathBuf,
    /// The engine's address; `None`: that of `DOCKER_HOST`, or of the current Docker context.
    pub docker_host: Option<String>,
    /// Time between SIGTERM and SIGKILL for child processes.
    pub grace: Duration,
    /// Core's address and the machine's token: where archives and artifacts are. `None`: there are none.
    pub core: Option<(Url, SecretString)>,
    /// Gets the endpoints of the previews that run.
    pub endpoints: Endpoints,
}

/// The previews of this machine.
#[derive(Debug)]
pub struct Previews {
    machine: WireId,
    folder: PathBuf,
    docker_host: Option<String>,
    grace: Duration,
    core: Option<CoreClient>,
    endpoints: Endpoints,
    logs: Arc<ServiceLogs>,
    /// Notified when a preview has changed.
    changed: Notify,
    /// Notified when a PREVIEW is due.
    wake: Arc<Notify>,
    stop: CancellationToken,
    tasks: TaskTracker,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    locks: BTreeMap<WireId, Arc<tokio::sync::Mutex<()>>>,
    reports: BTreeMap<WireId, Report>,
    falling_asleep: BTreeSet<WireId>,
    /// What a former agent has left, until it is put in order.
    unrecovered: BTreeSet<WireId>,
    /// Former deployments that were started again and are not ready yet, each with the end of the time that this may take.
    returning: BTreeMap<WireId, Instant>,
}

/// The compose project of a deployment whose model is written.
pub(crate) fn compose_project(
    docker: &DockerCommand,
    project: &str,
    folder: &DeploymentFolder,
    deployment: &Deployment,
) -> ComposeProject {
    let compose = ComposeProject::new(docker.clone(), project.to_owned(), folder.model());
    compose.with_variables(deployment.variables.clone(), [])
}

impl Previews {
    /// `wake` is notified when [`due`](Self::due) has messages.
    pub fn new(settings: PreviewSettings, wake: Arc<Notify>) -> Arc<Self> {
        let PreviewSettings { machine, work_dir, docker_host, grace, core, endpoints } = settings;
        let core = core.map(|(url, token)| CoreClient::new(url, machine.clone(), token));
        let previews = Self {
            machine,
            folder: work_dir.join(PREVIEWS_FOLDER),
            docker_host,
            grace,
            core,
            endpoints,
            logs: ServiceLogs::new(Arc::clone(&wake)),
            changed: Notify::new(),
            wake,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            shared: Mutex::default(),
        };
        let unrecovered = previews.known().into_iter().collect();
        previews.shared().unrecovered = unrecovered;
        Arc::new(previews)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Core, if this agent has one that keeps archives and artifacts.
    pub(crate) const fn core(&self) -> Option<&CoreClient> {
        self.core.as_ref()
    }

    pub(crate) fn archives(&self) -> Option<Archives<'_>> {
        self.core().map(|core| Archives { core })
    }

    pub(crate) fn preview_folder(&self, preview: &WireId) -> PreviewFolder {
        PreviewFolder::new(self.folder.join(preview.as_str()))
    }

    /// Waits until nothing else changes the preview.
    pub(crate) async fn lock(&self, preview: &WireId) -> OwnedMutexGuard<()> {
        let lock = self.shared().locks.entry(preview.clone()).or_default().clone();
        lock.lock_owned().await
    }

    /// As [`lock`](Self::lock), unless something changes the preview.
    fn try_lock(&self, preview: &WireId) -> Option<OwnedMutexGuard<()>> {
        let lock = self.shared().locks.entry(preview.clone()).or_default().clone();
        lock.try_lock_owned().ok()
    }

    /// Forgets the locks of previews that are not `known` any more and that nobody has.
    fn forget_locks(&self, known: &[WireId]) {
        let mut shared = self.shared();
        shared.locks.retain(|id, lock| known.contains(id) || Arc::strong_count(lock) > 1);
    }

    /// The previews that have a folder.
    fn known(&self) -> Vec<WireId> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != DOCKER_FOLDER).filter_map(|name| name.parse().ok()).collect()
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        Ok(Endpoint::find(self.docker_host.as_deref())?)
    }

    fn engine(&self) -> anyhow::Result<Docker> {
        Ok(self.endpoint()?.connect()?)
    }

    /// The settings of `docker` commands outside of jobs, without logins.
    fn docker(&self) -> anyhow::Result<DockerCommand> {
        let config = self.folder.join(DOCKER_FOLDER);
        if !config.exists() {
            docker::create_config(&config).context("cannot create a Docker configuration")?;
        }
        Ok(DockerCommand {
            machine: self.machine.clone(),
            endpoint: self.endpoint()?,
            config,
            grace: self.grace,
            registry_retry_limit: Duration::ZERO,
            engine_may_start: true,
        })
    }

    async fn remove_from_engine(&self, preview: &WireId) -> anyhow::Result<()> {
        Ok(containers::remove_preview(&self.engine()?, &self.machine, preview).await?)
    }

    /// Begins the log of the services of a deployment, if it has not begun. `is_new`: core has no line of it.
    pub(crate) fn begin_log(
        &self,
        preview: &WireId,
        files: &DeploymentFolder,
        deployment: &Deployment,
        is_new: bool,
    ) {
        let (values, folder) = (|| files.masked_values(), self.preview_folder(preview));
        self.logs.begin(preview, deployment.generation, values, folder, is_new);
    }

    fn free_disk_space(&self) -> Option<u64> {
        let disk = nix::sys::statvfs::statvfs(&self.folder).ok()?;
        Some(disk.blocks_available() * disk.fragment_size())
    }

    /// Lets requests wait while the containers of a preview are replaced.
    pub(crate) fn hold(&self, preview: &WireId) {
        self.endpoints.hold(preview);
    }

    /// Makes the endpoints of `deployment` known to the tunnels.
    pub(crate) fn set_addresses(
        &self,
        preview: &WireId,
        deployment: &Deployment,
        found: &[ServiceContainer],
    ) {
        let addresses = deployment.endpoints.iter().filter_map(|endpoint| {
            let mut containers =
                found.iter().filter(|container| container.service == endpoint.service);
            let address =
                containers.find_map(|container| container.addresses.get(&endpoint.port))?;
            Some((endpoint.name.clone(), *address))
        });
        self.endpoints.set(preview.clone(), addresses.collect());
    }

    /// The previews for HELLO. If the engine does not answer within `limit`, those that should run.
    pub(crate) async fn running(&self, limit: Duration) -> Vec<RunningPreview> {
        let known = self.known();
        let current = |preview: &WireId| {
            let folder = self.preview_folder(preview);
            folder.current().map(|(_, deployment)| deployment.generation)
        };
        let ask = async {
            let engine = self.engine().ok()?;
            containers::previews(&engine, &self.machine).await.ok()
        };
        let running = match timeout(limit, ask).await.ok().flatten() {
            Some(found) => found
                .into_iter()
                .filter_map(|(preview, labelled)| {
                    // Without a current deployment the first one has not ended.
                    let generation =
                        if known.contains(&preview) { current(&preview)? } else { labelled };
                    Some((preview, generation))
                })
                .collect(),
            None => known
                .into_iter()
                .filter_map(|id| current(&id).map(|number| (id, number)))
                .collect::<Vec<_>>(),
        };
        let running = running.into_iter();
        running.map(|(preview_id, generation)| RunningPreview { preview_id, generation }).collect()
    }

    /// Stops what this agent does with previews. Their containers go on.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.logs.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Removes all previews of this machine, also those whose files are gone.
    pub(crate) async fn remove_all(&self) {
        self.stop().await;
        if let Err(error) = self.remove_everything().await {
            tracing::error!("{error:#}");
        }
    }

    /// As [`remove_all`](Self::remove_all). The files stay while the engine may have something.
    ///
    /// # Errors
    /// Something could not be removed.
    pub(crate) async fn remove_everything(&self) -> anyhow::Result<()> {
        let removed = async {
            let engine = self.engine()?;
            for preview in &self.known() {
                containers::remove_preview(&engine, &self.machine, preview).await?;
            }
            containers::remove_all_previews(&engine, &self.machine).await?;
            anyhow::Ok(())
        };
        match removed.await {
            Ok(()) => {}
            // An agent that only builds may have no engine at its end.
            Err(error) if !self.folder.exists() => {
                tracing::debug!("cannot look for previews: {error:#}");
            }
            Err(error) => {
                return Err(error.context("cannot remove the previews of this machine"));
            }
        }
        for preview in &self.known() {
            self.remove_folder(preview, &self.preview_folder(preview)).await;
        }
        match fs::remove_dir_all(&self.folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Files of containers that the engine could not make removable either. Nothing would be different the next time.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(folder = %self.folder.display(), %error, "files of previews are left behind");
                Ok(())
            }
            Err(error) => Err(error).context("cannot remove the files of previews"),
        }
    }
}
