//! The coordinator: builds its parts, starts them, and joins them at shutdown.
//!
//! An event comes in (from the API, an agent, an effect or the clock), the orchestrator steps the
//! state, the store commits, readers see the records, and effects go out.

pub mod clock;
pub(crate) mod retry;
pub mod wait;
pub mod waits;

pub(crate) mod costs;
mod spot_prices;

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

pub(crate) mod archives;
pub(crate) mod artifacts;
pub(crate) mod blobs;

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

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use stagely_provider::Providers;
use stagely_state::State;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use url::Url;

use self::archives::Archives;
use self::artifacts::Artifacts;
use self::binaries::Binaries;
use self::data_folder::DataFolder;
pub use self::data_folder::FolderCheck;
use self::disk::DiskGuard;
use self::effects::{
    Assigner, Cleaner, CloneTokens, CommandChecker, EditedFiles, Effects, InterruptedWork,
    Launcher, Planner, Reporter, RepositoryReader, Tagger, Terminator,
};
use self::github::Github;
use self::github::reconcile::Reconciler;
use self::github::reconcile::status::ReconcileStatus;
use self::github::report::queue::ReportQueue;
use self::history::History;
use self::http::{
    AgentEndpoint, ApiState, ApiTokens, Endpoints, GithubStatus, LogReaders, PreviewParts,
    PreviewProxy, Server, Tunnels, WebSockets, WebhookEndpoint,
};
use self::intake::Intake;
use self::logs::LogStore;
use self::orchestrator::{Events, Orchestrator};
use self::previews::{
    PreviewActivity, PreviewFollower, PreviewHosts, PreviewLinks, PreviewReports, PreviewRoutes,
};
use self::records::{Records, SharedRecords};
use self::registry::Registry;
use self::retention::Retention;
use self::secrets::SecretStore;
use self::sessions::Sessions;
use self::spot_prices::SpotPriceReader;
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
            Some(ended) = self.tasks.join_next() => outcome_of(ended),
        };
        self.end(ended).await
    }

    /// Stops core, and joins its tasks, its connections and the writer of logs. Machines go on, and the next core on
    /// the same data folder continues their work.
    ///
    /// # Errors
    /// A task failed, or did not end within `core.shutdown-limit`.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.end(Ok(())).await
    }

    /// As [`stop`](Self::stop), after one task has ended with `result`.
    async fn end(mut self, mut result: anyhow::Result<()>) -> anyhow::Result<()> {
        self.stop.cancel();
        let joined = timeout(self.shutdown_limit, async {
            while let Some(ended) = self.tasks.join_next().await {
                result = result.and(outcome_of(ended));
            }
            let stored = if result.as_ref().is_err_and(is_panic) {
                Ok(())
            } else {
                let store = self.store.clone();
                spawn_blocking(move || store.stops_by_itself()).await?
            };
            self.logs.close().await;
            result.and(stored.map_err(anyhow::Error::from))
        });
        let joined = joined.await;
        // The file of a killed core stays, and clients report that core does not answer.
        let _ = std::fs::remove_file(&self.address_file);
        joined.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("core did not stop within {:?}", self.shutdown_limit))
        })
    }
}

fn outcome_of(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.context("a task of core panicked")?
}

/// Whether core ends because of a panic. An effect may be the cause.
fn is_panic(error: &anyhow::Error) -> bool {
    let panicked = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<JoinError>().is_some_and(JoinError::is_panic)
    };
    error.chain().any(panicked)
}

/// Starts core: when this returns, it listens.
///
/// # Errors
/// A data folder that is in use, was used elsewhere (unless `check` allows it) or cannot be written, an address that is
/// taken, a registry password that cannot be read.
pub async fn start(mut config: Config, check: FolderCheck) -> anyhow::Result<Running> {
    config.check()?;
    config.registry.password()?;
    let listener = TcpListener::bind(config.core.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; choose another address with --listen or core.listen",
            config.core.listen
        )
    })?;
    // Port 0 requests any free port, and agents need the actual one.
    config.core.listen = listener.local_addr()?;
    let config = Arc::new(config);
    let mut folder = DataFolder::open(&config, check).await?;
    let known_tokens = std::mem::take(&mut folder.contents.api_tokens);
    let tokens = ApiTokens::new(folder.store.clone(), known_tokens);
    let admin_token = http::admin_token(&folder.path.join(ADMIN_TOKEN_FILE), &tokens).await?;
    let address_file = folder.path.join(ADDRESS_FILE);
    let (parts, state) = Box::pin(Parts::new(Arc::clone(&config), folder)).await?;
    let (stop, store, logs) = (parts.stop.clone(), parts.store.clone(), parts.logs.clone());
    let PreviewParts { routes, activity, .. } = parts.previews.clone();
    let tasks = Box::pin(parts.spawn(state, listener, tokens)).await?;
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
    archives: Archives,
    artifacts: Artifacts,
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
    preview_reports: PreviewReports,
    interrupted: InterruptedWork,
    stop: CancellationToken,
}

