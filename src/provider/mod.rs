//! Starts, ends and lists machines. A provider's quirks stay in its own file.

pub mod aws;
pub mod catalog;
mod digitalocean;
mod local;
mod qemu;

mod processes;
mod user_data;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use stagely_agent::config::AgentConfig;
use stagely_agent::protocol::Arch;
use thiserror::Error;
use url::Url;

use crate::config::{Config, MarketPolicy};
use crate::core::state::{Fleet, MachineSize, Market, Placement, ProviderName, Usd};
use crate::ids::MachineId;

pub use digitalocean::{Account, DigitalOcean, RegionImage};
pub use local::LocalProvider;
pub use qemu::QemuProvider;

/// How long a provider may take to end one machine. It is asked again after that.
pub const TERMINATE_LIMIT: Duration = Duration::from_mins(1);

/// What kind of machine is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// What it is for.
    pub fleet: Fleet,
    /// Its processor.
    pub arch: Arch,
    /// How big it is to be.
    pub size: MachineSize,
    /// Which market it is bought on.
    pub market: MarketPolicy,
    /// On demand whatever `market` says: it is the job's last attempt.
    pub on_demand: bool,
    /// The most that it may cost in an hour on the spot market.
    pub max_price: Option<Usd>,
}

/// One way to get a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What the provider calls a machine of the size.
    pub instance_type: String,
    /// A zone, region or subnet; `None`: the provider chooses.
    pub zone: Option<String>,
    /// How it is paid for.
    pub market: Market,
    /// What an hour costs on demand; `None` where nobody has said.
    pub price: Option<Usd>,
    /// The most that it may cost in an hour on the spot market.
    pub max_price: Option<Usd>,
}

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct LaunchRequest {
    /// Our name for it, chosen before the provider is asked. Machines are found again by it.
    pub machine: MachineId,
    /// The job that it is for, for people who look at the provider's own lists.
    pub job: Option<String>,
    /// What it is for.
    pub fleet: Fleet,
    /// Its processor.
    pub arch: Arch,
    /// How big it is to be.
    pub size: MachineSize,
    /// What to try, one after the other. None without one.
    pub candidates: Vec<Candidate>,
    /// What its agent is told.
    pub agent: AgentConfig,
    /// How long it may live unless core says otherwise.
    pub lease: Duration,
    /// The registry, where it has no TLS and the machine's engine must be told so.
    pub insecure_registry: Option<String>,
    /// The agent's program, where the machine boots a stock image and fetches it from core.
    pub binary: Option<AgentBinary>,
}

/// The agent's program, as core serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentBinary {
    /// Its address.
    pub url: Url,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// A launch that came to nothing.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Nothing free at the moment, whatever candidate.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// The provider will refuse again until its owner changes something.
    #[error("{0}")]
    Permanent(String),
    /// The provider wants to be asked less often. Nothing was started.
    #[error("{message}")]
    Throttled {
        /// In its words.
        message: String,
        /// For how long it refuses, if it says so.
        wait: Option<Duration>,
    },
    /// No clear answer: the machine may or may not have been started. Asking again is harmless.
    #[error("{0}")]
    Unclear(String),
}

/// The provider did not do what it was asked. Asking again is harmless.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ProviderError(pub String);

/// A machine that a provider tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub machine: MachineId,
    /// How it is.
    pub state: ListedState,
}

/// How a machine is, as its provider says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedState {
    /// It is there, or on its way, and costs money.
    Live,
    /// It is gone, or going, and nobody has to do anything.
    Gone {
        /// Whether the cloud took it back.
        taken_back: bool,
    },
}

/// How far a provider's list can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Between two looks at it.
    pub interval: Duration,
    /// A machine that was launched less than this ago, or that an earlier core knew less than this ago, may be
    /// missing from the list although it is there.
    pub grace: Duration,
}

