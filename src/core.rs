//! The coordinator: builds its parts, and joins them at shutdown.
//!
//! An event comes in (from the API, an agent, an effect or the clock), the orchestrator steps the
//! state, the store commits, readers see the records, and effects go out.

pub mod clock;
pub(crate) mod retry;

pub mod plan;
pub mod warm_up;

pub mod orchestrator;
pub mod records;
pub mod store;

pub mod effects;
pub mod github;
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

use std::collections::BTreeSet;
use std::future::IntoFuture as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_provider::Providers;
use stagely_state::ids::ProjectId;
use stagely_state::{Event, Machine, MachineKind, Project, ProviderName, Snapshot, State};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use self::binaries::Binaries;
use self::clock::now;
use self::disk::DiskGuard;
use self::effects::Effects;
use self::github::Github;
use self::github::reconcile::{Reconcile, Reconciled};
use self::github::report::Reporting;
use self::http::{Api, ApiTokens, WebhookMemory};
use self::intake::Intake;
use self::intake::projects::LinkProject;
use self::logs::{LogSettings, LogStore};
use self::orchestrator::{Events, Orchestrator};
use self::records::{Records, SharedRecords};
use self::registry::Registry;
use self::retention::Retention;
use self::secrets::SecretStore;
use self::secrets::keyring::Keyring;
use self::sessions::Sessions;
use self::store::{ApiToken, Store, Stored};
use self::sweep::Sweeps;
use self::tokens::random_token;
use self::warm_up::WarmUp;
use crate::api::Role;
use crate::config::Config;

/// Holds the first admin token, in the data folder.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";

/// Holds the address of the core that runs on a data folder, while it runs.
pub const ADDRESS_FILE: &str = "core.url";

/// Holds short-lived checkouts, in the data folder. Emptied at every start.
const SCRATCH: &str = "scratch";

/// How long requests that are being served may take after the order to stop. What they change is
/// stored within milliseconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A core that runs in this process.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub url: Url,
    /// A token of role admin.
    pub admin_token: SecretString,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    shutdown_limit: Duration,
    address_file: PathBuf,
}

impl Running {
    /// Waits until core fails, or `stop` fires; then stops it.
    ///
    /// # Errors
    /// What made core fail.
    pub async fn until(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next() => ended.context("a task of core panicked")?,
        };
        let stopped = self.stop().await;
        ended.and(stopped)
    }

    /// Stops core. Machines go on: what they do is picked up by the next core on the same data folder.
    ///
    /// # Errors
    /// A task that failed, or did not end within `core.shutdown-limit`.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let joined = timeout(self.shutdown_limit, async {
            let mut result = Ok(());
            while let Some(ended) = self.tasks.join_next().await {
                result = result.and(ended.context("a task of core panicked")?);
            }
            result
        });
        let joined = joined.await;
        // One that stays is of a core that was killed: whoever dials it is told that nobody answers.
        let _ = std::fs::remove_file(&self.address_file);
        joined.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("core did not stop within {:?}", self.shutdown_limit))
        })
    }
}

/// Starts core: when this returns, it listens.
///
/// # Errors
/// A data folder that is in use or cannot be written, an address that is taken, a registry password
/// that cannot be read.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    config.check()?;
    config.registry.password()?;
    let listener = TcpListener::bind(config.core.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.core.listen))?;
    let mut config = config;
    // Port 0 asks for any free port; agents must be told which one it became.
    config.core.listen = listener.local_addr()?;
    let config = Arc::new(config);
    let data_dir = config.core.data_dir.clone();
    let (store, stored, logs, keyring) = {
        let (data_dir, settings) = (data_dir.clone(), LogSettings::from(&*config));
        tokio::task::spawn_blocking(move || open_data(&data_dir, settings)).await??
    };
    let tokens = ApiTokens::new(store.clone(), stored.api_tokens.clone());
    let admin_token = admin_token(&data_dir.join(ADMIN_TOKEN_FILE), &tokens).await?;
    let parts = Parts { config, store, logs, keyring, tokens };
    let (stop, tasks) = parts.spawn(stored, listener).await?;
    let url = parts.config.core.url();
    let address_file = data_dir.join(ADDRESS_FILE);
    std::fs::write(&address_file, format!("http://{}\n", parts.config.core.listen))
        .with_context(|| format!("cannot write {}", address_file.display()))?;
    info!(%url, data_dir = %data_dir.display(), "core is up");
    let shutdown_limit = parts.config.core.shutdown_limit;
    Ok(Running { url, admin_token, stop, tasks, shutdown_limit, address_file })
}

