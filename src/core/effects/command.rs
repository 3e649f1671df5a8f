//! Asks GitHub whether the author of a command may give it.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use stagely_state::ids::EnvironmentId;
use stagely_state::{Command, CommandKind, Event, Project, Run};
use tracing::warn;

use crate::core::clock::now;
use crate::core::github::{Github, GithubError, Permission};
use crate::core::intake::rebuild::rebuild_environment;
use crate::core::records::SharedRecords;

/// The waits before GitHub is asked again, as long as it does not answer.
const WAITS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_secs(1))
    .with_max_delay(LONGEST_WAIT)
    .without_max_times()
    .with_jitter();
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Checks whether the authors of commands may give them.
#[derive(Debug)]
pub(crate) struct CommandChecker {
    pub(crate) records: SharedRecords,
    pub(crate) github: Github,
}

impl CommandChecker {
    /// Asks until there is an answer.
    pub(super) async fn check(&self, environment: EnvironmentId, command: Command) -> Event {
        let verdict = self.verdict(environment, &command).await;
        Event::CommandChecked { environment, command, verdict }
    }

    /// The run that the command makes, if it makes one; or why it is not followed.
    async fn verdict(
        &self,
        environment: EnvironmentId,
        command: &Command,
    ) -> Result<Option<Box<Run>>, String> {
        let project = {
            let records = self.records.read();
            let found = records.environments.get(&environment);
            found.and_then(|found| records.projects.get(&found.project)).cloned()
        };
        let project = project.ok_or("its environment is gone")?;
        let permission = self.permission_of(&project, &command.author).await.map_err(|error| {
            warn!(%error, project = project.name, "a permission cannot be found out");
            let why = error.in_public();
            format!("what they may do in the repository cannot be found out ({why})")
        })?;
        if permission < Permission::Write {
            return Err("it needs permission to write to the repository".to_owned());
        }
        let CommandKind::Rebuild { failed_only } = command.kind else { return Ok(None) };
        let made = rebuild_environment(&self.records.read(), environment, failed_only);
        made.map(|made| Some(Box::new(made.run))).map_err(|error| error.to_string())
    }

    async fn permission_of(
        &self,
        project: &Project,
        account: &str,
    ) -> Result<Permission, GithubError> {
        let mut waits = WAITS.build();
        loop {
            let error = match self.github.permission(project, account).await {
                Err(error) if error.is_transient() => error,
                answer => return answer,
            };
            let wait = match &error {
                GithubError::RateLimited { until } => until.since(now()),
                _ => Duration::ZERO,
            };
            let wait = wait.max(waits.next().unwrap_or(LONGEST_WAIT));
            warn!(%error, project = project.name, "asking for a permission again in {wait:?}");
            tokio::time::sleep(wait).await;
        }
    }
}