/// What a provider has of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The fleet.
    pub fleet: Fleet,
    /// The processor.
    pub arch: Arch,
    /// The size.
    pub size: MachineSize,
    /// What the provider calls it.
    pub instance_type: String,
    /// What an hour costs on demand; `None` where nobody has said.
    pub price: Option<Usd>,
    /// Whether it can be had on the spot market.
    pub spot: bool,
    /// Whether there is such a thing, whatever else keeps it from being launched. Where a provider has nothing of
    /// an arch, its builds are emulated.
    pub exists: bool,
    /// Why it cannot be launched at the moment, for people; `None` where it can.
    pub problem: Option<String>,
}

/// Where machines come from.
#[async_trait]
pub trait Provider: Send + Sync {
    /// What to try for such a machine, one after the other; none where the provider has nothing like it.
    fn candidates(&self, want: &Want) -> Vec<Candidate>;

    /// Starts a machine. One that is there already is success, and is not started again, whichever candidate
    /// it is.
    async fn launch(&self, request: &LaunchRequest) -> Result<Placement, LaunchError>;

    /// Ends a machine and all that runs on it, within [`TERMINATE_LIMIT`]. A machine that is gone is success.
    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError>;

    /// Every machine of this core, also those of an earlier process of it, through all pages.
    async fn list(&self) -> Result<Vec<Listed>, ProviderError>;

    /// How far [`list`](Self::list) can be trusted.
    fn listing(&self) -> Listing;

    /// Asks the provider what it has of what the configuration names.
    async fn describe(&self) -> Result<Vec<Offer>, ProviderError>;
}

/// The providers that the configuration names, or that still have machines.
#[derive(Clone, Default)]
pub struct Providers(BTreeMap<ProviderName, Arc<dyn Provider>>);

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Providers {
    /// One alone.
    #[cfg(test)]
    pub(crate) fn only(name: ProviderName, provider: Arc<dyn Provider>) -> Self {
        Self(BTreeMap::from([(name, provider)]))
    }

    /// Makes `names`. Machines are tagged with `core_id`; `data_dir` holds what local ones need.
    ///
    /// # Errors
    /// A provider whose table lacks something.
    pub async fn new(
        names: &BTreeSet<ProviderName>,
        config: &Config,
        core_id: &str,
        data_dir: &Path,
    ) -> anyhow::Result<Self> {
        let mut providers = BTreeMap::new();
        for name in names {
            let provider = make(*name, config, core_id, data_dir).await;
            providers
                .insert(*name, provider.with_context(|| format!("cannot use provider {name}"))?);
        }
        Ok(Self(providers))
    }

    /// These and `others`.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// One of them.
    pub fn get(&self, name: ProviderName) -> Option<&Arc<dyn Provider>> {
        self.0.get(&name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (ProviderName, &Arc<dyn Provider>)> {
        self.0.iter().map(|(name, provider)| (*name, provider))
    }
}

async fn make(
    name: ProviderName,
    config: &Config,
    core_id: &str,
    data_dir: &Path,
) -> anyhow::Result<Arc<dyn Provider>> {
    match name {
        ProviderName::Local => {
            let program = match &config.local.agent_program {
                Some(program) => program.clone(),
                None => std::env::current_exe().context("cannot find this program's file")?,
            };
            let folder = std::path::absolute(data_dir.join("machines"))?;
            let docker_host = config.local.docker_host.clone();
            Ok(Arc::new(LocalProvider::new(core_id.to_owned(), program, folder, docker_host)))
        }
        ProviderName::Qemu => {
            let folder = config.qemu.folder.clone().unwrap_or_else(|| data_dir.join("machines"));
            let folder = std::path::absolute(folder)?;
            let path = std::env::var_os("PATH").unwrap_or_default();
            Ok(Arc::new(QemuProvider::new(core_id.to_owned(), folder, config.qemu.clone(), path)))
        }
        ProviderName::Aws => {
            let (client, _) = aws::connect(&config.aws).await?;
            Ok(Arc::new(aws::AwsProvider::new(client, &config.aws, core_id.to_owned())?))
        }
        ProviderName::DigitalOcean => {
            Ok(Arc::new(DigitalOcean::new(&config.digitalocean, core_id)?))
        }
    }
}
