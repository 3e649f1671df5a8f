//! A core inside a command's own process. Its data is in the user's state folder.

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use stagely_state::ProviderName;
use stagely_state::ids::PreviewId;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::connect::parallel_folder;
use crate::api::{ListPreviews, ListRuns, PreviewStatus};
use crate::cli::output::note;
use crate::client::Client;
use crate::config::Config;
use crate::core::store::StoreError;
use crate::core::{self, FolderCheck, Running};

/// The time after which an agent without contact to core exits. Agents end with this process, their parent; the limit is
/// for a core that hangs.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// How long core may take to stop when the user does not wait for its machines.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// The most cores inside commands of one user at the same time.
const PARALLEL_MAX: usize = 100;

/// How long the end of previews of earlier processes may take before the command goes on.
const END_LIMIT: Duration = Duration::from_secs(30);

/// The interval of checking whether the data folder is free, and whether previews have ended.
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
    /// Ends the previews of earlier processes, cancels their open runs and ends their builders, because the earlier
    /// process served the files to build.
    ///
    /// # Errors
    /// Core cannot start.
    pub async fn start(mut config: Config, data_dir: &Path) -> anyhow::Result<Option<Self>> {
        data_dir.clone_into(&mut config.core.data_dir);
        // The configuration file may be written for a server.
        config.core.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.core.public_url = None;
        config.previews.domain = None;
        (config.previews.amd64, config.previews.arm64) = (None, None);
        config.previews.provider = Some(Some(ProviderName::Local));
        config.builders.provider = Some(ProviderName::Local);
        config.local.is_embedded = true;
        config.agents.give_up_after = config.agents.give_up_after.min(GIVE_UP_AFTER);
        let core = match Box::pin(core::start(config, FolderCheck::None)).await {
            Ok(core) => Box::new(core),
            Err(error) if is_in_use(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let client = Client::new(core.url.clone(), core.admin_token.clone())?;
        let embedded = Self { client, core };
        // Before the runs: one of them may wake a preview.
        let previews = embedded.end_previews().await?;
        embedded.cancel_open_runs().await?;
        embedded.wait_until_ended(previews).await?;
        Ok(Some(embedded))
    }

    /// Starts a core like [`start`](Self::start), on the first data folder of this user that no other command uses.
    ///
    /// # Errors
    /// Core cannot start.
    pub async fn start_beside_others(config: Config) -> anyhow::Result<Self> {
        for number in 1..=PARALLEL_MAX {
            let folder = parallel_folder(number)?;
            if let Some(embedded) = Self::start(config.clone(), &folder).await? {
                return Ok(embedded);
            }
        }
        bail!("{PARALLEL_MAX} other stagely commands of this user run already")
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
                note("Waiting for another stagely command of this user to end…");
                is_reported = true;
            }
            sleep(POLL).await;
        }
    }

    /// Begins to end the previews of earlier processes, and returns them.
    async fn end_previews(&self) -> anyhow::Result<Vec<PreviewId>> {
        let all = ListPreviews { all: true, ..ListPreviews::default() };
        let mut ending = Vec::new();
        for preview in self.client.previews(&all).await? {
            if preview.status == PreviewStatus::Ended {
                continue;
            }
            info!(preview = %preview.id, "ending a preview of an earlier process");
            self.client.end_preview(preview.id).await?;
            ending.push(preview.id);
        }
        Ok(ending)
    }

    /// Waits until nothing is left of `previews`, but at most [`END_LIMIT`]: their machines' records stay until they are
    /// gone.
    async fn wait_until_ended(&self, previews: Vec<PreviewId>) -> anyhow::Result<()> {
        let ended = async {
            for preview in previews {
                while self.client.preview(preview).await?.status != PreviewStatus::Ended {
                    sleep(POLL).await;
                }
            }
            anyhow::Ok(())
        };
        timeout(END_LIMIT, ended).await.unwrap_or(Ok(()))
    }

    async fn cancel_open_runs(&self) -> anyhow::Result<()> {
        let newest = ListRuns { limit: Some(100), before: None };
        let runs = self.client.runs(&newest).await?;
        // The agents have ended with the earlier process.
        for run in runs.into_iter().filter(|run| !run.status.is_final()) {
            info!(run = %run.id, "cancelling an open run of an earlier process");
            self.client.cancel(run.id).await?;
            // A short command would otherwise exit before the builders have ended.
            let mut follower = self.client.follow_run(run.id);
            while follower.next().await?.is_some() {}
        }
        Ok(())
    }

    /// Stops core while its machines still work. Their agents end with this process.
    pub async fn leave(self) {
        // A core that does not stop is no reason to wait, because the next one on its folder finds the same records.
        let _ = timeout(LEAVE_LIMIT, self.core.stop()).await;
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
