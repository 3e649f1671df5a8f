//! Cores to send requests to: running ones, or ones inside this process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::sleep;

use super::connect::{ServerArgs, listens, running_on, used_folders};
use super::embedded::Embedded;
use super::output::note;
use crate::client::{Client, ClientError};
use crate::config::Config;

/// The status of an answer about something that a core does not have.
const NOT_FOUND: u16 = 404;

/// How long a core of another command may take to start or end before it is skipped.
const START_LIMIT: Duration = Duration::from_secs(2);

/// The interval of checks of such a core.
const POLL: Duration = Duration::from_millis(100);

/// A core to send requests to.
#[derive(Debug)]
pub(super) enum CoreHandle {
    /// A core that also runs without this command.
    Running(Client),
    /// A core inside this process.
    Embedded(Embedded),
}

impl CoreHandle {
    /// Finds the core that runs on the data folder `folder`, or starts one to read its records. `None`, after a line on
    /// standard error, if the core there is starting or ending for longer than [`START_LIMIT`].
    async fn on(folder: &Path) -> anyhow::Result<Option<Self>> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(embedded) = Embedded::start(Config::default(), folder).await? {
                return Ok(Some(Self::Embedded(embedded)));
            }
            // A core that is starting has no address yet, or that of a killed one before it.
            if let Ok(Some(client)) = running_on(folder)
                && listens(client.server())
            {
                return Ok(Some(Self::Running(client)));
            }
            if Instant::now() >= deadline {
                let folder = folder.display();
                note(&format!(
                    "Skipping {folder}: another stagely command is starting or ending there"
                ));
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// Sends `get` to the core that `server` names, or else to each core of this user until one has what is asked for.
    /// Returns that core and its answer.
    ///
    /// # Errors
    /// No core has it; the named core cannot be reached; core cannot start.
    pub(super) async fn find<T>(
        server: &ServerArgs,
        get: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> anyhow::Result<(Self, T)> {
        if let Some(client) = server.named()? {
            let found = get(&client).await?;
            return Ok((Self::Running(client), found));
        }
        let mut first_error = None;
        for folder in used_folders()? {
            let Some(core) = Self::on(&folder).await? else { continue };
            let error = match get(core.client()).await {
                Ok(found) => return Ok((core, found)),
                Err(error) => error,
            };
            core.close().await?;
            if !matches!(error, ClientError::Refused { status: NOT_FOUND, .. }) {
                return Err(error.into());
            }
            first_error.get_or_insert(error);
        }
        Err(first_error.context("no core of this user answers; try again")?.into())
    }

    /// The data folder of the core of this user for which `is_wanted` returns true.
    ///
    /// # Errors
    /// Core cannot start.
    pub(super) async fn folder_with(
        is_wanted: impl AsyncFn(&Client) -> Result<bool, ClientError>,
    ) -> anyhow::Result<Option<PathBuf>> {
        for folder in used_folders()? {
            let Some(core) = Self::on(&folder).await? else { continue };
            let found = is_wanted(core.client()).await;
            core.close().await?;
            if found? {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }

    /// Sends `list` to the core that `server` names, or else to all cores of this user. Returns all answers.
    ///
    /// # Errors
    /// A core cannot be reached or cannot start.
    pub(super) async fn collect<T>(
        server: &ServerArgs,
        list: impl AsyncFn(&Client) -> Result<Vec<T>, ClientError>,
    ) -> anyhow::Result<Vec<T>> {
        if let Some(client) = server.named()? {
            return Ok(list(&client).await?);
        }
        let mut all = Vec::new();
        for folder in used_folders()? {
            let Some(core) = Self::on(&folder).await? else { continue };
            let listed = list(core.client()).await;
            core.close().await?;
            all.extend(listed?);
        }
        Ok(all)
    }

    pub(super) const fn client(&self) -> &Client {
        match self {
            Self::Running(client) | Self::Embedded(Embedded { client, .. }) => client,
        }
    }

    /// Stops a core inside this process, without waiting for its machines.
    pub(super) async fn leave(self) {
        if let Self::Embedded(embedded) = self {
            embedded.leave().await;
        }
    }

    /// Stops a core inside this process.
    ///
    /// # Errors
    /// A part of core failed or did not stop in time.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Running(_) => Ok(()),
            Self::Embedded(embedded) => embedded.stop().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::core::ADDRESS_FILE;

    #[tokio::test]
    async fn a_core_that_has_no_address_yet_is_skipped_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let starting = Embedded::start(Config::default(), folder.path()).await.unwrap().unwrap();
        let address = fs::read_to_string(folder.path().join(ADDRESS_FILE)).unwrap();
        fs::remove_file(folder.path().join(ADDRESS_FILE)).unwrap();
        assert!(CoreHandle::on(folder.path()).await.unwrap().is_none());
        // The address of a core that was killed.
        fs::write(folder.path().join(ADDRESS_FILE), "http://127.0.0.1:1/").unwrap();
        assert!(CoreHandle::on(folder.path()).await.unwrap().is_none());

        let finding = CoreHandle::on(folder.path());
        let started = async {
            sleep(POLL * 2).await;
            fs::write(folder.path().join(ADDRESS_FILE), address).unwrap();
        };
        let (found, ()) = tokio::join!(finding, started);
        assert!(matches!(found.unwrap(), Some(CoreHandle::Running(_))));
        starting.stop().await.unwrap();
    }
}
