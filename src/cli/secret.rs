//! `stagely secret`: the secrets that the services of a project's previews get.

use std::io::{IsTerminal as _, Read as _, Write as _, stdin, stdout};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret as _, SecretString};

use super::connect::ServerArgs;
use super::core_handle::CoreHandle;
use super::output::{local_time, print};
use super::prompt::hidden_line;
use super::table::table;
use crate::api::{SECRET_BYTES_MAX, SecretView, SetSecret};
use crate::client::Client;

/// Input of this size is refused, whatever it ends with: what follows is not known.
const INPUT_BYTES_MAX: u64 = 2 * SECRET_BYTES_MAX as u64;

/// Manages the secrets of projects, which the services of previews get
#[derive(Args, Debug)]
pub struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Subcommand, Debug)]
enum SecretCommand {
    /// Sets a secret: the value is read from standard input, or asked for on a terminal
    ///
    /// Line ends after the value do not belong to it. Previews get the value with their next deployment. Nobody can read it
    /// from core.
    Set {
        /// The project's name
        #[arg(value_name = "PROJECT")]
        project: String,
        /// The name of the environment variable, which `preview.secrets` of stagely.yaml names
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Lists the names of a project's secrets, and when each was set
    List {
        /// The project's name
        #[arg(value_name = "PROJECT")]
        project: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Removes a secret. Deployments that need it fail from then on
    Remove {
        /// The project's name
        #[arg(value_name = "PROJECT")]
        project: String,
        /// The name of the secret
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Runs `stagely secret`.
///
/// # Errors
/// Core cannot be reached or refuses; the value cannot be read; standard output cannot be written.
pub async fn secret(arguments: SecretArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        SecretCommand::Set { project, name, server } => {
            let secret = SetSecret { value: value(&name).await? };
            let set = async |client: &Client| client.set_secret(&project, &name, &secret).await;
            let (core, _) = Box::pin(CoreHandle::find(&server, set)).await?;
            core.close().await?;
            writeln!(stdout(), "{name} is set for the next deployments of {project}")?;
            Ok(ExitCode::SUCCESS)
        }
        SecretCommand::List { project, json, server } => {
            let list = async |client: &Client| client.secrets(&project).await;
            let (core, secrets) = Box::pin(CoreHandle::find(&server, list)).await?;
            core.close().await?;
            print(json, &secrets, |secrets| secrets_table(secrets))
        }
        SecretCommand::Remove { project, name, server } => {
            let remove = async |client: &Client| client.remove_secret(&project, &name).await;
            let (core, ()) = Box::pin(CoreHandle::find(&server, remove)).await?;
            core.close().await?;
            writeln!(stdout(), "{name} of {project} is removed")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn value(name: &str) -> anyhow::Result<SecretString> {
    let value = if stdin().is_terminal() {
        let typed = hidden_line(&format!("Value of {name} (not shown):")).await;
        typed.context("cannot read the value from the terminal")?.context("nothing is set")?
    } else {
        piped_value()?
    };
    anyhow::ensure!(!value.expose_secret().is_empty(), "the value is empty");
    Ok(value)
}

fn piped_value() -> anyhow::Result<SecretString> {
    let mut bytes = Vec::new();
    let read = stdin().lock().take(INPUT_BYTES_MAX).read_to_end(&mut bytes);
    let is_cut = read.context("cannot read standard input")? as u64 == INPUT_BYTES_MAX;
    while bytes.ends_with(b"\n") || bytes.ends_with(b"\r") {
        bytes.pop();
    }
    anyhow::ensure!(
        !is_cut && bytes.len() <= SECRET_BYTES_MAX,
        "the value is longer than {} KiB",
        SECRET_BYTES_MAX / 1024
    );
    let text = String::from_utf8(bytes);
    Ok(SecretString::from(text.ok().context("the value on standard input is not UTF-8 text")?))
}

fn secrets_table(secrets: &[SecretView]) -> String {
    if secrets.is_empty() {
        return "no secrets".to_owned();
    }
    let rows = secrets.iter().map(|secret| [secret.name.clone(), local_time(secret.set_at)]);
    table(["SECRET", "SET"], rows)
}
