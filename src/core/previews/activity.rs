//! Which previews are in use. Only what authorized people do counts.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stagely_protocol::WireId;
use stagely_state::Access;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Activity of a preview that serves is noted at most so often.
const INTERVAL: Duration = Duration::from_secs(10);

/// The same of a preview that does not serve, which a request wakes.
const WAKE_INTERVAL: Duration = Duration::from_secs(1);

/// The same if everybody may open it: bots would keep it awake.
const PUBLIC_WAKE_INTERVAL: Duration = Duration::from_mins(5);

/// The previews that were in use. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PreviewActivity(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Not taken yet.
    touched: BTreeSet<WireId>,
    last: HashMap<(WireId, Use), Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    Serving,
    Waking,
}

impl PreviewActivity {
    /// Notes that a preview that serves is in use.
    pub fn touch(&self, preview: &WireId) {
        self.note(preview, Use::Serving, INTERVAL);
    }

    /// Notes that somebody wants to use a preview that does not serve.
    pub fn request_wake(&self, preview: &WireId, access: Access) {
        let interval = match access {
            Access::Public => PUBLIC_WAKE_INTERVAL,
            Access::Link | Access::Token => WAKE_INTERVAL,
        };
        self.note(preview, Use::Waking, interval);
    }

    /// Waits until a preview is in use, and returns all that were since the last call.
    pub async fn touched(&self) -> BTreeSet<WireId> {
        loop {
            let touched = std::mem::take(&mut self.lock().touched);
            if !touched.is_empty() {
                return touched;
            }
            self.0.changed.notified().await;
        }
    }

    /// When the use of a preview was last noted; `None` if that is long ago.
    pub fn last_use(&self, preview: &WireId) -> Option<Instant> {
        let inner = self.lock();
        let last = |kind| inner.last.get(&(preview.clone(), kind)).copied();
        last(Use::Serving).max(last(Use::Waking))
    }

    fn note(&self, preview: &WireId, kind: Use, interval: Duration) {
        let now = Instant::now();
        let mut inner = self.lock();
        let key = (preview.clone(), kind);
        if inner.last.get(&key).is_some_and(|last| now.duration_since(*last) < interval) {
            return;
        }
        inner.last.retain(|_, last| now.duration_since(*last) < PUBLIC_WAKE_INTERVAL);
        inner.last.insert(key, now);
        inner.touched.insert(preview.clone());
        drop(inner);
        self.0.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_preview_is_noted_once_in_an_interval() {
        let activity = PreviewActivity::default();
        let [one, two]: [WireId; 2] = ["prev_1", "prev_2"].map(|id| id.parse().unwrap());
        for _ in 0..3 {
            activity.touch(&one);
        }
        activity.touch(&two);
        assert_eq!(activity.touched().await, BTreeSet::from([one.clone(), two]));
        activity.touch(&one);
        let none = timeout(Duration::from_millis(1), activity.touched()).await;
        assert!(none.is_err(), "{none:?}");

        advance(INTERVAL).await;
        activity.request_wake(&one, Access::Link);
        assert_eq!(activity.touched().await, BTreeSet::from([one.clone()]));
        activity.touch(&one);
        assert_eq!(activity.touched().await, BTreeSet::from([one.clone()]));

        advance(PUBLIC_WAKE_INTERVAL).await;
        activity.request_wake(&one, Access::Public);
        assert_eq!(activity.touched().await, BTreeSet::from([one.clone()]));
        advance(INTERVAL).await;
        activity.request_wake(&one, Access::Public);
        let none = timeout(Duration::from_millis(1), activity.touched()).await;
        assert!(none.is_err(), "{none:?}");
        advance(PUBLIC_WAKE_INTERVAL).await;
        activity.request_wake(&one, Access::Public);
        assert_eq!(activity.touched().await, BTreeSet::from([one]));
    }
}
