//! `stagely.toml`: every setting of core, with its unit and default.
//!
//! `stagely.sample.toml` at the repository's top shows each with its default; a test compares them.

mod addresses;
mod fleets;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use stagely_protocol::{AgentConfig, Arch};
use stagely_provider::ProviderTables;
use stagely_provider::aws::AwsSettings;
use stagely_provider::digitalocean::DigitalOceanSettings;
use stagely_provider::local::LocalSettings;
use stagely_provider::qemu::QemuSettings;
use stagely_provider::settings::{MarketPolicy, SettingError, check_url};
use stagely_state::ids::MachineId;
use stagely_state::{
    BranchName, Fleet, ForkPolicy, GithubRepository, Limits, Name, Priorities, ProviderName, Usd,
};
use thiserror::Error;
use url::Url;

use crate::core::clock::now;

pub use fleets::FleetConfig;
pub use schedule::Schedule;

/// Runs that are planned at once. Each takes a thread and a checkout, and most of it is waiting for a
/// server.
const PLANNED_AT_ONCE: usize = 8;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what this version understands. The source names line and column.
    #[error("{path} is not a configuration that this version understands")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file that a setting names cannot be read.
    #[error("{key} names {path}, which cannot be read")]
    SecretFile {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting has a value that cannot be.
    #[error("{key}: {problem}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// All of `stagely.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where core listens and keeps its data.
    pub core: CoreConfig,
    /// Where images go.
    pub registry: RegistryConfig,
    /// The machines that build.
    pub builders: BuilderConfig,
    /// The machines that run pull requests.
    pub previews: FleetConfig,
    /// The machines that test previews.
    pub testers: FleetConfig,
    /// The sessions of agents.
    pub agents: AgentsConfig,
    /// The local provider.
    pub local: LocalSettings,
    /// Amazon EC2.
    pub aws: AwsSettings,
    /// `DigitalOcean`.
    #[serde(rename = "digitalocean")]
    pub digitalocean: DigitalOceanSettings,
    /// Guests of QEMU on core's own host.
    pub qemu: QemuSettings,
    /// The log store.
    pub logs: LogsConfig,
    /// How long records are kept.
    pub retention: RetentionConfig,
    /// Caches that are filled by schedule.
    pub warm_up: WarmUpConfig,
    /// How core gets on with GitHub.
    pub github: GithubConfig,
    /// Who goes before whom.
    pub priorities: Priorities,
    /// Repositories at GitHub whose pull requests are built.
    pub projects: Vec<ProjectConfig>,
}

/// The `[core]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CoreConfig {
    /// Where core listens. Put a TLS proxy before it where it is not loopback. Default: `127.0.0.1:7780`.
    pub listen: SocketAddr,
    /// The address that agents and people reach core at. Default: `http://` and `listen`.
    pub public_url: Option<Url>,
    /// Holds the databases, the key of stored secrets and the first admin token. Default:
    /// `/var/lib/stagely-core`.
    pub data_dir: PathBuf,
    /// New runs are refused while less than this is free where `data_dir` is, in mebibytes. Below half of
    /// it logs are cut and nothing is planned either. Default: 512.
    pub disk_free_min_mib: u64,
    /// Whether whoever has the address of a run's or job's page may read it and the log without a token.
    /// These addresses cannot be guessed, and stand in comments. Default: true.
    pub open_logs: bool,
    /// How long a shutdown may take. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub shutdown_limit: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7780)),
            public_url: None,
            data_dir: PathBuf::from("/var/lib/stagely-core"),
            disk_free_min_mib: 512,
            open_logs: true,
            shutdown_limit: Duration::from_secs(10),
        }
    }
}

impl CoreConfig {
    /// The address that agents reach core at.
    pub fn url(&self) -> Url {
        self.public_url.clone().unwrap_or_else(|| {
            format!("http://{}", self.listen).parse().expect("a socket address makes a URL")
        })
    }
}

