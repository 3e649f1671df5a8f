//! Takes requests for runs, from the API and from the schedule of warm-ups.

use std::sync::Arc;

use thiserror::Error;

use super::disk::{DiskGuard, DiskNearlyFull};
use super::effects::Secrets;
use super::orchestrator::{Events, ShuttingDown};
use super::records::{Records, SharedRecords};
use super::request::RequestedRun;
use super::state::Event;
use crate::ids::RunId;

/// Why no run was stored.
#[derive(Debug, Error)]
pub(crate) enum IntakeError<E> {
    /// The request cannot be served.
    #[error("{0}")]
    Refused(E),
    /// There is no room for it.
    #[error(transparent)]
    Disk(#[from] DiskNearlyFull),
    /// Not now.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

/// Stores runs. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    records: SharedRecords,
    events: Events,
    secrets: Secrets,
    disk: DiskGuard,
    /// Held while a new run's project and environment are looked up or named.
    naming: Arc<tokio::sync::Mutex<()>>,
}

impl Intake {
    pub(crate) fn new(
        records: SharedRecords,
        events: Events,
        secrets: Secrets,
        disk: DiskGuard,
    ) -> Self {
        Self { records, events, secrets, disk, naming: Arc::default() }
    }

    /// Stores the run that `make` makes of the records. Whoever asks may hang up: it is not left half
    /// done.
    ///
    /// # Errors
    /// [`IntakeError`]; then no run is stored.
    pub(crate) async fn take<E: Send + 'static>(
        &self,
        make: impl FnOnce(&Records) -> Result<RequestedRun, E> + Send + 'static,
    ) -> Result<RunId, IntakeError<E>> {
        self.disk.check().await?;
        let storing = tokio::spawn(self.clone().store(make));
        storing.await.expect("making records does not panic")
    }

    async fn store<E>(
        self,
        make: impl FnOnce(&Records) -> Result<RequestedRun, E> + Send,
    ) -> Result<RunId, IntakeError<E>> {
        // Until the records are stored nobody else chooses a name: two repositories of one name would
        // push over each other's images.
        let _naming = self.naming.lock().await;
        let requested = {
            let records = self.records.read();
            make(&records).map_err(IntakeError::Refused)?
        };
        let id = requested.run.id;
        let sealed = self.secrets.seal_run(id, &requested.secrets);
        let event = Event::RunRequested {
            run: Box::new(requested.run),
            project: requested.project,
            environment: requested.environment,
        };
        self.events.store_with_secrets(event, (id, sealed)).await?;
        Ok(id)
    }
}
