//! Options and steps shared by the commands that start a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use secrecy::SecretString;
use stagely_agent::docker::Endpoint;
use stagely_protocol::{FailureReason, RegistryProblem};

use super::follow::{After, FollowEnd, follow};
use super::preview::RunResult;
use super::registry;
use crate::api::RunView;
use crate::cli::connect::{ServerArgs, read_token, state_folder};
use crate::cli::core_handle::CoreHandle;
use crate::cli::embedded::{Embedded, builders_of_this_machine};
use crate::cli::output::{note, print};
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
            config.registry.url = Some(registry::ensure(&endpoint).await?);
        } else {
            registry::check(&config.registry, &endpoint).await?;
        }
        Ok(config)
    }

    /// Starts a run with `start`, and follows it to its end. A preview stays until Ctrl-C if core ends with this command and
    /// `keeps_preview`.
    ///
    /// # Errors
    /// The run cannot start, or cannot be followed to its end.
    pub(in crate::cli) async fn carry_out(
        &self,
        core: CoreHandle,
        keeps_preview: bool,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<ExitCode> {
        match self.start_and_follow(&core, keeps_preview, start).await {
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

    /// Names the options of the registry's user if the registry asked for one and none is configured.
    fn name_missing_login(&self, run: &RunView) {
        let refused = FailureReason::Registry { problem: RegistryProblem::Authentication };
        let is_refused = run.jobs.iter().any(|job| job.reason.as_ref() == Some(&refused));
        if is_refused && self.settings.read().is_ok_and(|config| config.registry.username.is_none())
        {
            note(
                "No user of the registry is configured: name one with --registry-username and \
                 --registry-password-file",
            );
        }
    }

    async fn start_and_follow(
        &self,
        core: &CoreHandle,
        keeps_preview: bool,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<FollowEnd> {
        let run = start(core.client()).await?;
        if self.detach {
            print(self.json, &run, |run| run.id.to_string())?;
            return Ok(FollowEnd::Finished(ExitCode::SUCCESS));
        }
        let after = match core {
            CoreHandle::Running(_) => After::CoreStays,
            CoreHandle::Embedded(_) if keeps_preview => After::PreviewStays,
            CoreHandle::Embedded(_) => After::CoreEnds,
        };
        let print_report = |result: &RunResult| {
            let printed = print(self.json, result, RunResult::text).map(drop);
            if matches!(core, CoreHandle::Embedded(_)) {
                self.name_missing_login(&result.run);
            }
            printed
        };
        follow(core.client(), run, after, print_report).await
    }
}