/// The `[registry]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RegistryConfig {
    /// Host and port, and a path if images are to lie below one. Default: `127.0.0.1:5000`.
    pub url: String,
    /// The user. Default: none, so no login.
    pub username: Option<String>,
    /// A file that holds the user's password, read again for each job. Default: none.
    pub password_file: Option<PathBuf>,
    /// Whether it has no TLS, so that the engines of machines must be told to do without. On loopback they do
    /// anyway. Default: false.
    pub insecure: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            url: "127.0.0.1:5000".to_owned(),
            username: None,
            password_file: None,
            insecure: false,
        }
    }
}

impl RegistryConfig {
    /// Its host and port, without a path.
    pub fn host(&self) -> &str {
        self.url.split_once('/').map_or(&*self.url, |(host, _)| host)
    }

    /// Reads the password; `None` where no user is configured.
    ///
    /// # Errors
    /// [`ConfigError::SecretFile`], or [`ConfigError::Value`] for a user without a password.
    pub fn password(&self) -> Result<Option<SecretString>, ConfigError> {
        if self.username.is_none() {
            return Ok(None);
        }
        let Some(path) = &self.password_file else {
            return Err(ConfigError::Value {
                key: "registry.password-file",
                problem: "is missing although registry.username is set".to_owned(),
            });
        };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::SecretFile {
            key: "registry.password-file",
            path: path.clone(),
            source,
        })?;
        Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
    }
}

/// The `[builders]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BuilderConfig {
    /// Who launches machines: `local`, `aws`, `digitalocean`, `qemu`, or `none`. Default: `local`.
    #[serde(deserialize_with = "fleets::provider")]
    pub provider: Option<ProviderName>,
    /// Who launches AMD64 machines. Default: `provider`.
    #[serde(deserialize_with = "fleets::some_provider")]
    pub amd64: Option<Option<ProviderName>>,
    /// Who launches ARM64 machines. Default: `provider`.
    #[serde(deserialize_with = "fleets::some_provider")]
    pub arm64: Option<Option<ProviderName>>,
    /// `on-demand`, `spot` or `spot-first`. The last attempt of a job is always on demand. Default:
    /// `on-demand`.
    pub market: MarketPolicy,
    /// The most that a spot machine may cost in an hour, in US dollars. Default: the price on demand.
    #[serde(deserialize_with = "stagely_provider::settings::some_dollars")]
    pub max_price: Option<Usd>,
    /// Most launched builders alive at once, over all projects; further jobs wait. Default: 50.
    pub max_concurrent: NonZeroU32,
    /// Attempts a job has in all, when the machine and not the user is at fault. Default: 3.
    pub max_attempts: NonZeroU32,
    /// How long a job waits after a launch that found no capacity, times the attempts it has had. Default: 30s.
    #[serde(with = "humantime_serde")]
    pub capacity_wait: Duration,
    /// From the launch of a machine to the HELLO of its agent. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub boot_limit: Duration,
    /// What core adds to a build's own limit before it ends the machine itself. Default: 1m.
    #[serde(with = "humantime_serde")]
    pub job_grace: Duration,
    /// The longest life of a launched machine that has no running job. Default: 1h.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long a machine is kept for the export of a layer cache after its image was reported. Default: 10m.
    #[serde(with = "humantime_serde")]
    pub cache_export_limit: Duration,
    /// How long reading a run's `stagely.yaml` may take, over all tries. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub planning_limit: Duration,
}

impl Default for BuilderConfig {
    fn default() -> Self {
        Self {
            provider: Some(ProviderName::Local),
            amd64: None,
            arm64: None,
            market: MarketPolicy::OnDemand,
            max_price: None,
            max_concurrent: NonZeroU32::new(50).expect("50 is not zero"),
            max_attempts: NonZeroU32::new(3).expect("3 is not zero"),
            capacity_wait: Duration::from_secs(30),
            boot_limit: Duration::from_mins(5),
            job_grace: Duration::from_mins(1),
            lease: Duration::from_hours(1),
            cache_export_limit: Duration::from_mins(10),
            planning_limit: Duration::from_mins(5),
        }
    }
}

