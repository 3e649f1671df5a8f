//! `stagely token`: bearer tokens of the API.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;

use super::connect::ServerArgs;
use crate::api::{CreateToken, Role};

/// Makes tokens for the API
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand, Debug)]
enum TokenCommand {
    /// Makes a token and prints it. Core keeps its hash alone, so it is shown only now
    Create {
        /// What it is for
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do
        #[arg(long, value_name = "ROLE")]
        role: Role,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Runs `stagely token`.
///
/// # Errors
/// A core that cannot be asked, or refuses; standard output that cannot be written.
pub async fn token(arguments: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create { name, role, server } = arguments.command;
    let created = server.running()?.create_token(&CreateToken { name, role }).await?;
    writeln!(stdout(), "{}", created.token.expose_secret())?;
    Ok(ExitCode::SUCCESS)
}
