//! A core in this process, for people who have no server: its data lies in the user's state folder.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use stagely_state::ProviderName;
use tokio::time::sleep;
use tracing::info;

use super::connect::{ServerArgs, running_on, state_folder};
use crate::api::ListRuns;
use crate::client::Client;
use crate::config::Config;
use crate::core::store::StoreError;
use crate::core::{self, Running};

/// Without contact with its core an agent ends after this long: should this process be killed, its
/// builds go on for no longer.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// Between two looks at whether the data folder is free.
const POLL: Duration = Duration::from_millis(500);

/// A core in this process.
#[derive(Debug)]
pub struct Embedded {
    /// Speaks with it.
    pub client: Client,
    /// On the heap: it is large, and so would be each future that holds it.
    core: Box<Running>,
}

impl Embedded {
    /// Starts a core on `data_dir`. `None`: another process has one there.
    ///
    /// Runs that an earlier process left behind are cancelled, and their builders ended: what they
    /// were to build was served by that process.
    ///
    /// # Errors
    /// What keeps core from starting.
    pub async fn start(mut config: Config, data_dir: &Path) -> anyhow::Result<Option<Self>> {
        data_dir.clone_into(&mut config.core.data_dir);
        // A file that was written for a server does not make this a server.
        config.core.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.core.public_url = None;
        config.builders.provider = Some(ProviderName::Local);
        config.agents.give_up_after = config.agents.give_up_after.min(GIVE_UP_AFTER);
        let core = match Box::pin(core::start(config)).await {
            Ok(core) => Box::new(core),
            Err(error) if is_in_use(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let client = Client::new(core.url.clone(), core.admin_token.clone())?;
        let embedded = Self { client, core };
        embedded.cancel_leftovers().await?;
        Ok(Some(embedded))
    }

    /// As [`start`](Self::start), and waits while another process has a core there.
    ///
    /// # Errors
    /// What keeps core from starting.
    pub async fn start_when_free(config: Config, data_dir: &Path) -> anyhow::Result<Self> {
        let mut told = false;
        loop {
            if let Some(embedded) = Self::start(config.clone(), data_dir).await? {
                return Ok(embedded);
            }
            if !told {
                eprintln!("Waiting for another stagely command of this user to end…");
                told = true;
            }
            sleep(POLL).await;
        }
    }

    async fn cancel_leftovers(&self) -> anyhow::Result<()> {
        let newest = ListRuns { limit: Some(100), before: None };
        let runs = self.client.runs(&newest).await?;
        for run in runs.into_iter().filter(|it| !it.status.is_final() || it.live_machines > 0) {
            info!(run = %run.id, "left behind by an earlier process: ended");
            self.client.cancel(run.id).await?;
            // A short command would be over before its builders are.
            let mut follower = self.client.follow_run(run.id);
            while follower.next().await?.is_some() {}
        }
        Ok(())
    }

    /// Stops it.
    ///
    /// # Errors
    /// A part that failed, or did not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.core.stop().await.context("the core in this process did not stop cleanly")
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::InUse)))
}

/// A core to ask about what was: one that runs, or one of this process's own for the moment.
#[derive(Debug)]
pub enum Records {
    /// It runs anyway.
    Running(Client),
    /// It was started to be asked.
    Embedded(Embedded),
}

impl Records {
    /// Finds or starts it.
    ///
    /// # Errors
    /// When the core that was named cannot be asked, or none can be started.
    pub async fn open(server: &ServerArgs) -> anyhow::Result<Self> {
        if let Some(client) = server.named()? {
            return Ok(Self::Running(client));
        }
        let folder = state_folder()?;
        match Embedded::start(Config::default(), &folder).await? {
            Some(embedded) => Ok(Self::Embedded(embedded)),
            None => running_on(&folder)?
                .map(Self::Running)
                .context("another stagely command is just starting or ending; try again"),
        }
    }

    /// Speaks with it.
    pub const fn client(&self) -> &Client {
        match self {
            Self::Running(client) | Self::Embedded(Embedded { client, .. }) => client,
        }
    }

    /// Stops what [`open`](Self::open) started.
    ///
    /// # Errors
    /// Those of [`Embedded::stop`].
    pub async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Running(_) => Ok(()),
            Self::Embedded(embedded) => embedded.stop().await,
        }
    }
}

/// Builds that share one engine gain little from being more than its processors, but some wait for the
/// network.
///
/// # Panics
/// Never: 4 is not zero.
pub fn builders_of_this_machine() -> NonZeroU32 {
    let processors = std::thread::available_parallelism().map_or(4, usize::from);
    NonZeroU32::new(u32::try_from(processors.max(4)).unwrap_or(4)).expect("at least 4")
}
