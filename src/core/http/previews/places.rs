//! How many requests may do the same at once, for each machine or preview.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

/// As many places for each `K`. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places<K> {
    of_each: usize,
    used: Arc<Mutex<HashMap<K, Weak<Semaphore>>>>,
}

impl<K: Eq + Hash> Places<K> {
    pub(super) fn new(of_each: usize) -> Self {
        Self { of_each, used: Arc::default() }
    }

    /// The places of `key`, which are forgotten when nobody has one.
    pub(super) fn of(&self, key: K) -> Arc<Semaphore> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = used.get(&key).and_then(Weak::upgrade) {
            return places;
        }
        used.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.of_each));
        used.insert(key, Arc::downgrade(&places));
        places
    }
}