impl Parts {
    /// Builds the parts from the settings and the data folder. Also returns the stored state.
    async fn new(config: Arc<Config>, folder: DataFolder) -> anyhow::Result<(Self, State)> {
        let providers = provider_set::make(&config, &folder.contents).await?;
        let scratch = folder.scratch();
        let DataFolder { path, store, contents, logs, keyring, archives, artifacts } = folder;
        let secrets = SecretStore::new(
            keyring,
            store.clone(),
            contents.project_tokens,
            contents.machine_tokens,
        );
        let state = State::load(config.limits(), contents.state);
        let records = SharedRecords::new(Records::of(&state));
        let (events, inbox) = orchestrator::inbox();
        let disk = DiskGuard::new(path, config.core.disk_free_min_mib);
        let archives = Archives::new(archives, records.clone(), disk.clone(), &config);
        let artifacts = Artifacts::new(artifacts, records.clone(), disk.clone(), &config);
        let intake = Intake::new(records.clone(), events.clone(), secrets.clone(), disk.clone());
        let interrupted = InterruptedWork::new(store.clone(), contents.kills);
        let parts = Self {
            github: Github::new(Arc::clone(&config), secrets.clone())?,
            binaries: Binaries::new(config.agents.binaries.clone()),
            sessions: Sessions::default(),
            previews: PreviewParts {
                hosts: PreviewHosts::new(&config),
                routes: PreviewRoutes::default(),
                activity: PreviewActivity::default(),
            },
            preview_reports: PreviewReports::default(),
            stop: CancellationToken::new(),
            config,
            scratch,
            store,
            logs,
            archives,
            artifacts,
            secrets,
            records,
            events,
            inbox,
            disk,
            providers,
            intake,
            interrupted,
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
        let follower = self.preview_follower();
        let spot_prices = self.spot_prices();
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
        tasks.spawn(infallible(self.archives.run(stop.clone())));
        tasks.spawn(infallible(self.artifacts.run(stop.clone())));
        for sweep in sweeps.iter() {
            tasks.spawn(infallible(Arc::clone(sweep).run(stop.clone())));
        }
        tasks.spawn(infallible(follower.run(stop.clone())));
        tasks.spawn(infallible(spot_prices.run(stop.clone())));
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

    fn preview_links(&self) -> PreviewLinks {
        PreviewLinks::new(self.previews.hosts.clone(), self.secrets.clone())
    }

    fn preview_follower(&self) -> PreviewFollower {
        let PreviewParts { routes, activity, .. } = self.previews.clone();
        PreviewFollower {
            records: self.records.clone(),
            links: self.preview_links(),
            routes,
            activity,
            events: self.events.clone(),
        }
    }

    fn spot_prices(&self) -> SpotPriceReader {
        SpotPriceReader {
            config: Arc::clone(&self.config),
            providers: self.providers.clone(),
            records: self.records.clone(),
            events: self.events.clone(),
        }
    }

    fn effects(&self) -> anyhow::Result<Effects> {
        let registry = Registry::new(self.config.registry.clone())
            .context("cannot set up TLS for the registry")?;
        let registry = Arc::new(registry);
        let clone_tokens = CloneTokens { github: self.github.clone() };
        let reader = Arc::new(RepositoryReader::new(&self.scratch, self.disk.clone()));
        Ok(Effects {
            records: self.records.clone(),
            interrupted: self.interrupted.clone(),
            planner: Planner::new(
                &self.config,
                Arc::clone(&reader),
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
                edited_files: EditedFiles { reader, interrupted: self.interrupted.clone() },
                allow_privileged: self.config.previews.allow_privileged,
                links: self.preview_links(),
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
                links: PreviewLinks::new(PreviewHosts::new(&self.config), self.secrets.clone()),
                queue: ReportQueue::new(&self.records),
            },
            sessions: self.sessions.clone(),
            archive_bytes_max: self.config.previews.archive_max.0,
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
        let agents = AgentEndpoint {
            heartbeat_interval: self.config.agents.heartbeat_interval,
            job_grace: self.config.builders.job_grace,
            records: self.records.clone(),
            events: self.events.clone(),
            logs: self.logs.clone(),
            sessions: self.sessions.clone(),
            secrets: self.secrets.clone(),
            preview_reports: self.preview_reports.clone(),
            archives: self.archives.clone(),
            artifacts: self.artifacts.clone(),
            sockets: sockets.clone(),
        };
        let tunnels = Tunnels::new(self.secrets.clone(), self.sessions.clone(), sockets.clone());
        let previews = PreviewProxy::new(
            self.previews.clone(),
            tokens.clone(),
            tunnels.clone(),
            sockets.clone(),
        );
        let api = ApiState {
            config: Arc::clone(&self.config),
            records: self.records.clone(),
            history: self.history(),
            events: self.events.clone(),
            intake: self.intake.clone(),
            logs: self.logs.clone(),
            artifacts: self.artifacts.clone(),
            log_readers: LogReaders::default(),
            secrets: self.secrets.clone(),
            tokens,
            disk: self.disk.clone(),
            github: GithubStatus {
                client: self.github.clone(),
                reconciled,
                has_webhook_secret: webhooks.has_secret(),
            },
            sweeps,
            preview_links: self.preview_links(),
            preview_reports: self.preview_reports.clone(),
            preview_activity: self.previews.activity.clone(),
            tunnels,
            sockets,
        };
        Ok(Endpoints { api, agents, binaries: self.binaries.clone(), webhooks, previews })
    }
}

async fn infallible(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}
