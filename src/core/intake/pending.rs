//! The ids of environments whose events are on their way to the store.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_state::ids::{EnvironmentId, ProjectId};
use stagely_state::{Environment, Run};

use crate::core::records::Records;

/// The ids of environments that are not in the records yet. Deliveries of one burst are stored concurrently, and
/// two of one pull request must name the same new environment. Clones share the ids.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingEnvironments(Arc<Mutex<Ids>>);

type Ids = HashMap<EnvironmentKey, PendingId>;

/// A project, and the name of an environment in it.
type EnvironmentKey = (ProjectId, String);

#[derive(Debug)]
struct PendingId {
    id: EnvironmentId,
    /// How many events on their way to the store have this id.
    reservations: usize,
}

/// Access to the ids. Records that are read while it is held lack no environment whose reservation has ended.
pub(super) struct LockedEnvironments<'a> {
    pending: &'a PendingEnvironments,
    ids: MutexGuard<'a, Ids>,
}

/// Keeps an id pending until its event is in the store.
#[derive(Debug)]
pub(super) struct Reservation {
    pending: PendingEnvironments,
    key: EnvironmentKey,
}

impl PendingEnvironments {
    pub(super) fn lock(&self) -> LockedEnvironments<'_> {
        LockedEnvironments { pending: self, ids: self.ids() }
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LockedEnvironments<'_> {
    /// Gives `run` and `environment` the pending id of that environment, if there is one. Returns `None` for an
    /// environment in `records`, which must be read while the lock is held.
    pub(super) fn reserve(
        &mut self,
        records: &Records,
        run: &mut Run,
        environment: &mut Environment,
    ) -> Option<Reservation> {
        if records.environments.contains_key(&environment.id) {
            return None;
        }
        let key = (environment.project, environment.name.clone());
        let new = PendingId { id: environment.id, reservations: 0 };
        let pending = self.ids.entry(key.clone()).or_insert(new);
        pending.reservations += 1;
        environment.id = pending.id;
        run.environment = pending.id;
        Some(Reservation { pending: self.pending.clone(), key })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut ids = self.pending.ids();
        if let Entry::Occupied(mut entry) = ids.entry(self.key.clone()) {
            entry.get_mut().reservations -= 1;
            if entry.get().reservations == 0 {
                entry.remove();
            }
        }
    }
}
