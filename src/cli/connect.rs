//! Finds the core for a command: by address, by data folder, or in a `stagely run` of this user.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::SecretString;
use url::Url;

use super::output::note;
use crate::client::Client;
use crate::core::{ADDRESS_FILE, ADMIN_TOKEN_FILE};

/// The time limit of a connection to a core of this machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The address of core and the token for it.
#[derive(Args, Debug, Default)]
pub struct ServerArgs {
    /// The address of core. The token comes from `STAGELY_TOKEN` or --token-file
    #[arg(long, value_name = "URL", env = "STAGELY_SERVER", help_heading = "Server")]
    pub server: Option<Url>,
    /// A file with the API token, for --server
    #[arg(long, value_name = "FILE", env = "STAGELY_TOKEN_FILE", help_heading = "Server")]
    pub token_file: Option<PathBuf>,
    /// The data folder of a core on this machine, instead of --server. Its address and admin token are
    /// read from there
    #[arg(long, value_name = "FOLDER", help_heading = "Server")]
    pub data_dir: Option<PathBuf>,
}

impl ServerArgs {
    /// The core named by the options; `None` if there is none. A folder takes precedence over an address,
    /// because an address can come from the environment.
    ///
    /// # Errors
    /// The token is missing or cannot be read; the address is invalid; no core runs on the folder.
    pub fn named(&self) -> anyhow::Result<Option<Client>> {
        if let Some(folder) = &self.data_dir {
            return running_on(folder)?.map(Some).with_context(|| no_core(folder));
        }
        let Some(server) = &self.server else { return Ok(None) };
        if !matches!(server.scheme(), "http" | "https") {
            bail!("--server {server}: must start with https:// or http://");
        }
        Ok(Some(Client::new(server.clone(), self.token()?)?.with_waits_printed(note)))
    }

    fn token(&self) -> anyhow::Result<SecretString> {
        if let Some(path) = &self.token_file {
            return read_token(path);
        }
        // Not an option: every user of the machine can read arguments.
        match std::env::var("STAGELY_TOKEN") {
            Ok(token) if !token.is_empty() => Ok(token.into()),
            _ => bail!(
                "no token for --server: set STAGELY_TOKEN, or STAGELY_TOKEN_FILE to a file that \
                 contains it (`stagely token create` creates one)"
            ),
        }
    }

    /// The core named by the options, or the one in a `stagely run` of this user.
    ///
    /// # Errors
    /// There is no such core.
    pub fn running(&self) -> anyhow::Result<Client> {
        if let Some(client) = self.named()? {
            return Ok(client);
        }
        let folder = state_folder()?;
        running_of_this_user()?.into_iter().next().with_context(|| no_core(&folder))
    }

    /// The core named by the options, or those in all `stagely run` of this user.
    ///
    /// # Errors
    /// There is no such core.
    pub fn all_running(&self) -> anyhow::Result<Vec<Client>> {
        if let Some(client) = self.named()? {
            return Ok(vec![client]);
        }
        let running = running_of_this_user()?;
        if running.is_empty() {
            bail!(no_core(&state_folder()?));
        }
        Ok(running)
    }
}

/// The data folder of the core inside the `number`th of several `stagely run` at the same time, from 1.
///
/// # Errors
/// The user has no home directory.
pub(super) fn parallel_folder(number: usize) -> anyhow::Result<PathBuf> {
    let first = state_folder()?;
    Ok(if number == 1 { first } else { first.join("parallel").join(number.to_string()) })
}

/// The data folders that cores inside `stagely run` have used.
///
/// # Errors
/// The user has no home directory.
pub(super) fn used_folders() -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = vec![state_folder()?];
    for number in 2.. {
        let folder = parallel_folder(number)?;
        if !folder.exists() {
            break;
        }
        folders.push(folder);
    }
    Ok(folders)
}

/// The cores in all `stagely run` of this user.
fn running_of_this_user() -> anyhow::Result<Vec<Client>> {
    let mut running = Vec::new();
    for folder in used_folders()? {
        // The file of a command that was killed is still there.
        running.extend(running_on(&folder)?.filter(|client| listens(client.server())));
    }
    Ok(running)
}

/// Whether something accepts connections at the address of a core on this machine.
pub(super) fn listens(server: &Url) -> bool {
    let addresses = server.socket_addrs(|| None).unwrap_or_default();
    addresses.iter().any(|address| TcpStream::connect_timeout(address, CONNECT_LIMIT).is_ok())
}

fn no_core(folder: &Path) -> String {
    format!(
        "no core runs on {}; name one with --server, or with --data-dir if it runs on this machine",
        folder.display()
    )
}

/// The core that runs on `data_dir`; `None` if there is none.
///
/// # Errors
/// The files of core cannot be read.
pub fn running_on(data_dir: &Path) -> anyhow::Result<Option<Client>> {
    let path = data_dir.join(ADDRESS_FILE);
    let address = match std::fs::read_to_string(&path) {
        Ok(address) => address,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let server = address.trim().parse().with_context(|| format!("{}", path.display()))?;
    let token = read_token(&data_dir.join(ADMIN_TOKEN_FILE))?;
    Ok(Some(Client::new(server, token)?.with_waits_printed(note)))
}

/// Reads the token in a file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn read_token(path: &Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the token in {}", path.display()))?;
    Ok(text.trim_end().into())
}

/// The first data folder of cores inside `stagely run`: `$XDG_STATE_HOME/stagely`, or the system's equivalent.
///
/// # Errors
/// The user has no home directory.
pub fn state_folder() -> anyhow::Result<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir);
    Ok(folder.context("this user has no home directory: set XDG_STATE_HOME")?.join("stagely"))
}
