//! Work that was under way when core was killed. It may be the cause: it reads what somebody else wrote, and Git with
//! libgit2, which is C. The outbox would begin it again after every restart.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::ErrorChain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::error;

use crate::core::store::{Store, StoreError, Work};

/// Work during which core was killed this often is not begun again.
const KILLS_MAX: u32 = 2;

/// How long interrupted work keeps the rest waiting. Work that waits for a server must not do so for long.
const ALONE_MAX: Duration = Duration::from_secs(10);

pub(super) const GIVEN_UP: &str =
    "core ended unexpectedly twice during this work, so it is not done a third time";

/// Whether work may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Begins,
    /// Core was killed during it once.
    BeginsAlone,
    /// Core was killed during it too often.
    GivenUp,
}

/// How often core was killed during which work. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct InterruptedWork {
    store: Store,
    kills: Arc<BTreeMap<Work, u32>>,
    /// Interrupted work begins one after the other, so that the next kill is not counted for all of it.
    alone: Arc<Semaphore>,
}

impl InterruptedWork {
    /// `kills` is what the store had at the start of core.
    pub(crate) fn new(store: Store, kills: BTreeMap<Work, u32>) -> Self {
        Self { store, kills: Arc::new(kills), alone: Arc::new(Semaphore::new(1)) }
    }

    pub(crate) fn verdict(&self, work: Work) -> Verdict {
        match self.kills.get(&work) {
            None => Verdict::Begins,
            Some(kills) if *kills < KILLS_MAX => Verdict::BeginsAlone,
            Some(_) => Verdict::GivenUp,
        }
    }

    /// Does interrupted work of the outbox, alone for up to [`ALONE_MAX`]. Work that was never interrupted needs no
    /// record, because the outbox says what is under way.
    pub(crate) async fn alone<T>(self, work: Work, doing: impl Future<Output = T>) -> T {
        let permit = Arc::clone(&self.alone).acquire_owned().await.ok();
        self.record(move |store| store.work_begins(work)).await;
        among_others(permit, doing).await
    }

    /// Does work that is not in the outbox. `None` if core was killed during it too often.
    pub(super) async fn recorded<T>(
        &self,
        work: Work,
        doing: impl Future<Output = T>,
    ) -> Option<T> {
        let permit = match self.verdict(work) {
            Verdict::Begins => None,
            Verdict::BeginsAlone => Arc::clone(&self.alone).acquire_owned().await.ok(),
            Verdict::GivenUp => return None,
        };
        self.record(move |store| store.work_begins(work)).await;
        let done = among_others(permit, doing).await;
        self.record(move |store| store.work_ends(work)).await;
        Some(done)
    }

    async fn record(&self, change: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static) {
        let store = self.store.clone();
        let changed = spawn_blocking(move || change(&store)).await;
        if let Err(error) = changed.expect("a transaction does not panic") {
            error!(error = %ErrorChain(&error), "a kill of core would be counted for the wrong work");
        }
    }
}

/// Resolves like `doing`, and drops `permit` after [`ALONE_MAX`].
async fn among_others<T>(
    permit: Option<OwnedSemaphorePermit>,
    doing: impl Future<Output = T>,
) -> T {
    let others_begin = async {
        sleep(ALONE_MAX).await;
        drop(permit);
        pending::<Infallible>().await
    };
    tokio::select! {
        done = doing => done,
        never = others_begin => match never {},
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use stagely_state::ids::RunId;
    use stagely_state::{Effect, EffectId};

    use super::*;
    use crate::core::store::Batch;

    const DEADLY: Work = Work::Effect(EffectId(1));
    const HARMLESS: Work = Work::Effect(EffectId(2));

    /// Starts on a store that a killed core has left, whose outbox has both effects.
    fn start(path: &Path) -> InterruptedWork {
        let (store, contents) = Store::open(path).unwrap();
        if contents.state.outbox.is_empty() {
            let mut batch = Batch::default();
            for number in [1, 2] {
                let run = RunId::from_bits(number.into());
                batch.effect(EffectId(number), Some(&Effect::Plan { run }));
            }
            store.commit(&batch).unwrap();
        }
        InterruptedWork::new(store, contents.kills)
    }

    #[tokio::test(start_paused = true)]
    async fn an_effect_that_killed_core_twice_does_not_run_a_third_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        let first = start(&path);
        assert_eq!([DEADLY, HARMLESS].map(|work| first.verdict(work)), [Verdict::Begins; 2]);
        drop(first);

        let second = start(&path);
        assert_eq!([DEADLY, HARMLESS].map(|work| second.verdict(work)), [Verdict::BeginsAlone; 2]);
        // The harmless one waits for the deadly one when core is killed.
        let kill = sleep(Duration::from_secs(1));
        tokio::select! {
            biased;
            never = second.clone().alone(DEADLY, pending::<Infallible>()) => match never {},
            never = second.clone().alone(HARMLESS, pending::<Infallible>()) => match never {},
            () = kill => {}
        }
        drop(second);

        let third = start(&path);
        assert_eq!(third.verdict(DEADLY), Verdict::GivenUp);
        assert_eq!(third.verdict(HARMLESS), Verdict::BeginsAlone);
    }

    #[tokio::test(start_paused = true)]
    async fn an_effect_that_waits_for_a_server_does_not_keep_the_others_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        drop(start(&path));
        let effects = start(&path);
        tokio::select! {
            never = effects.clone().alone(DEADLY, pending::<Infallible>()) => match never {},
            () = effects.clone().alone(HARMLESS, async {}) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_not_in_the_outbox_is_counted_while_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        let (deadly, harmless) =
            (Work::Comparison(RunId::from_bits(1)), Work::Comparison(RunId::from_bits(2)));
        for _ in 0..KILLS_MAX {
            let work = start(&path);
            assert_eq!(work.recorded(harmless, async { 7 }).await, Some(7));
            tokio::select! {
                done = work.recorded(deadly, pending::<Infallible>()) => panic!("{done:?}"),
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
        let work = start(&path);
        assert_eq!(work.recorded(deadly, async { 7 }).await, None);
        assert_eq!(work.recorded(harmless, async { 7 }).await, Some(7));
    }

    #[test]
    fn a_core_that_stops_by_itself_counts_no_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core.redb");
        drop(start(&path));
        for _ in 0..=KILLS_MAX {
            let effects = start(&path);
            effects.store.stops_by_itself().unwrap();
        }
        assert_eq!(start(&path).verdict(DEADLY), Verdict::Begins);
    }
}
