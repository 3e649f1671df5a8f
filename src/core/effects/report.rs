//! Tells GitHub of an environment: the comment of its pull request, and the statuses of its commit.

use super::Effects;
use crate::core::state::Event;
use crate::ids::EnvironmentId;

impl Effects {
    /// Tells until it is told, or GitHub refuses.
    pub(super) async fn report(&self, environment: EnvironmentId) -> Event {
        unimplemented!("{environment}")
    }
}
