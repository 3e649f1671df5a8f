//! The coordinator: builds its parts, starts them, and joins them at shutdown.
//!
//! An event comes in (from the API, an agent, an effect or the clock), the orchestrator steps the
//! state, the store commits, readers see the records, and effects go out.

pub mod clock;
pub(crate) mod retry;
pub mod wait;
pub mod waits;

pub mod plan;
pub mod warm_up;

pub mod orchestrator;
pub mod previews;
pub mod records;
pub mod store;

pub mod effects;
pub mod github;
pub(crate) mod history;
pub mod registry;
pub mod sessions;

pub mod logs;

pub mod secrets;
pub mod tokens;

pub(crate) mod binaries;
pub(crate) mod disk;
#[cfg(test)]
mod fixtures;
mod http;
pub(crate) mod intake;
mod retention;
pub mod sweep;

mod configured_projects;
pub mod damage;
mod data_folder;
mod provider_set;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use stagely_provider::Providers;
use stagely_state::State;
use stagely_state::ids::RunId;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use url::Url;

use self::binaries::Binaries;
use self::data_folder::DataFolder;
pub use self::data_folder::FolderCheck;
use self::disk::DiskGuard;
use self::effects::{
    Assigner, Cleaner, CloneTokens, CommandChecker, Effects, InterruptedReads, Launcher, Planner,
    Reporter, RepositoryReader, Tagger, Terminator,
};
use self::github::Github;
use self::github::reconcile::Reconciler;
use self::github::reconcile::status::ReconcileStatus;
use self::github::report::queue::ReportQueue;
use self::history::History;
use self::http::{
    AgentEndpoint, ApiState, ApiTokens, Endpoints, GithubStatus, PreviewParts, PreviewProxy,
    Server, Tunnels, WebSockets, WebhookEndpoint,
};
use self::intake::Intake;
use self::logs::LogStore;
use self::orchestrator::{Events, Orchestrator};
use self::previews::{PreviewActivity, PreviewHosts, PreviewRoutes};
use self::records::{Records, SharedRecords};
use self::registry::Registry;
use self::retention::Retention;
use self::secrets::SecretStore;
use self::sessions::Sessions;
use self::store::Store;
use self::sweep::Sweeps;
use self::warm_up::WarmUp;
use crate::config::Config;

/// The file of the first admin token, in the data folder.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";

/// The file with the address of the core that runs on a data folder.
pub const ADDRESS_FILE: &str = "core.url";

/// A core that runs in this process.
#[derive(Debug)]
pub struct Running {
    pub url: Url,
    /// A token of role admin.
    pub admin_token: SecretString,
    pub preview_routes: PreviewRoutes,
    pub preview_activity: PreviewActivity,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    store: Store,
    logs: LogStore,
    shutdown_limit: Duration,
    address_file: PathBuf,
}

impl Running {
    /// Waits until core fails or `stop` fires, and stops core.
    ///
    /// # Errors
    /// The failure of core.
    pub async fn until(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next() => ended.context("a task of core panicked")?,
        };
        let stopped = self.stop().await;
        ended.and(stopped)
    }

    /// Stops core, and joins its tasks, its connections and the writer of logs. Machines go on, and the next core on
    /// the same data folder continues their work.
    ///
    /// # Errors
    /// A task failed, or did not end within `core.shutdown-limit`.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let joined = timeout(self.shutdown_limit, async {
            let mut result = Ok(());
            while let Some(ended) = self.tasks.join_next().await {
                result = result.and(ended.context("a task of core panicked")?);
            }
            // Core stops by itself, so no repository is the cause.
            let store = self.store.clone();
            let forgotten = spawn_blocking(move || store.forget_reads()).await?;
            self.logs.close().await;
            Ok(forgotten?).and(result)
        });
        let joined = joined.await;
        // The file of a killed core stays, and clients report that core does not answer.
        let _ = std::fs::remove_file(&self.address_file);
        joined.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("core did not stop within {:?}", self.shutdown_limit))
        })
    }
}

