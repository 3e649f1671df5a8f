//! Asks GitHub whether the author of a command may give it.

use super::Effects;
use crate::core::state::{Command, Event};
use crate::ids::EnvironmentId;

impl Effects {
    /// Asks until there is an answer.
    pub(super) async fn check_command(
        &self,
        environment: EnvironmentId,
        command: Command,
    ) -> Event {
        unimplemented!("{environment} {command:?}")
    }
}
