//! Starts, ends and lists machines. A provider's quirks stay in its own file.

pub mod aws;
pub mod catalog;
pub mod digitalocean;
pub mod local;
pub mod qemu;

#[cfg(test)]
mod fixtures;
pub mod settings;

mod processes;
mod user_data;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use stagely_protocol::Arch;
use stagely_protocol::agent_config::AgentConfig;
use stagely_state::comparison::Listed;
use stagely_state::ids::{CoreId, JobId, MachineId};
use stagely_state::{Fleet, MachineSize, Market, Placement, ProviderName, Usd};
use thiserror::Error;
use url::Url;

use aws::{AwsProvider, AwsSettings};
use catalog::Catalog;
use digitalocean::{DigitalOcean, DigitalOceanSettings};
use local::{LocalProvider, LocalSettings};
use qemu::{QemuProvider, QemuSettings};
use settings::{ImageKind, MarketPolicy, SettingError, is_this_host};

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
    pub job: Option<JobId>,
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

    /// What its machines boot from.
    fn image_kind(&self) -> ImageKind {
        ImageKind::Golden
    }

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
    pub fn only(name: ProviderName, provider: Arc<dyn Provider>) -> Self {
        Self(BTreeMap::from([(name, provider)]))
    }

    /// Makes `names`. Machines are tagged with `core_id`; `data_dir` holds what local ones need.
    ///
    /// # Errors
    /// A provider whose table lacks something.
    pub async fn new(
        names: &BTreeSet<ProviderName>,
        tables: ProviderTables<'_>,
        core_id: &CoreId,
        data_dir: &Path,
    ) -> anyhow::Result<Self> {
        let mut providers = BTreeMap::new();
        for name in names {
            let provider = tables.make(*name, core_id, data_dir).await;
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

/// The tables of `stagely.toml` that providers are made of.
#[derive(Clone, Copy, Debug)]
pub struct ProviderTables<'a> {
    /// `[local]`.
    pub local: &'a LocalSettings,
    /// `[aws]`.
    pub aws: &'a AwsSettings,
    /// `[digitalocean]`.
    pub digitalocean: &'a DigitalOceanSettings,
    /// `[qemu]`.
    pub qemu: &'a QemuSettings,
}

impl ProviderTables<'_> {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check(&self) -> Result<(), SettingError> {
        self.aws.check()?;
        self.digitalocean.check()
    }

    /// Whether `provider` could launch a machine of `fleet` and `arch`, as far as the settings say.
    pub fn can_launch(&self, provider: ProviderName, fleet: Fleet, arch: Arch) -> bool {
        let has = |catalog: Result<Catalog, SettingError>| {
            catalog.is_ok_and(|catalog| catalog.has(fleet, arch))
        };
        match provider {
            ProviderName::Local => arch == Arch::of_this_program(),
            ProviderName::Aws => has(self.aws.catalog()),
            ProviderName::DigitalOcean => has(self.digitalocean.catalog()),
            ProviderName::Qemu => self.qemu.image(arch).is_some(),
        }
    }

    /// The network that machines of `provider` are on. Those of a cloud whose API is on this host are on this
    /// host as well.
    pub fn network(&self, provider: ProviderName) -> Network {
        let on_this_host = match provider {
            ProviderName::Local => true,
            ProviderName::Qemu => return Network::Guest { host: qemu::HOST_ADDRESS },
            ProviderName::Aws => {
                self.aws.endpoint.as_ref().is_some_and(|url| is_this_host(url.host()))
            }
            ProviderName::DigitalOcean => is_this_host(self.digitalocean.api_url.host()),
        };
        if on_this_host { Network::ThisHost } else { Network::Remote }
    }

    async fn make(
        &self,
        name: ProviderName,
        core_id: &CoreId,
        data_dir: &Path,
    ) -> anyhow::Result<Arc<dyn Provider>> {
        match name {
            ProviderName::Local => {
                let program = match &self.local.agent_program {
                    Some(program) => program.clone(),
                    None => std::env::current_exe().context("cannot find this program's file")?,
                };
                let folder = std::path::absolute(data_dir.join("machines"))?;
                let docker_host = self.local.docker_host.clone();
                Ok(Arc::new(LocalProvider::new(core_id.clone(), program, folder, docker_host)))
            }
            ProviderName::Qemu => {
                let folder = self.qemu.folder.clone().unwrap_or_else(|| data_dir.join("machines"));
                let folder = std::path::absolute(folder)?;
                let path = std::env::var_os("PATH").unwrap_or_default();
                let settings = self.qemu.clone();
                Ok(Arc::new(QemuProvider::new(core_id.clone(), folder, settings, path)))
            }
            ProviderName::Aws => {
                let (client, _) = aws::connect(self.aws).await?;
                Ok(Arc::new(AwsProvider::new(client, self.aws, core_id.clone())?))
            }
            ProviderName::DigitalOcean => {
                Ok(Arc::new(DigitalOcean::new(self.digitalocean, core_id.clone())?))
            }
        }
    }
}

/// Where a provider's machines are, as core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// On core's own host: its loopback addresses are theirs.
    ThisHost,
    /// Guests of core's own host.
    Guest {
        /// The address at which they reach the host's loopback.
        host: &'static str,
    },
    /// Elsewhere.
    Remote,
}
