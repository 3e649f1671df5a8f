//! Which core a command speaks with: one that runs somewhere, or one of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::SecretString;
use url::Url;

use crate::client::Client;
use crate::core::{ADDRESS_FILE, ADMIN_TOKEN_FILE};

/// Where core is, and what opens it.
#[derive(Args, Debug, Default)]
pub struct ServerArgs {
    /// Core's address. The token comes from `STAGELY_TOKEN` or --token-file
    #[arg(long, value_name = "URL", env = "STAGELY_SERVER", help_heading = "Server")]
    pub server: Option<Url>,
    /// A file that holds the API token, for --server
    #[arg(long, value_name = "FILE", env = "STAGELY_TOKEN_FILE", help_heading = "Server")]
    pub token_file: Option<PathBuf>,
    /// The data folder of a core that runs on this machine, instead of --server: its address and
    /// admin token lie there
    #[arg(long, value_name = "FOLDER", help_heading = "Server")]
    pub data_dir: Option<PathBuf>,
}

impl ServerArgs {
    /// The core that was named; `None` where none was. A folder, which is only ever named on the
    /// command line, goes before an address, which may come from the environment.
    ///
    /// # Errors
    /// A token that is missing or cannot be read; an address that is none; a folder without a core.
    pub fn named(&self) -> anyhow::Result<Option<Client>> {
        if let Some(folder) = &self.data_dir {
            return running_on(folder)?.map(Some).with_context(|| no_core(folder));
        }
        let Some(server) = &self.server else { return Ok(None) };
        if !matches!(server.scheme(), "http" | "https") {
            bail!("--server {server}: must start with https:// or http://");
        }
        Ok(Some(Client::new(server.clone(), self.token()?)?))
    }

    fn token(&self) -> anyhow::Result<SecretString> {
        if let Some(path) = &self.token_file {
            return read_token(path);
        }
        // Never a flag: arguments are seen by everybody on the machine.
        match std::env::var("STAGELY_TOKEN") {
            Ok(token) if !token.is_empty() => Ok(token.into()),
            _ => bail!(
                "no token for --server: set STAGELY_TOKEN, or STAGELY_TOKEN_FILE to a file that \
                 holds it (`stagely token create` makes one)"
            ),
        }
    }

    /// The core that was named, or the one in a `stagely run` of this user.
    ///
    /// # Errors
    /// When there is none.
    pub fn running(&self) -> anyhow::Result<Client> {
        if let Some(client) = self.named()? {
            return Ok(client);
        }
        let folder = state_folder()?;
        running_on(&folder)?.with_context(|| no_core(&folder))
    }
}

fn no_core(folder: &Path) -> String {
    format!(
        "no core runs on {}; name one with --server, or with --data-dir if it runs on this machine",
        folder.display()
    )
}

/// The core that runs on `data_dir`; `None` if none does.
///
/// # Errors
/// When its files cannot be read.
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
    Ok(Some(Client::new(server, read_token(&data_dir.join(ADMIN_TOKEN_FILE))?)?))
}

fn read_token(path: &Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the token in {}", path.display()))?;
    Ok(text.trim_end().into())
}

/// Where `stagely run` keeps its core's data: `$XDG_STATE_HOME/stagely`, or the system's equivalent.
///
/// # Errors
/// When the user has no home.
pub fn state_folder() -> anyhow::Result<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir);
    Ok(folder.context("this user has no home: set XDG_STATE_HOME")?.join("stagely"))
}