/// The `[agents]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentsConfig {
    /// Time between heartbeats, in whole seconds; a session silent for three of them is closed. Default: 15s.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// How long a machine may be out of contact before its job goes elsewhere. Default: 2m.
    #[serde(with = "humantime_serde")]
    pub reconnect_grace: Duration,
    /// After this long without contact an agent stops its work and exits. Default: 15m.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// Time between SIGTERM and SIGKILL for what an agent runs. Default: 5s.
    #[serde(with = "humantime_serde")]
    pub kill_grace: Duration,
    /// A folder with `stagely-linux-amd64` and `stagely-linux-arm64` of a release, for stock images whose arch
    /// is not core's own. Default: none.
    pub binaries: Option<PathBuf>,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            reconnect_grace: Duration::from_mins(2),
            give_up_after: Duration::from_mins(15),
            kill_grace: Duration::from_secs(5),
            binaries: None,
        }
    }
}

/// The `[logs]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogsConfig {
    /// The most text kept of one attempt of a job, in mebibytes; what follows is counted and dropped. Default: 256.
    pub job_max_mib: u64,
    /// Memory for cached pages of the log database, in mebibytes. Default: 32.
    pub cache_mib: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { job_max_mib: 256, cache_mib: 32 }
    }
}

/// The `[retention]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetentionConfig {
    /// How long ended runs, their jobs and their logs are kept. Default: 90days.
    #[serde(with = "humantime_serde")]
    pub runs: Duration,
    /// How long the records of machines that are gone are kept. Default: 90days.
    #[serde(with = "humantime_serde")]
    pub machines: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let ninety_days = Duration::from_hours(90 * 24);
        Self { runs: ninety_days, machines: ninety_days }
    }
}

/// The `[warm-up]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WarmUpConfig {
    /// When the caches are filled: a cron expression, in UTC. Default: never.
    pub schedule: Option<String>,
    /// The projects, by name. One that is not there is skipped. Default: none.
    pub projects: Vec<String>,
    /// Their branches. Default: the default branch of each.
    pub branches: Vec<String>,
}

impl WarmUpConfig {
    /// When warm-ups are due; `None` where nothing is scheduled.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn schedule(&self) -> Result<Option<Schedule>, ConfigError> {
        let key = "warm-up.schedule";
        let Some(expression) = &self.schedule else { return Ok(None) };
        let schedule =
            Schedule::parse(expression).map_err(|problem| ConfigError::Value { key, problem })?;
        if schedule.next_after(now()).is_none() {
            let problem = format!("{expression:?} is never due");
            return Err(ConfigError::Value { key, problem });
        }
        Ok(Some(schedule))
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.schedule()?.is_some() && self.projects.is_empty() {
            return Err(ConfigError::Value {
                key: "warm-up.projects",
                problem: "is empty although warm-up.schedule is set; name at least one project"
                    .to_owned(),
            });
        }
        for branch in &self.branches {
            branch.parse::<BranchName>().map_err(|error| ConfigError::Value {
                key: "warm-up.branches",
                problem: error.problem,
            })?;
        }
        Ok(())
    }
}