/// Starts core: when this returns, it listens.
///
/// # Errors
/// A data folder that is in use, was used elsewhere (unless `check` allows it) or cannot be written, an address that is
/// taken, a registry password that cannot be read.
pub async fn start(mut config: Config, check: FolderCheck) -> anyhow::Result<Running> {
    config.check()?;
    config.registry.password()?;
    let listener = TcpListener::bind(config.core.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.core.listen))?;
    // Port 0 requests any free port, and agents need the actual one.
    config.core.listen = listener.local_addr()?;
    let config = Arc::new(config);
    let mut folder = DataFolder::open(&config, check).await?;
    let known_tokens = std::mem::take(&mut folder.contents.api_tokens);
    let tokens = ApiTokens::new(folder.store.clone(), known_tokens);
    let admin_token = http::admin_token(&folder.path.join(ADMIN_TOKEN_FILE), &tokens).await?;
    let address_file = folder.path.join(ADDRESS_FILE);
    let (parts, state) = Parts::new(Arc::clone(&config), folder).await?;
    let (stop, store, logs) = (parts.stop.clone(), parts.store.clone(), parts.logs.clone());
    let PreviewParts { routes, activity, .. } = parts.previews.clone();
    let tasks = parts.spawn(state, listener, tokens).await?;
    std::fs::write(&address_file, format!("http://{}\n", config.core.listen))
        .with_context(|| format!("cannot write {}", address_file.display()))?;
    let url = config.core.url();
    info!(%url, data_dir = %config.core.data_dir.display(), "core is up");
    let shutdown_limit = config.core.shutdown_limit;
    Ok(Running {
        url,
        admin_token,
        preview_routes: routes,
        preview_activity: activity,
        stop,
        tasks,
        store,
        logs,
        shutdown_limit,
        address_file,
    })
}

/// The parts that other parts use.
struct Parts {
    config: Arc<Config>,
    scratch: PathBuf,
    store: Store,
    logs: LogStore,
    secrets: SecretStore,
    records: SharedRecords,
    events: Events,
    inbox: orchestrator::Inbox,
    sessions: Sessions,
    disk: DiskGuard,
    binaries: Binaries,
    github: Github,
    providers: Providers,
    intake: Intake,
    previews: PreviewParts,
    interrupted_reads: BTreeMap<RunId, u32>,
    stop: CancellationToken,
}

impl Parts {
    /// Builds the parts from the settings and the data folder. Also returns the stored state.
    async fn new(config: Arc<Config>, folder: DataFolder) -> anyhow::Result<(Self, State)> {
        let providers = provider_set::make(&config, &folder.contents).await?;
        let scratch = folder.scratch();
        let DataFolder { path, store, contents, logs, keyring } = folder;
        let secrets = SecretStore::new(
            keyring,
            store.clone(),
            contents.project_secrets,
            contents.machine_tokens,
        );
        let state = State::load(config.limits(), contents.state);
        let records = SharedRecords::new(Records::of(&state));
        let (events, inbox) = orchestrator::inbox();
        let disk = DiskGuard::new(path, config.core.disk_free_min_mib);
        let intake = Intake::new(records.clone(), events.clone(), secrets.clone(), disk.clone());
        let parts = Self {
            github: Github::new(Arc::clone(&config), secrets.clone())?,
            binaries: Binaries::new(config.agents.binaries.clone()),
            sessions: Sessions::default(),
            previews: PreviewParts {
                hosts: PreviewHosts::new(&config),
                routes: PreviewRoutes::default(),
                activity: PreviewActivity::default(),
            },
            stop: CancellationToken::new(),
            config,
            scratch,
            store,
            logs,
            secrets,
            records,
            events,
            inbox,
            disk,
            providers,
            intake,
            interrupted_reads: contents.interrupted_reads,
        };
        Ok((parts, state))
    }

    /// Starts the tasks.
    async fn spawn(
        self,
        state: State,
        listener: TcpListener,
        tokens: ApiTokens,
    ) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
        let sweeps = Sweeps::new(&self.providers, &self.records, &self.history(), &self.events);
        let status = ReconcileStatus::default();
        let effects = self.effects()?;
        let warm_up = WarmUp::new(&self.config.warm_up, &self.records, &self.intake)?;
        let endpoints = self.endpoints(tokens, sweeps.clone(), status.clone())?;
        let Self { config, store, secrets, logs, records, events, intake, stop, .. } = self;
        let retained = store.clone();

