//! Repositories that were being read when core was killed. One of them may be the cause: libgit2 is C, and a repository
//! is somebody else's. The outbox would read it again after every restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use stagely_protocol::FailureReason;
use stagely_state::ids::RunId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::failure::{NotPlanned, failed};
use crate::core::store::Store;

/// A repository during whose reading core was killed this often is not read again.
const KILLS_MAX: u32 = 2;

/// Records which repositories are being read.
#[derive(Debug)]
pub(crate) struct InterruptedReads {
    store: Store,
    /// For each run whose repository was being read when core was killed: how often.
    kills: BTreeMap<RunId, u32>,
    /// These repositories are read one after the other, so that the next kill is not counted for all of them.
    alone: Arc<Semaphore>,
}

/// A repository that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    run: RunId,
    _alone: Option<OwnedSemaphorePermit>,
}

impl InterruptedReads {
    /// `kills` is what the store had at the start of core.
    pub(crate) fn new(store: Store, kills: BTreeMap<RunId, u32>) -> Self {
        Self { store, kills, alone: Arc::new(Semaphore::new(1)) }
    }

    /// Must be called before the repository of `run` is read.
    ///
    /// # Errors
    /// Core was killed too often while it read this repository.
    pub(super) async fn begin(&self, run: RunId) -> Result<Reading, NotPlanned> {
        let kills = self.kills.get(&run).copied().unwrap_or(0);
        if kills >= KILLS_MAX {
            let message = "core ended unexpectedly twice while it read this repository, so it is not read again";
            return Err(failed(FailureReason::Internal, message));
        }
        let alone = match kills {
            0 => None,
            _ => Arc::clone(&self.alone).acquire_owned().await.ok(),
        };
        let store = self.store.clone();
        let begun = spawn_blocking(move || store.reading_begins(run, kills)).await;
        begun.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?;
        Ok(Reading { run, _alone: alone })
    }

    /// Must be called when the repository has been read, also in vain.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn end(&self, reading: Reading) -> Result<(), NotPlanned> {
        let store = self.store.clone();
        let ended = spawn_blocking(move || store.reading_ends(reading.run)).await;
        Ok(ended.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Starts on a store that a killed core has left.
    fn start(path: &Path) -> InterruptedReads {
        let (store, contents) = Store::open(path).unwrap();
        InterruptedReads::new(store, contents.interrupted_reads)
    }

    #[tokio::test]
    async fn a_repository_that_killed_core_twice_is_not_read_a_third_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        let (deadly, harmless) = (RunId::from_bits(1), RunId::from_bits(2));
        for _ in 0..KILLS_MAX {
            let reads = start(&path);
            let done = reads.begin(harmless).await.unwrap();
            reads.end(done).await.unwrap();
            reads.begin(deadly).await.unwrap();
        }

        let reads = start(&path);

        let Err(NotPlanned::Failed(failure)) = reads.begin(deadly).await else { panic!("read") };
        assert!(failure.message.contains("twice while it read this repository"), "{failure:?}");
        reads.begin(harmless).await.unwrap();
    }

    #[tokio::test]
    async fn a_core_that_was_asked_to_stop_counts_no_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        let run = RunId::from_bits(1);
        for _ in 0..=KILLS_MAX {
            let reads = start(&path);
            reads.begin(run).await.unwrap();
            reads.store.forget_reads().unwrap();
        }
    }
}
