//! Lets the run-independent reference of a build name its newest image.

use tracing::{info, warn};

use super::Effects;
use crate::core::state::{CancelReason, Event, RunState};
use crate::ids::EnvironmentId;

impl Effects {
    /// Moves the tag to the digest that the environment's record has for `variant`, unless its run was
    /// superseded before that. A registry that does
    /// not answer is waited for. `None` where the record has gone meanwhile, and its tag is nobody's.
    pub(super) async fn tag(&self, environment: EnvironmentId, variant: String) -> Option<Event> {
        let (good, is_superseded) = {
            let records = self.records.read();
            let good = records.environments.get(&environment)?.images.get(&variant)?.clone();
            let run = records.runs.get(&good.run).map(|run| &run.state);
            (good, run == Some(&RunState::Cancelled { reason: CancelReason::Superseded }))
        };
        let (tag, digest) = (good.tag, good.digest);
        if is_superseded {
            let result = Err("a newer run took the place of its own".to_owned());
            return Some(Event::ImageTagged { environment, variant, digest, result });
        }
        let result = self.registry.tag(&tag, &digest).await.map_err(|error| in_full(&error));
        match &result {
            Ok(()) => info!(%tag, %digest, "tagged"),
            Err(error) => warn!(%tag, %digest, error, "not tagged"),
        }
        Some(Event::ImageTagged { environment, variant, digest, result })
    }
}

/// The error and what caused it.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
