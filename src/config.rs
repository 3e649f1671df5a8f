//! `stagely.toml`: every setting of core, with its unit and default.
//!
//! `stagely.sample.toml` at the repository's root shows each setting with its default. A test compares them.

mod addresses;
mod agents;
mod budget;
mod builders;
mod core;
mod error;
mod fleets;
mod github;
mod previews;
mod prices;
mod projects;
mod registry;
mod schedule;
pub(crate) mod secrets;
mod sizes;
mod storage;
mod warm_up;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;
use stagely_protocol::{AgentConfig, Arch};
use stagely_provider::ProviderTables;
use stagely_provider::aws::AwsSettings;
use stagely_provider::digitalocean::DigitalOceanSettings;
use stagely_provider::local::LocalSettings;
use stagely_provider::qemu::QemuSettings;
use stagely_state::ids::MachineId;
use stagely_state::{Fleet, Limits, Priorities, ProviderName, Usd};

pub use agents::AgentsConfig;
pub use budget::BudgetConfig;
pub use builders::BuilderConfig;
pub use core::CoreConfig;
pub use error::ConfigError;
pub use fleets::{FleetConfig, TesterConfig};
pub use github::{GithubConfig, GithubCredentials};
pub use previews::PreviewConfig;
pub use prices::PriceConfig;
pub use projects::ProjectConfig;
pub use registry::{RegistryConfig, check_registry};
pub use schedule::Schedule;
pub use sizes::ByteSize;
pub use storage::{LogsConfig, RetentionConfig};
pub use warm_up::WarmUpConfig;

/// The most runs that are planned at once. Each takes a thread and a checkout, and mostly waits for a
/// server.
const PLANNED_AT_ONCE: usize = 8;

/// The settings of `stagely.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    pub core: CoreConfig,
    pub registry: RegistryConfig,
    pub builders: BuilderConfig,
    pub previews: PreviewConfig,
    pub testers: TesterConfig,
    pub agents: AgentsConfig,
    pub local: LocalSettings,
    pub aws: AwsSettings,
    #[serde(rename = "digitalocean")]
    pub digitalocean: DigitalOceanSettings,
    pub qemu: QemuSettings,
    pub logs: LogsConfig,
    pub retention: RetentionConfig,
    pub warm_up: WarmUpConfig,
    pub github: GithubConfig,
    pub priorities: Priorities,
    pub prices: PriceConfig,
    pub budget: BudgetConfig,
    pub projects: Vec<ProjectConfig>,
}

/// `error`, which shows a line of `text`, with asterisks in place of passwords in URLs.
fn without_passwords(mut error: toml::de::Error, text: &str) -> toml::de::Error {
    let mut shown = String::with_capacity(text.len());
    for part in text.split_inclusive(['"', '\'', '\n']) {
        let start = part.find("://").map_or(0, |scheme| scheme + "://".len());
        match part.rfind('@').filter(|at| *at > start) {
            // The same number of bytes, because the error's position counts them.
            Some(at) => shown.extend([&part[..start], &"*".repeat(at - start), &part[at..]]),
            None => shown.push_str(part),
        }
    }
    error.set_input(Some(&shown));
    error
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
            source: Box::new(without_passwords(source, &text)),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks the values that the types cannot check.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.agents.check()?;
        self.previews.check()?;
        self.registry.check()?;
        self.provider_tables().check()?;
        self.check_reachable()?;
        self.check_prices()?;
        self.check_budget()?;
        self.check_qemu()?;
        self.github.check()?;
        projects::check(&self.projects)?;
        self.warm_up.check()
    }

    fn check_qemu(&self) -> Result<(), ConfigError> {
        for fleet in Fleet::ALL.map(|fleet| self.fleet(fleet)) {
            for provider in Arch::ALL.into_iter().filter_map(|arch| fleet.provider_of(arch)) {
                self.provider_tables().check_launches(provider)?;
            }
        }
        Ok(())
    }

    fn check_prices(&self) -> Result<(), ConfigError> {
        let keys = ["builders.max-price", "previews.max-price", "testers.max-price"];
        for (fleet, key) in Fleet::ALL.into_iter().zip(keys) {
            if self.fleet(fleet).max_price == Some(Usd(0)) {
                let problem = "must be more than 0; leave it out for the on-demand price, or set market = \
                               \"on-demand\"";
                return Err(ConfigError::Value { key, problem: problem.to_owned() });
            }
        }
        Ok(())
    }

    pub fn agent_config(&self, machine: MachineId, token: SecretString) -> AgentConfig {
        AgentConfig {
            core_url: self.core.url(),
            agent_id: machine.wire(),
            token,
            work_dir: PathBuf::from(stagely_protocol::agent_config::DEFAULT_WORK_DIR),
            docker_host: None,
            run_dir: None,
            parent: None,
            user_logins: false,
            watch_spot: false,
            give_up_after: self.agents.give_up_after,
            kill_grace: self.agents.kill_grace,
        }
    }

    /// The providers and the pricing of a fleet.
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
            Fleet::Preview => self.previews.fleet().or(&builders),
            Fleet::Tester => self.testers.fleet().or(&builders),
        }
    }

    /// The provider of `fleet` for each arch that can be launched, as far as the configuration tells.
    fn launchable(&self, fleet: Fleet) -> BTreeMap<Arch, ProviderName> {
        let machines = self.fleet(fleet);
        let launchable = Arch::ALL.into_iter().filter_map(|arch| {
            let provider = machines.provider_of(arch)?;
            self.provider_tables().can_launch(provider, fleet, arch).then_some((arch, provider))
        });
        launchable.collect()
    }

    pub fn provider_tables(&self) -> ProviderTables<'_> {
        ProviderTables {
            local: &self.local,
            aws: &self.aws,
            digitalocean: &self.digitalocean,
            qemu: &self.qemu,
        }
    }

    /// The providers that fleets use.
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
            max_testers: self.testers.max_concurrent.get(),
            max_attempts: self.builders.max_attempts.get(),
            boot: self.builders.boot_limit,
            reconnect_grace: self.agents.reconnect_grace,
            job_grace: self.builders.job_grace,
            lease: self.builders.lease,
            cache_export: self.builders.cache_export_limit,
            planned_at_once: PLANNED_AT_ONCE,
            planning: self.builders.planning_limit,
            priorities: self.priorities,
            launchable: self.launchable(Fleet::Builder),
            launchable_previews: self.launchable(Fleet::Preview),
            launchable_testers: self.launchable(Fleet::Tester),
            capacity_wait: self.builders.capacity_wait,
            capacity_limit: self.builders.capacity_limit,
            previews: self.previews.limits(self.agents.give_up_after),
            prices: self.prices(),
            budget: self.budget.limits(),
        }
    }
}
