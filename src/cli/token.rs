//! `stagely token`: creates bearer tokens for the API.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;

use super::connect::ServerArgs;
use crate::api::{CreateToken, Role};

/// Creates API tokens
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand, Debug)]
enum TokenCommand {
    /// Creates a token and prints it once. Core stores only its hash
    Create {
        /// The token's name, for people
        #[arg(value_name = "NAME")]
        name: String,
        /// The token's role
        #[arg(long, value_name = "ROLE")]
        role: Role,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// Runs `stagely token`.
///
/// # Errors
/// Core cannot be reached or refuses; standard output cannot be written.
pub async fn token(arguments: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create { name, role, server } = arguments.command;
    let created = server.running()?.create_token(&CreateToken { name, role }).await?;
    writeln!(stdout(), "{}", created.token.expose_secret())?;
    Ok(ExitCode::SUCCESS)
}
