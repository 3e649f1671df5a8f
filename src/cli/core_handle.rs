//! A core to send requests to: a running one, or one inside this process.

use anyhow::Context as _;

use super::connect::{ServerArgs, running_on, state_folder};
use super::embedded::Embedded;
use crate::client::Client;
use crate::config::Config;

/// A core to send requests to.
#[derive(Debug)]
pub(super) enum CoreHandle {
    /// A core that also runs without this command.
    Running(Client),
    /// A core inside this process.
    Embedded(Embedded),
}

impl CoreHandle {
    /// Finds a running core, or starts one to read its records.
    ///
    /// # Errors
    /// The named core cannot be reached, or core cannot start.
    pub(super) async fn open(server: &ServerArgs) -> anyhow::Result<Self> {
        if let Some(client) = server.named()? {
            return Ok(Self::Running(client));
        }
        let folder = state_folder()?;
        match Embedded::start(Config::default(), &folder).await? {
            Some(embedded) => Ok(Self::Embedded(embedded)),
            None => running_on(&folder)?
                .map(Self::Running)
                .context("another stagely command is starting or ending; try again"),
        }
    }

    pub(super) const fn client(&self) -> &Client {
        match self {
            Self::Running(client) | Self::Embedded(Embedded { client, .. }) => client,
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
