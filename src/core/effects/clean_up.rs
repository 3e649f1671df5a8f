//! Deletes a closed environment's layer caches from the registry, and the images of a closed pull request.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::{ErrorChain, ImageRef};
use stagely_state::ids::EnvironmentId;
use stagely_state::{Environment, Event};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::core::records::SharedRecords;
use crate::core::registry::{Registry, RegistryError};
use crate::core::retry::{Retry, RetryPolicy};

/// Each round takes some minutes if the registry does not respond, because its client repeats requests. No step waits
/// for the outcome, and the remains cost money.
const ROUNDS: RetryPolicy = RetryPolicy::new(ROUND_WAIT, ROUND_WAIT).retries_max(ROUNDS_MAX - 1);
const ROUND_WAIT: Duration = Duration::from_mins(5);
const ROUNDS_MAX: usize = 48;

/// Whether a further round follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Early,
    Last,
}

#[derive(Debug)]
pub(crate) struct Cleaner {
    pub(crate) records: SharedRecords,
    pub(crate) registry: Arc<Registry>,
}

impl Cleaner {
    /// Deletes the refs that only `environment` wrote. Returns those that are gone or cannot be deleted. Stops when the
    /// environment is open again, because it needs the rest.
    pub(super) async fn clean_up(&self, environment: EnvironmentId) -> Event {
        let mut waits = ROUNDS.start();
        loop {
            let next_wait = waits.next_wait(Retry::Soon);
            let round = if next_wait.is_some() { Round::Early } else { Round::Last };
            let refs = self.delete_caches(environment, round).await;
            let are_images_gone = self.delete_images(environment, round).await;
            let are_caches_gone = self.unwanted_caches(environment).is_subset(&refs);
            match next_wait {
                Some(wait) if !(are_images_gone && are_caches_gone) => sleep(wait).await,
                _ => return Event::CleanedUp { environment, refs },
            }
        }
    }

    /// The caches that are gone or cannot be deleted. The caches of the round before are deleted again, because a run
    /// may have written them meanwhile.
    async fn delete_caches(&self, environment: EnvironmentId, round: Round) -> BTreeSet<ImageRef> {
        let mut gone = BTreeSet::new();
        for cache in self.unwanted_caches(environment) {
            // Deleting takes long, and the environment may be opened meanwhile.
            let is_unwanted = || self.unwanted_caches(environment).contains(&cache);
            if is_unwanted() && self.delete(&cache, round).await {
                gone.insert(cache);
            }
        }
        gone
    }

    /// Whether the images are gone, cannot be deleted, or never existed. All tags of the repository belong to the
    /// environment, which has it alone.
    async fn delete_images(&self, environment: EnvironmentId, round: Round) -> bool {
        let Some(repository) = self.unwanted_images(environment) else { return true };
        let images = match self.registry.tags(&repository).await {
            Ok(images) => images,
            Err(error) => return gives_up(&repository, &error, round),
        };
        let mut all_gone = true;
        for image in &images {
            // As with caches. An open environment needs the rest, and the state ignores this answer.
            if self.unwanted_images(environment).is_none() {
                return true;
            }
            all_gone &= self.delete(image, round).await;
        }
        all_gone
    }

    /// Whether the tag is gone or cannot be deleted.
    async fn delete(&self, tag: &ImageRef, round: Round) -> bool {
        match self.registry.delete(tag).await {
            Ok(()) => {
                info!(%tag, "a tag is deleted");
                true
            }
            Err(error) => gives_up(tag.as_str(), &error, round),
        }
    }

    fn unwanted_caches(&self, environment: EnvironmentId) -> BTreeSet<ImageRef> {
        let records = self.records.read();
        let found = records.environments.get(&environment).filter(|found| found.state.is_closed());
        found.map(|found| found.cache_refs.clone()).unwrap_or_default()
    }

    /// The repository of the images to delete. Images of a branch stay, because they may be in use anywhere.
    fn unwanted_images(&self, environment: EnvironmentId) -> Option<String> {
        let records = self.records.read();
        let goes = |found: &&Environment| {
            found.state.is_closed() && found.has_images && found.pull_request.is_some()
        };
        let environment = records.environments.get(&environment).filter(goes)?;
        let project = &records.projects.get(&environment.project)?.name;
        Some(format!("{}/{project}/{}", self.registry.image_prefix(), environment.name))
    }
}

/// Whether further attempts after `error` are useless.
fn gives_up(what: &str, error: &RegistryError, round: Round) -> bool {
    if round == Round::Early && may_succeed_later(error) {
        warn!(what, error = %ErrorChain(error), "not deleted yet");
        return false;
    }
    warn!(what, error = %ErrorChain(error), "not deleted; delete it by hand");
    true
}

const fn may_succeed_later(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable(_)
        | RegistryError::Unusable(_)
        | RegistryError::TimedOut
        | RegistryError::Unavailable { .. }
        | RegistryError::AccessDenied { .. }
        | RegistryError::Password(_)
        | RegistryError::Login(_) => true,
        RegistryError::Missing(_)
        | RegistryError::OtherRegistry { .. }
        | RegistryError::InvalidResponse(_) => false,
    }
}