/// Opens what lies in the data folder. Blocks.
fn open_data(
    data_dir: &Path,
    settings: LogSettings,
) -> anyhow::Result<(Store, Stored, LogStore, Keyring)> {
    let unusable = || format!("cannot use the data folder {}", data_dir.display());
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700).create(data_dir).with_context(unusable)?;
    let (store, stored) = Store::open(&data_dir.join("core.redb"))
        .with_context(|| format!("cannot open the database in {}", data_dir.display()))?;
    // Only now is it sure that no other core works here. One that was killed has left checkouts.
    let scratch = data_dir.join(SCRATCH);
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(unusable);
        }
        _ => private.create(&scratch).with_context(unusable)?,
    }
    let logs = LogStore::open(&data_dir.join("logs.redb"), settings)
        .with_context(|| format!("cannot open the logs in {}", data_dir.display()))?;
    let keyring = Keyring::open(&data_dir.join("secrets.key"))
        .with_context(|| format!("cannot open the key in {}", data_dir.display()))?;
    Ok((store, stored, logs, keyring))
}

/// What core is made of.
struct Parts {
    config: Arc<Config>,
    store: Store,
    logs: LogStore,
    keyring: Keyring,
    tokens: ApiTokens,
}

impl Parts {
    /// Starts the tasks.
    async fn spawn(
        &self,
        stored: Stored,
        listener: TcpListener,
    ) -> anyhow::Result<(CancellationToken, JoinSet<anyhow::Result<()>>)> {
        let webhook_secret = self.config.github.webhook_secret()?;
        let providers = self.providers(&stored).await?;
        let secrets = SecretStore::new(
            self.keyring.clone(),
            self.store.clone(),
            stored.run_secrets,
            stored.project_secrets,
            stored.machine_tokens,
        );
        let state = State::load(self.config.limits(), stored.state);
        let records = SharedRecords::new(Records::of(&state));
        let (events, inbox) = orchestrator::inbox();
        let sessions = Sessions::default();
        let stop = CancellationToken::new();
        let data_dir = self.config.core.data_dir.clone();
        let disk = DiskGuard::new(data_dir.clone(), self.config.core.disk_free_min_mib);
        let binaries = Binaries::new(self.config.agents.binaries.clone());
        let github = Github::new(Arc::clone(&self.config), secrets.clone())?;
        let effects = Arc::new(Effects {
            config: Arc::clone(&self.config),
            records: records.clone(),
            sessions: sessions.clone(),
            secrets: secrets.clone(),
            store: self.store.clone(),
            github: github.clone(),
            logs: self.logs.clone(),
            reporting: Reporting::new(&records),
            registry: Registry::new(self.config.registry.clone())
                .context("cannot set up TLS for the registry")?,
            providers: providers.clone(),
            binaries: binaries.clone(),
            scratch: data_dir.join(SCRATCH),
            disk: disk.clone(),
        });
        let orchestrator = Orchestrator::new(
            state,
            self.store.clone(),
            secrets.clone(),
            records.clone(),
            effects,
            inbox,
        );
        let retention = Retention {
            config: self.config.retention.clone(),
            records: records.clone(),
            events: events.clone(),
            logs: self.logs.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(orchestrator.run(stop.clone()));
        tasks.spawn(no_error(retention.run(stop.clone())));
        let sweeps = Sweeps::new(&providers, &records, &events);
        for sweep in sweeps.iter() {
            tasks.spawn(no_error(Arc::clone(sweep).run(stop.clone())));
        }
        let intake = Intake::new(records.clone(), events.clone(), secrets.clone(), disk.clone());
        if let Some(schedule) = self.config.warm_up.schedule()? {
            let (config, records) = (self.config.warm_up.clone(), records.clone());
            let warm_up = WarmUp { config, records, intake: intake.clone() };
            tasks.spawn(no_error(warm_up.run(schedule, stop.clone())));
        }
        // Before anything is delivered, which would be for nobody.
        self.set_projects(&records, &events, &intake, &secrets).await?;
        let reconciled = Reconciled::default();
        let reconcile = Reconcile {
            source: github.clone(),
            config: Arc::clone(&self.config),
            records: records.clone(),
            intake: intake.clone(),
            reconciled: reconciled.clone(),
        };
        tasks.spawn(no_error(reconcile.run(stop.clone())));
        let api = Api {
            github,
            reconcile: reconciled,
            webhook_secret,
            webhook_memory: WebhookMemory::default(),
            config: Arc::clone(&self.config),
            records,
            events,
            intake,
            logs: self.logs.clone(),
            sessions,
            secrets,
            tokens: self.tokens.clone(),
            binaries,
            disk,
            sweeps,
            stop: stop.clone(),
        };
        tasks.spawn(serve(listener, api));
        Ok((stop, tasks))
    }

    /// Links the projects that the configuration names, and unlinks those that it names no more.
    async fn set_projects(
        &self,
        records: &SharedRecords,
        events: &Events,
        intake: &Intake,
        secrets: &SecretStore,
    ) -> anyhow::Result<()> {
        let named = &self.config.projects;
        let left: Vec<ProjectId> = {
            let records = records.read();
            let is_left = |project: &&Project| {
                let link = project.github.as_ref().filter(|link| link.is_configured);
                link.is_some_and(|link| {
                    !named.iter().any(|it| it.github.is(link.repository.as_str()))
                })
            };
            records.projects.values().filter(is_left).map(|project| project.id).collect()
        };
        for project in left {
            forget_token(secrets, project).await?;
            events.store(Event::ProjectRemoved { project }).await?;
        }
        for project in named {
            // It is read whenever it is needed; that it cannot be read is said now.
            project.token()?;
            let wanted = LinkProject {
                repository: project.github.clone(),
                clone_url: self.config.github.clone_address(&project.github),
                name: project.name.clone(),
                forks: project.forks,
                max_concurrent: project.max_concurrent,
                is_configured: true,
            };
            let linked = intake.link(wanted).await;
            let (linked, _) = linked.with_context(|| format!("[[projects]] {}", project.github))?;
            forget_token(secrets, linked.id).await?;
        }
        Ok(())
    }

    /// Those that the configuration names, and those of machines that are still there.
    async fn providers(&self, stored: &Stored) -> anyhow::Result<Providers> {
        let named = self.config.providers();
        let left = left_machines(&stored.state).map(|machine| machine.provider);
        let left: BTreeSet<ProviderName> = left.filter(|name| !named.contains(name)).collect();
        let data_dir = &self.config.core.data_dir;
        let providers =
            Providers::new(&named, self.config.provider_tables(), &stored.core_id, data_dir)
                .await?;
        let others =
            Providers::new(&left, self.config.provider_tables(), &stored.core_id, data_dir).await;
        // Without their provider, machines that live could neither be ended nor seen to end.
        let others = others.with_context(|| still_needed(&stored.state, &left))?;
        for (name, _) in providers.iter() {
            info!(provider = %name, "machines are launched by it");
        }
        for (name, _) in others.iter() {
            info!(provider = %name, "machines that it launched earlier are still there");
        }
        Ok(providers.and(others))
    }
}

/// What to do about a provider that cannot be used although machines of it are there.
fn still_needed(stored: &Snapshot, providers: &BTreeSet<ProviderName>) -> String {
    let names: Vec<&str> = providers.iter().map(|name| name.as_str()).collect();
    let left = left_machines(stored).filter(|machine| providers.contains(&machine.provider));
    let left: Vec<String> = left.map(|machine| machine.id.to_string()).collect();
    format!(
        "machines that {} launched are still there ({}): start core with what that provider needs, and take it \
         out when `stagely machines` shows none of them",
        names.join(" and "),
        left.join(", ")
    )
}

/// Forgets the token that a project was given through the API, if it was given one: what the configuration
/// says goes before it.
async fn forget_token(secrets: &SecretStore, project: ProjectId) -> anyhow::Result<()> {
    let secrets = secrets.clone();
    let forget = move || {
        if matches!(secrets.project_token(project), Ok(None)) {
            return Ok(());
        }
        secrets.set_project_token(project, None)
    };
    Ok(tokio::task::spawn_blocking(forget).await??)
}

/// The machines that a provider launched and that are not gone.
fn left_machines(stored: &Snapshot) -> impl Iterator<Item = &Machine> {
    stored
        .machines
        .values()
        .filter(|machine| machine.kind == MachineKind::Launched && !machine.state.is_terminated())
}

async fn no_error(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

async fn serve(listener: TcpListener, api: Api) -> anyhow::Result<()> {
    let stop = api.stop.clone();
    let stopped = stop.clone();
    // Small messages follow each other closely: the second would wait until the first is acknowledged.
    let listener = listener.tap_io(|connection| {
        // It works without, only later.
        let _ = connection.set_nodelay(true);
    });
    // The router itself as the service would be copied for every connection, route by route.
    let server = axum::serve(listener, http::router(api).into_make_service())
        .with_graceful_shutdown(async move { stopped.cancelled().await })
        .into_future();
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        ended = server => ended.context("the HTTP server failed"),
        // Whoever does not read his answer, or sent half a request, does not decide when core ends.
        () = drained => Ok(()),
    }
}

/// Reads the admin token that an earlier start wrote, or makes one.
async fn admin_token(path: &Path, tokens: &ApiTokens) -> anyhow::Result<SecretString> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let token = SecretString::from(text.trim_end());
            if tokens.role_of(&token) == Some(Role::Admin) {
                return Ok(token);
            }
            warn!(path = %path.display(), "the admin token is not of this database; making another");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    }
    let token = random_token("stagely_");
    let record =
        ApiToken { name: "first admin token".to_owned(), role: Role::Admin, created_at: now() };
    tokens.add(&token, record).await?;
    write_token(path, &token).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(token)
}

fn write_token(path: &Path, token: &SecretString) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", token.expose_secret())
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Arch;
    use stagely_state::ids::MachineId;
    use stagely_state::{MachineState, Timestamp};

    use super::*;

    #[test]
    fn a_provider_that_cannot_be_used_is_told_with_the_machines_that_need_it() {
        let machine = |number, provider, state| {
            let id = MachineId::from_bits(number);
            let machine = Machine::new(id, MachineKind::Launched, Arch::Amd64, Timestamp(0));
            (id, Machine { provider, state, ..machine })
        };
        let machines = [
            machine(1, ProviderName::Aws, MachineState::Booting),
            machine(2, ProviderName::Aws, MachineState::Terminated),
            machine(3, ProviderName::Local, MachineState::Booting),
        ];
        let stored = Snapshot { machines: machines.into(), ..Snapshot::default() };

        let text = still_needed(&stored, &BTreeSet::from([ProviderName::Aws]));

        let left =
            format!("machines that aws launched are still there ({})", MachineId::from_bits(1));
        assert!(text.starts_with(&left), "{text}");
    }
}