/// The `[github]` table. Credentials are those of an app or a token; both also come from the environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GithubConfig {
    /// The API: of GitHub Enterprise `https://HOST/api/v3`. Default: `https://api.github.com`.
    pub api_url: Url,
    /// Where repositories are cloned from, before `owner/name.git`. Default: made of `api-url`.
    pub clone_url: Option<Url>,
    /// The id of a GitHub App. Default: none.
    pub app_id: Option<u64>,
    /// A file that holds the app's private key, PEM. Default: `STAGELY_GITHUB_PRIVATE_KEY` of the environment.
    pub private_key_file: Option<PathBuf>,
    /// A file that holds a fine-grained token, where there is no app, read whenever it is needed. Default:
    /// `STAGELY_GITHUB_TOKEN` of the environment.
    pub token_file: Option<PathBuf>,
    /// A file that holds the secret of the webhooks. Default: `STAGELY_GITHUB_WEBHOOK_SECRET` of the
    /// environment; without one no webhook is taken.
    pub webhook_secret_file: Option<PathBuf>,
    /// Whether drafts are built, too. Default: false.
    pub drafts: bool,
    /// The label that approves the commit of a fork. Default: `stagely-approve`.
    pub approval_label: String,
    /// How often open pull requests are compared with what core knows. Default: 5m.
    #[serde(with = "humantime_serde")]
    pub reconcile_interval: Duration,
    /// The shortest time between two edits of one comment. Default: 5s.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// Most comments and statuses written in a minute, over all projects. Default: 80, GitHub's own limit.
    pub writes_per_minute: NonZeroU32,
    /// Most comments written in an hour, over all projects. Default: 500, GitHub's own limit.
    pub comments_per_hour: NonZeroU32,
}

impl Default for GithubConfig {
    fn default() -> Self {
        Self {
            api_url: Url::parse("https://api.github.com").expect("it is a URL"),
            clone_url: None,
            app_id: None,
            private_key_file: None,
            token_file: None,
            webhook_secret_file: None,
            drafts: false,
            approval_label: "stagely-approve".to_owned(),
            reconcile_interval: Duration::from_mins(5),
            report_interval: Duration::from_secs(5),
            writes_per_minute: NonZeroU32::new(80).expect("80 is not zero"),
            comments_per_hour: NonZeroU32::new(500).expect("500 is not zero"),
        }
    }
}

/// What core proves to GitHub with who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GithubCredentials {
    /// The key of a GitHub App.
    App,
    /// A token.
    Token,
    /// Nothing: only what is public can be read.
    None,
}

impl GithubConfig {
    /// Where `repository` is cloned from.
    pub fn clone_address(&self, repository: &GithubRepository) -> Url {
        let mut url = self.clone_url.clone().unwrap_or_else(|| self.web_url());
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{repository}.git"));
        url
    }

    /// What people see the repositories at.
    fn web_url(&self) -> Url {
        let mut url = self.api_url.clone();
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/api/v3").unwrap_or(path).to_owned();
        url.set_path(&path);
        let host = url.host_str().unwrap_or_default().to_owned();
        // `api.github.com`, and `api.NAME.ghe.com` of GitHub Enterprise Cloud.
        if let Some(host) = host.strip_prefix("api.")
            && (host == "github.com" || host.ends_with(".ghe.com"))
        {
            // The host of one URL is that of another.
            let _ = url.set_host(Some(host));
        }
        url
    }

    /// What core proves to GitHub with who it is.
    pub fn credentials(&self) -> GithubCredentials {
        if self.app_id.is_some() {
            GithubCredentials::App
        } else if self.token_file.is_some() || has_variable("STAGELY_GITHUB_TOKEN") {
            GithubCredentials::Token
        } else {
            GithubCredentials::None
        }
    }

    /// Reads the secret of the webhooks; `None` where there is none.
    ///
    /// # Errors
    /// [`ConfigError`], naming the setting.
    pub fn webhook_secret(&self) -> Result<Option<SecretString>, ConfigError> {
        let key = "github.webhook-secret-file";
        let Some(path) = &self.webhook_secret_file else {
            let secret = std::env::var("STAGELY_GITHUB_WEBHOOK_SECRET").ok();
            return Ok(secret.filter(|secret| !secret.is_empty()).map(SecretString::from));
        };
        read_secret(key, path).map(Some)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, problem: &str| Err(ConfigError::Value { key, problem: problem.to_owned() });
        let has_key = self.private_key_file.is_some() || has_variable("STAGELY_GITHUB_PRIVATE_KEY");
        if self.app_id.is_some() && !has_key {
            let problem = "is missing although github.app-id is set; STAGELY_GITHUB_PRIVATE_KEY may \
                           hold the key, too";
            return wrong("github.private-key-file", problem);
        }
        if self.private_key_file.is_some() && self.app_id.is_none() {
            return wrong("github.app-id", "is missing although github.private-key-file is set");
        }
        for (key, url) in
            [("github.api-url", Some(&self.api_url)), ("github.clone-url", self.clone_url.as_ref())]
        {
            url.map_or(Ok(()), |url| check_url(key, url))?;
        }
        if self.approval_label.is_empty() {
            return wrong("github.approval-label", "is empty; name a label");
        }
        if self.reconcile_interval.is_zero() {
            return wrong("github.reconcile-interval", "must be more than 0s");
        }
        if self.report_interval.is_zero() {
            return wrong("github.report-interval", "must be more than 0s");
        }
        Ok(())
    }
}

