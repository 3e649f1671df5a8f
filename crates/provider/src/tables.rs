//! The tables of `stagely.toml` that configure providers, and what follows from them without asking a provider.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use stagely_protocol::Arch;
use stagely_state::ids::CoreId;
use stagely_state::{Fleet, ProviderName};

use crate::Provider;
use crate::aws::{self, AwsProvider, AwsSettings};
use crate::catalog::Catalog;
use crate::digitalocean::{DigitalOcean, DigitalOceanSettings};
use crate::local::{LocalProvider, LocalSettings};
use crate::qemu::{self, QemuProvider, QemuSettings};
use crate::settings::{SettingError, is_this_host};

/// The tables of `stagely.toml` that configure providers.
#[derive(Clone, Copy, Debug)]
pub struct ProviderTables<'a> {
    pub local: &'a LocalSettings,
    pub aws: &'a AwsSettings,
    pub digitalocean: &'a DigitalOceanSettings,
    pub qemu: &'a QemuSettings,
}

/// The network that a provider's machines are in, as seen from core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Machines are on core's own host and share its loopback addresses.
    ThisHost,
    /// Machines are guests of core's own host.
    Guest {
        /// The address at which guests reach the host's loopback.
        host: &'static str,
    },
    /// Machines are on other hosts.
    Remote,
}

impl ProviderTables<'_> {
    /// Checks the constraints that the types do not express.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check(&self) -> Result<(), SettingError> {
        self.aws.check()?;
        self.digitalocean.check()
    }

    /// Checks that `provider`, which is to launch machines, has the settings for at least one arch.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn check_launches(&self, provider: ProviderName) -> Result<(), SettingError> {
        match provider {
            ProviderName::Qemu => self.qemu.check_images(),
            ProviderName::Local | ProviderName::Aws | ProviderName::DigitalOcean => Ok(()),
        }
    }

    /// The machine types of `provider`; `None` where it has no types of its own.
    ///
    /// # Errors
    /// [`SettingError`], naming the setting.
    pub fn catalog(&self, provider: ProviderName) -> Result<Option<Catalog>, SettingError> {
        match provider {
            ProviderName::Aws => self.aws.catalog().map(Some),
            ProviderName::DigitalOcean => self.digitalocean.catalog().map(Some),
            ProviderName::Local | ProviderName::Qemu => Ok(None),
        }
    }

    /// Whether `provider` sells machines on a spot market.
    pub fn has_spot_market(&self, provider: ProviderName) -> bool {
        provider == ProviderName::Aws
    }

    /// Whether `provider` can launch a machine of `fleet` and `arch`, as far as the settings say.
    pub fn can_launch(&self, provider: ProviderName, fleet: Fleet, arch: Arch) -> bool {
        match provider {
            ProviderName::Local => arch == Arch::of_this_program(),
            ProviderName::Qemu => self.qemu.image(arch).is_some(),
            ProviderName::Aws | ProviderName::DigitalOcean => {
                let catalog = self.catalog(provider).ok().flatten();
                catalog.is_some_and(|catalog| catalog.has(fleet, arch))
            }
        }
    }

    /// The network of `provider`'s machines. A cloud whose API is on this host has its machines here, too.
    pub fn network(&self, provider: ProviderName) -> Network {
        let is_here = match provider {
            ProviderName::Local => true,
            ProviderName::Qemu => return Network::Guest { host: qemu::HOST_ADDRESS },
            ProviderName::Aws => {
                self.aws.endpoint.as_ref().is_some_and(|url| is_this_host(url.host()))
            }
            ProviderName::DigitalOcean => is_this_host(self.digitalocean.api_url.host()),
        };
        if is_here { Network::ThisHost } else { Network::Remote }
    }

    pub(crate) async fn create(
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
                let provider = LocalProvider::new(core_id.clone(), program, folder, docker_host);
                let is_embedded = self.local.is_embedded;
                Ok(Arc::new(if is_embedded { provider.embedded().await? } else { provider }))
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
