//! Deletes the layer caches of a closed environment.

use std::collections::BTreeSet;
use std::time::Duration;

use stagely_agent::protocol::ImageRef;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Effects;
use crate::core::registry::RegistryError;
use crate::core::state::Event;
use crate::ids::EnvironmentId;

/// A registry that is away, or does not take the password, is asked again after this; each time the
/// client has waited for some minutes itself. Nobody waits for the outcome, and a cache that stays costs
/// money.
const WAIT: Duration = Duration::from_mins(5);

/// How often it is asked.
const ROUNDS: u32 = 48;

impl Effects {
    /// Deletes what only `environment` wrote, and says what is gone or cannot be deleted. Stops when the
    /// environment is open again: then its caches are wanted.
    pub(super) async fn clean_up(&self, environment: EnvironmentId) -> Event {
        let mut gone = BTreeSet::new();
        for round in 1..=ROUNDS {
            // Also those of the round before: a run may have written them anew meanwhile.
            let unwanted = self.unwanted_caches(environment);
            gone.clear();
            for cache in &unwanted {
                // Deleting takes a while, and the environment may be opened meanwhile.
                if !self.unwanted_caches(environment).contains(cache) {
                    continue;
                }
                match self.registry.delete(cache).await {
                    Ok(()) => info!(%cache, "a cache is deleted"),
                    Err(error) if round < ROUNDS && may_succeed_later(&error) => {
                        warn!(%cache, %error, "a cache is not deleted yet");
                        continue;
                    }
                    Err(error) => {
                        warn!(%cache, %error, "a cache is not deleted; delete it by hand");
                    }
                }
                gone.insert(cache.clone());
            }
            if self.unwanted_caches(environment).is_subset(&gone) {
                break;
            }
            sleep(WAIT).await;
        }
        Event::CleanedUp { environment, refs: gone, images: true }
    }

    fn unwanted_caches(&self, environment: EnvironmentId) -> BTreeSet<ImageRef> {
        let records = self.records.read();
        let found = records.environments.get(&environment).filter(|found| found.closed);
        found.map(|found| found.cache_refs.clone()).unwrap_or_default()
    }
}

const fn may_succeed_later(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable(_)
        | RegistryError::TooSlow
        | RegistryError::Unavailable { .. }
        | RegistryError::Access { .. }
        | RegistryError::Password(_)
        | RegistryError::Login(_) => true,
        RegistryError::Missing(_) | RegistryError::Elsewhere { .. } | RegistryError::Answer(_) => {
            false
        }
    }
}
