//! Options and steps shared by the commands that start a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use secrecy::SecretString;
use stagely_agent::docker::Endpoint;

use super::follow::{FollowEnd, follow};
use super::outcome::report;
use super::registry;
use crate::api::RunView;
use crate::cli::connect::{ServerArgs, read_token, state_folder};
use crate::cli::core_handle::CoreHandle;
use crate::cli::embedded::{Embedded, builders_of_this_machine};
use crate::cli::output::print;
use crate::cli::settings::SettingsArgs;
use crate::client::{Client, ClientError};
use crate::config::{Config, RegistryConfig};

/// The token for the repository.
#[derive(Args, Debug)]
pub struct CloneTokenArgs {
    /// A file with a token for the repository. Default: the variable `STAGELY_CLONE_TOKEN`
    #[arg(long, value_name = "FILE")]
    clone_token_file: Option<PathBuf>,
}

impl CloneTokenArgs {
    /// Reads the token; `None` if there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(in crate::cli) fn read(&self) -> anyhow::Result<Option<SecretString>> {
        match &self.clone_token_file {
            Some(path) => read_token(path).map(Some),
            None => Ok(std::env::var("STAGELY_CLONE_TOKEN")
                .ok()
                .filter(|token| !token.is_empty())
                .map(Into::into)),
        }
    }
}

/// Build arguments of the command line.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// A build argument for every build. KEY alone takes the value from the environment, so that other
    /// users of this machine cannot see it. Can be repeated
    #[arg(long = "set", value_name = "KEY[=VALUE]", value_parser = parse_set)]
    set: Vec<(String, SecretString)>,
}

impl SetArgs {
    /// The last value of each argument.
    pub(in crate::cli) fn map(&self) -> BTreeMap<String, SecretString> {
        self.set.iter().cloned().collect()
    }
}

fn parse_set(text: &str) -> Result<(String, SecretString), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.into())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value.into())),
            Err(_) => Err(format!("{text} has no `=VALUE` and is not set in the environment")),
        },
    }
}

/// Options of the commands that start a run.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// Start the run, print its id and return. Needs --server or --data-dir
    #[arg(long)]
    pub(in crate::cli) detach: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) server: ServerArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl StartArgs {
    /// The core named by the options; `None` if the run needs a core inside this process.
    ///
    /// # Errors
    /// Those of [`ServerArgs::named`]; --detach without a named core.
    pub(in crate::cli) fn named(&self) -> anyhow::Result<Option<Client>> {
        let server = self.server.named()?;
        if self.detach && server.is_none() {
            bail!("--detach needs a core that keeps running: name one with --server or --data-dir");
        }
        Ok(server)
    }

    /// The named core, or a core started inside this process.
    ///
    /// # Errors
    /// Core cannot start.
    pub(in crate::cli) async fn core(&self, server: Option<Client>) -> anyhow::Result<CoreHandle> {
        if let Some(client) = server {
            return Ok(CoreHandle::Running(client));
        }
        // Boxed, because starting core is a large future.
        let embedded = Box::pin(Embedded::start_beside_others(self.embedded_config().await?));
        Ok(CoreHandle::Embedded(embedded.await?))
    }

    /// As [`core`](Self::core), but the core inside this process is the one of this user for which `is_wanted` returns true.
    ///
    /// # Errors
    /// Core cannot start.
    pub(in crate::cli) async fn core_with(
        &self,
        server: Option<Client>,
        is_wanted: impl AsyncFn(&Client) -> Result<bool, ClientError>,
    ) -> anyhow::Result<CoreHandle> {
        if let Some(client) = server {
            return Ok(CoreHandle::Running(client));
        }
        let folder = match Box::pin(CoreHandle::folder_with(is_wanted)).await? {
            Some(folder) => folder,
            // Its answer is the error.
            None => state_folder()?,
        };
        let config = self.embedded_config().await?;
        let embedded = Box::pin(Embedded::start_when_free(config, &folder));
        Ok(CoreHandle::Embedded(embedded.await?))
    }

    /// The configuration of a core inside this process.
    async fn embedded_config(&self) -> anyhow::Result<Config> {
        let mut config = self.settings.read()?;
        if self.settings.config.is_none() && self.settings.max_concurrent.is_none() {
            config.builders.max_concurrent = builders_of_this_machine();
        }
        let endpoint = Endpoint::find(config.local.docker_host.as_deref())?;
        if config.registry == RegistryConfig::default() {
            config.registry.url = registry::ensure(&endpoint).await?;
        }
        Ok(config)
    }

    /// Starts a run with `start`, and follows it to its end.
    ///
    /// # Errors
    /// The run cannot start, or cannot be followed to its end.
    pub(in crate::cli) async fn carry_out(
        &self,
        core: CoreHandle,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<ExitCode> {
        match self.start_and_follow(&core, start).await {
            Ok(FollowEnd::Left(exit_code)) => {
                core.leave().await;
                Ok(exit_code)
            }
            Ok(FollowEnd::Finished(exit_code)) => core.close().await.map(|()| exit_code),
            Err(error) => {
                // Only the first error is reported.
                let _ = core.close().await;
                Err(error)
            }
        }
    }

    async fn start_and_follow(
        &self,
        core: &CoreHandle,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<FollowEnd> {
        let run = start(core.client()).await?;
        if self.detach {
            print(self.json, &run, |run| run.id.to_string())?;
            return Ok(FollowEnd::Finished(ExitCode::SUCCESS));
        }
        let keeps_running = matches!(core, CoreHandle::Running(_));
        let print_report = |run: &RunView| print(self.json, run, report).map(drop);
        follow(core.client(), run, keeps_running, print_report).await
    }
}
