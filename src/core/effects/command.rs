//! Checks at GitHub whether the author of a command has the permission for it.

use std::time::Duration;

use stagely_protocol::ErrorChain;
use stagely_state::ids::EnvironmentId;
use stagely_state::{Command, CommandKind, CommandVerdict, Event, Project};
use tracing::warn;

use crate::core::github::{Github, GithubError, Permission};
use crate::core::history::History;
use crate::core::intake::rebuild::rebuild_environment;
use crate::core::records::SharedRecords;
use crate::core::retry::RetryPolicy;

const PERMISSION_RETRIES: RetryPolicy =
    RetryPolicy::new(Duration::from_secs(1), Duration::from_mins(1)).jitter();

#[derive(Debug)]
pub(crate) struct CommandChecker {
    pub(crate) records: SharedRecords,
    pub(crate) history: History,
    pub(crate) github: Github,
}

impl CommandChecker {
    /// Repeats the request until GitHub answers.
    pub(super) async fn check(&self, environment: EnvironmentId, command: Command) -> Event {
        let verdict = self.verdict(environment, &command).await;
        let verdict = verdict.unwrap_or_else(|reason| CommandVerdict::Rejected { reason });
        Event::CommandChecked { environment, command, verdict }
    }

    /// Accepts the command, or returns why it is rejected, for people.
    async fn verdict(
        &self,
        environment: EnvironmentId,
        command: &Command,
    ) -> Result<CommandVerdict, String> {
        let project = {
            let records = self.records.read();
            let found = records.environments.get(&environment);
            found.and_then(|found| records.projects.get(&found.project)).cloned()
        };
        let project = project.ok_or("its environment is gone")?;
        let permission = self.permission_of(&project, &command.author).await.map_err(|error| {
            warn!(error = %ErrorChain(&error), project = project.name, "a permission cannot be read");
            let why = error.public_message();
            format!("what they may do in the repository cannot be found out ({why})")
        })?;
        if permission < Permission::Write {
            return Err("it needs permission to write to the repository".to_owned());
        }
        let CommandKind::Rebuild { failed_only } = command.kind else {
            return Ok(CommandVerdict::Accepted);
        };
        let newest = self.history.newest_run_of(environment).await.map_err(|error| {
            warn!(error = %ErrorChain(&error), %environment, "the newest run cannot be read");
            "core cannot read the newest run".to_owned()
        })?;
        let records = self.records.read();
        let made = rebuild_environment(&records, environment, newest.as_ref(), failed_only);
        made.map(|made| CommandVerdict::Rebuild(Box::new(made.run)))
            .map_err(|error| error.to_string())
    }

    async fn permission_of(
        &self,
        project: &Project,
        account: &str,
    ) -> Result<Permission, GithubError> {
        let what = format!("reading a permission in {}", project.name);
        PERMISSION_RETRIES
            .run(what, GithubError::retry, || self.github.permission(project, account))
            .await
    }
}