fn has_variable(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Reads a secret that a setting names the file of.
fn read_secret(key: &'static str, path: &Path) -> Result<SecretString, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::SecretFile {
        key,
        path: path.to_owned(),
        source,
    })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        let problem = format!("{} is empty", path.display());
        return Err(ConfigError::Value { key, problem });
    }
    Ok(SecretString::from(text))
}

/// One of `[[projects]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProjectConfig {
    /// `owner/name` of the repository at GitHub.
    pub github: GithubRepository,
    /// The project's name. Default: made of the repository's.
    #[serde(default)]
    pub name: Option<String>,
    /// A file that holds a token for this repository alone. Default: what `[github]` says.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// What becomes of pull requests from forks: `approval`, `never` or `known-contributors`. Default:
    /// `approval`.
    #[serde(default)]
    pub forks: ForkPolicy,
    /// Most machines that work for it at once. Default: as many as there are.
    #[serde(default)]
    pub max_concurrent: Option<NonZeroU32>,
}

impl ProjectConfig {
    /// Reads the repository's own token; `None` where it has none.
    ///
    /// # Errors
    /// [`ConfigError`], naming the setting.
    pub fn token(&self) -> Result<Option<SecretString>, ConfigError> {
        let path = self.token_file.as_deref();
        path.map(|path| read_secret("projects.token-file", path)).transpose()
    }
}

