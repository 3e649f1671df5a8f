//! A core inside a command's own process. Its data is in the user's state folder.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use stagely_state::ProviderName;
use tokio::time::sleep;
use tracing::info;

use crate::api::ListRuns;
use crate::client::Client;
use crate::config::Config;
use crate::core::store::StoreError;
use crate::core::{self, FolderCheck, Running};

/// The time after which an agent without contact to core exits. It limits how long builds continue if
/// this process is killed.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// The interval of checking whether the data folder is free.
const POLL: Duration = Duration::from_millis(500);

/// A core inside this process.
#[derive(Debug)]
pub struct Embedded {
    pub client: Client,
    /// On the heap: it is large, and so would be each future that holds it.
    core: Box<Running>,
}

impl Embedded {
    /// Starts a core on `data_dir`. Returns `None` if another process has a core there.
    ///
    /// Cancels open runs of earlier processes and ends their builders, because the earlier process served
    /// the files to build.
    ///
    /// # Errors
    /// Core cannot start.
    pub async fn start(mut config: Config, data_dir: &Path) -> anyhow::Result<Option<Self>> {
        data_dir.clone_into(&mut config.core.data_dir);
        // The configuration file may be written for a server.
        config.core.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.core.public_url = None;
        config.builders.provider = Some(ProviderName::Local);
        config.agents.give_up_after = config.agents.give_up_after.min(GIVE_UP_AFTER);
        let core = match Box::pin(core::start(config, FolderCheck::None)).await {
            Ok(core) => Box::new(core),
            Err(error) if is_in_use(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let client = Client::new(core.url.clone(), core.admin_token.clone())?;
        let embedded = Self { client, core };
        embedded.cancel_open_runs().await?;
        Ok(Some(embedded))
    }

    /// Starts a core like [`start`](Self::start), after waiting while another process has a core there.
    ///
    /// # Errors
    /// Core cannot start.
    pub async fn start_when_free(config: Config, data_dir: &Path) -> anyhow::Result<Self> {
        let mut is_reported = false;
        loop {
            if let Some(embedded) = Self::start(config.clone(), data_dir).await? {
                return Ok(embedded);
            }
            if !is_reported {
                eprintln!("Waiting for another stagely command of this user to end…");
                is_reported = true;
            }
            sleep(POLL).await;
        }
    }

    async fn cancel_open_runs(&self) -> anyhow::Result<()> {
        let newest = ListRuns { limit: Some(100), before: None };
        let runs = self.client.runs(&newest).await?;
        for run in runs.into_iter().filter(|run| !run.status.is_final() || run.live_machines > 0) {
            info!(run = %run.id, "cancelling an open run of an earlier process");
            self.client.cancel(run.id).await?;
            // A short command would otherwise exit before the builders have ended.
            let mut follower = self.client.follow_run(run.id);
            while follower.next().await?.is_some() {}
        }
        Ok(())
    }

    /// Stops core.
    ///
    /// # Errors
    /// A part of core failed or did not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.core.stop().await.context("the core in this process did not stop cleanly")
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::InUse)))
}

/// The number of builders at once on this machine: one for each processor and at least 4, because some
/// builds wait for the network.
pub fn builders_of_this_machine() -> NonZeroU32 {
    let processors = std::thread::available_parallelism().map_or(4, usize::from);
    NonZeroU32::new(u32::try_from(processors.max(4)).unwrap_or(4))
        .expect("the number is at least 4")
}
