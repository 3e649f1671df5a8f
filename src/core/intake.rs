//! Takes requests for runs: from the API, from the schedule of warm-ups, and from GitHub.

pub(crate) mod rebuild;
pub(crate) mod request;

pub(crate) mod github_events;
pub(crate) mod projects;

pub(crate) mod fields;
pub(crate) mod names;

#[cfg(test)]
mod fixtures;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
use stagely_state::{DeliveryId, Environment, Event, Project, Run};
use thiserror::Error;

use self::github_events::Unused;
use self::projects::{LinkError, LinkProject, link};
use self::request::RequestedRun;
use super::disk::{DiskGuard, DiskNearlyFull};
use super::orchestrator::{Events, ShuttingDown};
use super::records::{Records, SharedRecords};
use super::secrets::SecretStore;

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
    secrets: SecretStore,
    disk: DiskGuard,
    /// Held while a new run's project and environment are looked up or named.
    naming: Arc<tokio::sync::Mutex<()>>,
    /// Environments that are on their way to the store.
    newborn: Newborn,
}

/// What became of something that GitHub said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is stored with what it comes to.
    Accepted(&'static str),
    /// Nothing comes of it, with the reason for people.
    Ignored(String),
    /// It came before.
    Repeated,
}

/// The ids of environments that are not in the records yet, each with the number of events that bring it:
/// a burst of deliveries goes to the store side by side, and two of one pull request mean the same.
#[derive(Clone, Debug, Default)]
struct Newborn(Arc<Mutex<HashMap<Place, (EnvironmentId, usize)>>>);

/// A project, and the name of an environment in it.
type Place = (ProjectId, String);

/// Keeps an id in [`Newborn`] until its event is in the store.
#[derive(Debug)]
struct Birth {
    newborn: Newborn,
    place: Place,
}

impl Newborn {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, (EnvironmentId, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `run` and `environment` the id that is on its way already, if one is. `known` must hold
    /// the records of a moment after the lock was taken.
    fn adopt(
        &self,
        places: &mut HashMap<Place, (EnvironmentId, usize)>,
        known: &Records,
        run: &mut Run,
        environment: &mut Environment,
    ) -> Option<Birth> {
        if known.environments.contains_key(&environment.id) {
            return None;
        }
        let place = (environment.project, environment.name.clone());
        let (id, count) = places.entry(place.clone()).or_insert((environment.id, 0));
        *count += 1;
        environment.id = *id;
        run.environment = *id;
        Some(Birth { newborn: self.clone(), place })
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        let mut places = self.newborn.lock();
        if let Entry::Occupied(mut entry) = places.entry(self.place.clone()) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }
}

impl Intake {
    pub(crate) fn new(
        records: SharedRecords,
        events: Events,
        secrets: SecretStore,
        disk: DiskGuard,
    ) -> Self {
        Self { records, events, secrets, disk, naming: Arc::default(), newborn: Newborn::default() }
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
        let (requested, _birth) = {
            let mut newborn = self.newborn.lock();
            let records = self.records.read();
            let mut requested = make(&records).map_err(IntakeError::Refused)?;
            let (run, environment) = (&mut requested.run, &mut requested.environment);
            let birth = self.newborn.adopt(&mut newborn, &records, run, environment);
            (requested, birth)
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

    /// Stores what GitHub said and what it comes to, which `make` finds in the records. Whoever says it may
    /// hang up: it is not left half done.
    ///
    /// # Errors
    /// [`IntakeError`]; then it is not stored.
    pub(crate) async fn hear(
        &self,
        delivery: Option<DeliveryId>,
        make: impl FnOnce(&Records) -> Result<Event, Unused> + Send + 'static,
    ) -> Result<Heard, IntakeError<Unused>> {
        let space = self.disk.check().await;
        let storing = tokio::spawn(self.clone().store_heard(delivery, space, make));
        storing.await.expect("making events does not panic")
    }

    async fn store_heard(
        self,
        delivery: Option<DeliveryId>,
        space: Result<(), DiskNearlyFull>,
        make: impl FnOnce(&Records) -> Result<Event, Unused> + Send,
    ) -> Result<Heard, IntakeError<Unused>> {
        let (found, _birth) = {
            let mut newborn = self.newborn.lock();
            let records = self.records.read();
            if delivery.is_some_and(|delivery| records.deliveries.contains_key(&delivery)) {
                return Ok(Heard::Repeated);
            }
            let mut found = make(&records);
            let birth = match &mut found {
                Ok(Event::HeadMoved { run, environment, .. }) => {
                    // Closings and cancellations make room, and are taken in any case.
                    space?;
                    self.newborn.adopt(&mut newborn, &records, run, environment)
                }
                _ => None,
            };
            (found, birth)
        };
        let (event, heard) = match found {
            Ok(event) => {
                let heard = Heard::Accepted(meaning(&event));
                (Some(Box::new(event)), heard)
            }
            Err(Unused(why)) => (None, Heard::Ignored(why)),
        };
        match (delivery, event) {
            (Some(delivery), event) => {
                self.events.store(Event::Delivered { delivery, event }).await?;
            }
            (None, Some(event)) => self.events.store(*event).await?,
            (None, None) => {}
        }
        Ok(heard)
    }

    /// Stores the project of a repository, new or changed; says which it is, and whether it is new.
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

/// What an event of GitHub's means, for people.
const fn meaning(event: &Event) -> &'static str {
    match event {
        Event::HeadMoved { .. } => "a run of this commit, if it is news",
        Event::PullRequestClosed { .. } => "the end of its environment",
        Event::CommandGiven { .. } => "a command, if its author may give it",
        _ => "stored",
    }
}