        let mut tasks = JoinSet::new();
        let orchestrator = Orchestrator::new(
            state,
            store,
            secrets.clone(),
            records.clone(),
            Arc::new(effects),
            self.inbox,
        );
        tasks.spawn(orchestrator.run(stop.clone()));
        let retention = Retention::new(&config.retention, &records, retained, &events, logs);
        tasks.spawn(infallible(retention.run(stop.clone())));
        for sweep in sweeps.iter() {
            tasks.spawn(infallible(Arc::clone(sweep).run(stop.clone())));
        }
        if let Some(warm_up) = warm_up {
            tasks.spawn(infallible(warm_up.run(stop.clone())));
        }
        // Projects are linked before the server starts, so that the first delivery finds its project.
        configured_projects::link(&config, &records, &events, &intake, &secrets).await?;
        let github = self.github;
        let reconciler = Reconciler { github, config, records, intake, status };
        tasks.spawn(infallible(reconciler.run(stop)));
        tasks.spawn(Server::new(listener, endpoints).run());
        Ok(tasks)
    }

    fn history(&self) -> History {
        History::new(self.records.clone(), self.store.clone())
    }

    fn effects(&self) -> anyhow::Result<Effects> {
        let registry = Registry::new(self.config.registry.clone())
            .context("cannot set up TLS for the registry")?;
        let registry = Arc::new(registry);
        let clone_tokens = CloneTokens { github: self.github.clone() };
        let kills = self.interrupted_reads.clone();
        let interrupted = InterruptedReads::new(self.store.clone(), kills);
        let reader = RepositoryReader::new(&self.scratch, interrupted);
        Ok(Effects {
            records: self.records.clone(),
            planner: Planner::new(
                &self.config,
                reader,
                &self.records,
                &self.secrets,
                &self.github,
                &clone_tokens,
                &self.disk,
            ),
            launcher: Launcher {
                config: Arc::clone(&self.config),
                records: self.records.clone(),
                secrets: self.secrets.clone(),
                providers: self.providers.clone(),
                binaries: self.binaries.clone(),
                authorities: self.config.agents.read_authorities()?,
            },
            terminator: Terminator {
                records: self.records.clone(),
                sessions: self.sessions.clone(),
                providers: self.providers.clone(),
            },
            assigner: Assigner {
                login: self.config.registry.clone(),
                records: self.records.clone(),
                sessions: self.sessions.clone(),
                secrets: self.secrets.clone(),
                store: self.store.clone(),
                history: self.history(),
                registry: Arc::clone(&registry),
                clone_tokens,
            },
            tagger: Tagger { records: self.records.clone(), registry: Arc::clone(&registry) },
            cleaner: Cleaner { records: self.records.clone(), registry },
            command_checker: CommandChecker {
                records: self.records.clone(),
                history: self.history(),
                github: self.github.clone(),
            },
            reporter: Reporter {
                config: Arc::clone(&self.config),
                records: self.records.clone(),
                logs: self.logs.clone(),
                github: self.github.clone(),
                queue: ReportQueue::new(&self.records),
            },
            sessions: self.sessions.clone(),
        })
    }

    fn endpoints(
        &self,
        tokens: ApiTokens,
        sweeps: Sweeps,
        reconciled: ReconcileStatus,
    ) -> anyhow::Result<Endpoints> {
        let sockets = WebSockets::new(self.stop.clone(), self.config.agents.heartbeat_interval);
        let webhooks = WebhookEndpoint::new(&self.config, self.intake.clone())?;
        let agents = AgentEndpoint::new(
            &self.config,
            self.records.clone(),
            self.events.clone(),
            self.logs.clone(),
            self.sessions.clone(),
            self.secrets.clone(),
            sockets.clone(),
        );
        let tunnels = Tunnels::new(self.secrets.clone(), self.sessions.clone(), sockets.clone());
        let previews =
            PreviewProxy::new(self.previews.clone(), tokens.clone(), tunnels, sockets.clone());
        let api = ApiState {
            config: Arc::clone(&self.config),
            records: self.records.clone(),
            history: self.history(),
            events: self.events.clone(),
            intake: self.intake.clone(),
            logs: self.logs.clone(),
            secrets: self.secrets.clone(),
            tokens,
            disk: self.disk.clone(),
            github: GithubStatus {
                client: self.github.clone(),
                reconciled,
                has_webhook_secret: webhooks.has_secret(),
            },
            sweeps,
            sockets,
        };
        Ok(Endpoints { api, agents, binaries: self.binaries.clone(), webhooks, previews })
    }
}

async fn infallible(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}