impl From<SettingError> for ConfigError {
    fn from(SettingError { key, problem }: SettingError) -> Self {
        Self::Value { key, problem }
    }
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the line or setting.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        let heartbeat = self.agents.heartbeat_interval;
        if heartbeat.as_secs() == 0 || heartbeat.subsec_nanos() != 0 {
            return Err(ConfigError::Value {
                key: "agents.heartbeat-interval",
                problem: "must be whole seconds, at least 1s".to_owned(),
            });
        }
        // The image's name is checked here and not at the first build, an hour later.
        let sample = format!("{}/project/environment:build", self.registry.url);
        if sample.parse::<stagely_protocol::ImageRef>().is_err() {
            return Err(ConfigError::Value {
                key: "registry.url",
                problem: format!(
                    "{:?} is not a registry; write host:port or host:port/path, without https://",
                    self.registry.url
                ),
            });
        }
        self.provider_tables().check()?;
        self.check_reachable()?;
        self.check_prices()?;
        let builders = self.fleet(Fleet::Builder);
        let is_qemu = |arch: &Arch| builders.provider_of(*arch) == Some(ProviderName::Qemu);
        let has_image = |arch: &Arch| self.qemu.image(*arch).is_some();
        if Arch::ALL.iter().any(is_qemu) && !Arch::ALL.iter().any(has_image) {
            return Err(ConfigError::Value {
                key: "qemu.image-amd64",
                problem: "is missing although builders are launched by qemu; name a folder that \
                          scripts/golden-image has made, or set qemu.image-arm64"
                    .to_owned(),
            });
        }
        self.github.check()?;
        self.check_projects()?;
        self.warm_up.check()
    }

    fn check_prices(&self) -> Result<(), ConfigError> {
        let keys = ["builders.max-price", "previews.max-price", "testers.max-price"];
        for (fleet, key) in Fleet::ALL.into_iter().zip(keys) {
            if self.fleet(fleet).max_price == Some(Usd(0)) {
                let problem = "must be more than 0, since nothing costs nothing; leave it out for the price on \
                               demand, or set market = \"on-demand\"";
                return Err(ConfigError::Value { key, problem: problem.to_owned() });
            }
        }
        Ok(())
    }

    fn check_projects(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem| Err(ConfigError::Value { key, problem });
        let (mut names, mut repositories) = (BTreeSet::new(), BTreeSet::new());
        for project in &self.projects {
            if !repositories.insert(project.github.as_str().to_ascii_lowercase()) {
                return wrong("projects.github", format!("{} is there twice", project.github));
            }
            let Some(name) = &project.name else { continue };
            if let Err(error) = name.parse::<Name>() {
                return wrong("projects.name", error.problem);
            }
            if !names.insert(name) {
                return wrong("projects.name", format!("{name} is there twice"));
            }
        }
        Ok(())
    }

    /// What the agent of `machine` is told.
    pub fn agent_config(&self, machine: MachineId, token: SecretString) -> AgentConfig {
        AgentConfig {
            core_url: self.core.url(),
            agent_id: machine.wire(),
            token,
            work_dir: PathBuf::from(stagely_protocol::agent_config::DEFAULT_WORK_DIR),
            docker_host: None,
            run_dir: None,
            watch_spot: false,
            give_up_after: self.agents.give_up_after,
            kill_grace: self.agents.kill_grace,
        }
    }

    /// Who launches machines of a fleet, and how they are bought.
    pub fn fleet(&self, fleet: Fleet) -> FleetConfig {
        let builders = &self.builders;
        let builders = FleetConfig {
            provider: Some(builders.provider),
            amd64: builders.amd64,
            arm64: builders.arm64,
            market: builders.market,
            max_price: builders.max_price,
        };
        match fleet {
            Fleet::Builder => builders,
            Fleet::Preview => self.previews.or(&builders),
            Fleet::Tester => self.testers.or(&builders),
        }
    }

    /// Who launches builders of which arch, as far as the configuration knows what a provider has.
    fn launchable(&self) -> BTreeMap<Arch, ProviderName> {
        let builders = self.fleet(Fleet::Builder);
        let launchable = Arch::ALL.into_iter().filter_map(|arch| {
            let provider = builders.provider_of(arch)?;
            self.provider_tables()
                .can_launch(provider, Fleet::Builder, arch)
                .then_some((arch, provider))
        });
        launchable.collect()
    }

    /// What providers are made of.
    pub fn provider_tables(&self) -> ProviderTables<'_> {
        ProviderTables {
            local: &self.local,
            aws: &self.aws,
            digitalocean: &self.digitalocean,
            qemu: &self.qemu,
        }
    }

    /// The providers that some fleet names.
    pub fn providers(&self) -> BTreeSet<ProviderName> {
        let fleets = Fleet::ALL.map(|fleet| self.fleet(fleet));
        fleets
            .iter()
            .flat_map(|fleet| Arch::ALL.map(|arch| fleet.provider_of(arch)))
            .flatten()
            .collect()
    }

    /// The limits of [`state`](stagely_state).
    pub fn limits(&self) -> Limits {
        Limits {
            max_concurrent: self.builders.max_concurrent.get(),
            max_attempts: self.builders.max_attempts.get(),
            boot: self.builders.boot_limit,
            reconnect_grace: self.agents.reconnect_grace,
            job_grace: self.builders.job_grace,
            lease: self.builders.lease,
            cache_export: self.builders.cache_export_limit,
            planned_at_once: PLANNED_AT_ONCE,
            planning: self.builders.planning_limit,
            priorities: self.priorities,
            launchable: self.launchable(),
            capacity_wait: self.builders.capacity_wait,
        }
    }
}
