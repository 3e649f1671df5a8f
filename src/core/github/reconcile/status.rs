//! The results of the last comparisons, for readers of the API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_state::Timestamp;
use stagely_state::ids::ProjectId;
use tokio::sync::Notify;

/// The last comparison of a project with its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastReconcile {
    pub(crate) at: Timestamp,
    /// The failure, for people; `None` after a success.
    pub(crate) problem: Option<String>,
}

/// The last comparisons of all projects. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReconcileStatus {
    inner: Arc<Mutex<Inner>>,
    triggered: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    projects: BTreeMap<ProjectId, LastReconcile>,
    deliveries_problem: Option<String>,
}

impl ReconcileStatus {
    /// Starts the next round now.
    pub(crate) fn trigger(&self) {
        self.triggered.notify_one();
    }

    /// The last comparison of `project`; `None` before the first.
    pub(crate) fn last(&self, project: ProjectId) -> Option<LastReconcile> {
        self.lock().projects.get(&project).cloned()
    }

    /// Why failed deliveries could not be read, for people.
    pub(crate) fn deliveries_problem(&self) -> Option<String> {
        self.lock().deliveries_problem.clone()
    }

    /// Waits for [`trigger`](Self::trigger).
    pub(super) async fn triggered(&self) {
        self.triggered.notified().await;
    }

    pub(super) fn set_last(&self, project: ProjectId, last: LastReconcile) {
        self.lock().projects.insert(project, last);
    }

    pub(super) fn set_deliveries_problem(&self, problem: Option<String>) {
        self.lock().deliveries_problem = problem;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
