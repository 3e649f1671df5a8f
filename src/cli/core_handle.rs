//! Cores to send requests to: running ones, or ones inside this process.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::connect::{ServerArgs, running_on, used_folders};
use super::embedded::Embedded;
use crate::client::{Client, ClientError};
use crate::config::Config;

/// The status of an answer about something that a core does not have.
const NOT_FOUND: u16 = 404;

/// A core to send requests to.
#[derive(Debug)]
pub(super) enum CoreHandle {
    /// A core that also runs without this command.
    Running(Client),
    /// A core inside this process.
    Embedded(Embedded),
}

impl CoreHandle {
    /// Finds the core that runs on the data folder `folder`, or starts one to read its records.
    async fn on(folder: &Path) -> anyhow::Result<Self> {
        match Embedded::start(Config::default(), folder).await? {
            Some(embedded) => Ok(Self::Embedded(embedded)),
            None => running_on(folder)?
                .map(Self::Running)
                .context("another stagely command is starting or ending; try again"),
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
            let core = Self::on(&folder).await?;
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
        Err(first_error.context("this user has no data folder")?.into())
    }

    /// The data folder of the core of this user for which `is_wanted` returns true.
    ///
    /// # Errors
    /// Core cannot start.
    pub(super) async fn folder_with(
        is_wanted: impl AsyncFn(&Client) -> Result<bool, ClientError>,
    ) -> anyhow::Result<Option<PathBuf>> {
        for folder in used_folders()? {
            let core = Self::on(&folder).await?;
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
            let core = Self::on(&folder).await?;
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
