//! What the commands that start a run have in common: where it goes on, what opens the repository, and
//! how they end.

use std::collections::BTreeMap;
use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::SecretString;

use super::follow::{End, follow};
use super::outcome::report;
use super::registry;
use crate::api::RunView;
use crate::cli::connect::{ServerArgs, state_folder};
use crate::cli::embedded::{Embedded, builders_of_this_machine};
use crate::cli::settings::Settings;
use crate::client::{Client, ClientError};
use crate::config::RegistryConfig;

/// What opens the repository.
#[derive(Args, Debug)]
pub struct CloneTokenArgs {
    /// A file that holds a token for the repository; the variable `STAGELY_CLONE_TOKEN` may hold one too
    #[arg(long, value_name = "FILE")]
    clone_token_file: Option<PathBuf>,
}

impl CloneTokenArgs {
    /// The token; `None` where none was given.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(in crate::cli) fn read(&self) -> anyhow::Result<Option<SecretString>> {
        match &self.clone_token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token in {}", path.display()))?;
                Ok(Some(text.trim_end().into()))
            }
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
    /// A build argument for every build; KEY alone takes the value from the environment, where no
    /// other user of this machine sees it. May be repeated
    #[arg(long = "set", value_name = "KEY[=VALUE]", value_parser = parse_set)]
    set: Vec<(String, SecretString)>,
}

impl SetArgs {
    /// The last value of each.
    pub(in crate::cli) fn map(&self) -> BTreeMap<String, SecretString> {
        self.set.iter().cloned().collect()
    }
}

fn parse_set(text: &str) -> Result<(String, SecretString), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.into())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value.into())),
            Err(_) => Err(format!("{text} has no `=VALUE`, and is not in the environment either")),
        },
    }
}

/// Where a run goes on, and what is shown of it.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// Start the run and leave; print its id. Needs --server or --data-dir
    #[arg(long)]
    pub(in crate::cli) detach: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) server: ServerArgs,
    #[command(flatten)]
    settings: Settings,
}

/// Where the run goes on.
#[derive(Debug)]
pub(in crate::cli) enum Place {
    Server(Client),
    Here(Embedded),
}

impl Place {
    pub(in crate::cli) const fn client(&self) -> &Client {
        match self {
            Self::Server(client) | Self::Here(Embedded { client, .. }) => client,
        }
    }

    async fn leave(self) -> anyhow::Result<()> {
        match self {
            Self::Server(_) => Ok(()),
            Self::Here(embedded) => embedded.stop().await,
        }
    }
}

impl StartArgs {
    /// The core that was named; `None`: the run goes on in this process.
    ///
    /// # Errors
    /// Those of [`ServerArgs::named`]; a run in this process that is to go on without it.
    pub(in crate::cli) fn named(&self) -> anyhow::Result<Option<Client>> {
        let server = self.server.named()?;
        if self.detach && server.is_none() {
            bail!("--detach needs a core that goes on: name one with --server or --data-dir");
        }
        Ok(server)
    }

    /// The core that was named, or one in this process.
    ///
    /// # Errors
    /// What keeps core from starting.
    pub(in crate::cli) async fn place(&self, server: Option<Client>) -> anyhow::Result<Place> {
        if let Some(client) = server {
            return Ok(Place::Server(client));
        }
        let mut config = self.settings.read()?;
        if self.settings.config.is_none() && self.settings.max_concurrent.is_none() {
            config.builders.max_concurrent = builders_of_this_machine();
        }
        if config.registry == RegistryConfig::default() {
            let host = config.local.docker_host.as_deref();
            config.registry.url = registry::ensure(host).await?;
        }
        // Starting core is a large future, and every command that starts a run would hold it.
        let folder = state_folder()?;
        let here = Box::pin(Embedded::start_when_free(config, &folder));
        Ok(Place::Here(here.await?))
    }

    /// Starts a run by `start`, and shows it to its end.
    ///
    /// # Errors
    /// What kept the run from starting, or from being followed to its end.
    pub(in crate::cli) async fn carry_out(
        &self,
        place: Place,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<ExitCode> {
        match self.start_and_follow(&place, start).await {
            // Builders notice within a minute that their core is gone, and end.
            Ok(End::Left(code)) => Ok(code),
            Ok(End::Over(code)) => place.leave().await.map(|()| code),
            Err(error) => {
                // The first error is the one to tell.
                let _ = place.leave().await;
                Err(error)
            }
        }
    }

    async fn start_and_follow(
        &self,
        place: &Place,
        start: impl AsyncFnOnce(&Client) -> Result<RunView, ClientError>,
    ) -> anyhow::Result<End> {
        let run = start(place.client()).await?;
        if self.detach {
            self.print(&run, |run| run.id.to_string())?;
            return Ok(End::Over(ExitCode::SUCCESS));
        }
        let goes_on_alone = matches!(place, Place::Server(_));
        follow(place.client(), run, goes_on_alone, |run| self.print(run, report)).await
    }

    fn print(&self, run: &RunView, text: impl Fn(&RunView) -> String) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string_pretty(run)? } else { text(run) };
        writeln!(stdout(), "{text}")?;
        Ok(())
    }
}
