//! Stores what comes in: requests of the API and of the schedule, and GitHub's news.

pub(crate) mod rebuild;
pub(crate) mod request;

pub(crate) mod github_events;
pub(crate) mod projects;

pub(crate) mod fields;
pub(crate) mod names;

mod pending;

#[cfg(test)]
mod fixtures;

use std::convert::Infallible;
use std::sync::Arc;

use stagely_state::ids::RunId;
use stagely_state::{DeliveryId, Event, Project};
use thiserror::Error;

use self::github_events::Ignored;
use self::pending::PendingEnvironments;
use self::projects::{LinkError, LinkProject, link};
use self::request::RequestedRun;
use super::disk::{DiskGuard, DiskNearlyFull};
use super::orchestrator::{Events, ShuttingDown};
use super::records::{Records, SharedRecords};
use super::secrets::SecretStore;

/// Nothing was stored.
#[derive(Debug, Error)]
pub(crate) enum IntakeError<E> {
    #[error("{0}")]
    Refused(E),
    #[error(transparent)]
    Disk(#[from] DiskNearlyFull),
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
}

/// Stores runs and projects. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    records: SharedRecords,
    events: Events,
    secrets: SecretStore,
    disk: DiskGuard,
    /// Held while a new run's project and environment are looked up or named, and stored.
    naming: Arc<tokio::sync::Mutex<()>>,
    pending: PendingEnvironments,
}

/// What became of news from GitHub.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IngestOutcome {
    /// An event is stored, which has this meaning for people.
    Accepted(&'static str),
    Ignored(Ignored),
    /// The same delivery was stored before.
    Repeated,
}

impl Intake {
    pub(crate) fn new(
        records: SharedRecords,
        events: Events,
        secrets: SecretStore,
        disk: DiskGuard,
    ) -> Self {
        let pending = PendingEnvironments::default();
        Self { records, events, secrets, disk, naming: Arc::default(), pending }
    }

    /// Stores the run that `make` makes from the records. A caller that hangs up does not interrupt this.
    ///
    /// # Errors
    /// [`IntakeError`]; then no run is stored.
    pub(crate) async fn take<E: Send + 'static>(
        &self,
        make: impl FnOnce(&Records) -> Result<RequestedRun, E> + Send + 'static,
    ) -> Result<RunId, IntakeError<E>> {
        self.disk.check().await?;
        let storing = tokio::spawn(self.clone().store_run(make));
        storing.await.expect("making records does not panic")
    }

    async fn store_run<E>(
        self,
        make: impl FnOnce(&Records) -> Result<RequestedRun, E> + Send,
    ) -> Result<RunId, IntakeError<E>> {
        // Held until the records are stored: two repositories with the same name would push over each other's
        // images.
        let _naming = self.naming.lock().await;
        let (requested, _reservation) = {
            let mut pending = self.pending.lock();
            let records = self.records.read();
            let mut requested = make(&records).map_err(IntakeError::Refused)?;
            let (run, environment) = (&mut requested.run, &mut requested.environment);
            let reservation = pending.reserve(&records, run, environment);
            (requested, reservation)
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

    /// Stores a delivery together with the event that `make` makes of it from the records. A sender that hangs
    /// up does not interrupt this. News without a `delivery` comes from a list, and is stored without an id.
    ///
    /// # Errors
    /// [`IntakeError`]; then nothing is stored.
    pub(crate) async fn ingest(
        &self,
        delivery: Option<DeliveryId>,
        make: impl FnOnce(&Records) -> Result<Event, Ignored> + Send + 'static,
    ) -> Result<IngestOutcome, IntakeError<Infallible>> {
        let space = self.disk.check().await;
        let storing = tokio::spawn(self.clone().store_news(delivery, space, make));
        storing.await.expect("making events does not panic")
    }

    async fn store_news(
        self,
        delivery: Option<DeliveryId>,
        space: Result<(), DiskNearlyFull>,
        make: impl FnOnce(&Records) -> Result<Event, Ignored> + Send,
    ) -> Result<IngestOutcome, IntakeError<Infallible>> {
        let (found, _reservation) = {
            let mut pending = self.pending.lock();
            let records = self.records.read();
            if delivery.is_some_and(|delivery| records.deliveries.contains_key(&delivery)) {
                return Ok(IngestOutcome::Repeated);
            }
            let mut found = make(&records);
            let reservation = match &mut found {
                Ok(Event::HeadMoved { run, environment, .. }) => {
                    // Only news that makes a run is refused: closing and cancelling free disk space.
                    space?;
                    pending.reserve(&records, run, environment)
                }
                _ => None,
            };
            (found, reservation)
        };
        let (event, outcome) = match found {
            Ok(event) => {
                let outcome = IngestOutcome::Accepted(meaning(&event));
                (Some(Box::new(event)), outcome)
            }
            Err(reason) => (None, IngestOutcome::Ignored(reason)),
        };
        match (delivery, event) {
            (Some(delivery), event) => {
                self.events.store(Event::Delivered { delivery, event }).await?;
            }
            (None, Some(event)) => self.events.store(*event).await?,
            (None, None) => {}
        }
        Ok(outcome)
    }

    /// Stores the project of a repository, new or changed. Returns it, and whether it is new.
    ///
    /// # Errors
    /// [`IntakeError`]; then nothing is stored.
    pub(crate) async fn link(
        &self,
        wanted: LinkProject,
    ) -> Result<(Project, bool), IntakeError<LinkError>> {
        let _naming = self.naming.lock().await;
        let (project, is_new) = {
            let records = self.records.read();
            let project = link(&records, wanted).map_err(IntakeError::Refused)?;
            let known = records.projects.get(&project.id);
            let is_new = known.is_none_or(|known| known.github.is_none());
            (project, is_new)
        };
        self.events.store(Event::ProjectSet { project: project.clone() }).await?;
        Ok((project, is_new))
    }
}

/// The meaning of an event, for people.
const fn meaning(event: &Event) -> &'static str {
    match event {
        Event::HeadMoved { .. } => "a run of this commit, if it is news",
        Event::PullRequestClosed { .. } => "the end of its environment",
        Event::CommandGiven { .. } => "a command, if its author may give it",
        Event::PreviewLabelRemoved { .. } => "the end of a preview that depends on the label",
        _ => "stored",
    }
}
