//! Checks at GitHub whether the author of a command has the permission for it.

use std::time::Duration;

use stagely_protocol::ErrorChain;
use stagely_state::ids::EnvironmentId;
use stagely_state::{
    Command, CommandKind, CommandVerdict, Event, PreviewCommand, PreviewStart, Project,
};
use tracing::warn;

use crate::api::RebuildEnvironment;
use crate::core::github::{Github, GithubError, Permission};
use crate::core::history::History;
use crate::core::intake::rebuild::{RebuildError, deploy_newest, rebuild_environment};
use crate::core::intake::request::RequestedRun;
use crate::core::records::SharedRecords;
use crate::core::retry::RetryPolicy;
use crate::core::store::StoreError;

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
        // Whoever may attach labels may attach this one, and bots do. The code of a fork still needs its approval.
        if command.kind == (CommandKind::Preview { action: PreviewCommand::Start })
            && command.comment.is_none()
        {
            return self.started_preview(environment).await;
        }
        let permission = self.permission_of(&project, &command.author).await.map_err(|error| {
            warn!(error = %ErrorChain(&error), project = project.name, "a permission cannot be read");
            let why = error.public_message();
            format!("what they may do in the repository cannot be found out ({why})")
        })?;
        if permission < Permission::Write {
            return Err("it needs permission to write to the repository".to_owned());
        }
        match command.kind {
            CommandKind::Rebuild { failed_only } => {
                let rebuild = RebuildEnvironment { failed_only, ..RebuildEnvironment::default() };
                self.rebuilt(environment, rebuild).await
            }
            CommandKind::Test => {
                let rebuild = RebuildEnvironment { tests: true, ..RebuildEnvironment::default() };
                self.rebuilt(environment, rebuild).await
            }
            CommandKind::Preview { action: PreviewCommand::Start } => {
                self.started_preview(environment).await
            }
            CommandKind::Cancel | CommandKind::Approve { .. } | CommandKind::Preview { .. } => {
                Ok(CommandVerdict::Accepted)
            }
        }
    }

    /// Makes the rebuild of the environment's newest run.
    async fn rebuilt(
        &self,
        environment: EnvironmentId,
        rebuild: RebuildEnvironment,
    ) -> Result<CommandVerdict, String> {
        let newest = self.history.newest_run_of(environment).await;
        let newest = newest.map_err(|error| unreadable_run(environment, &error))?;
        let records = self.records.read();
        started(rebuild_environment(&records, environment, newest.as_ref(), rebuild))
    }

    /// Makes the run that deploys the newest commit, if one is needed.
    async fn started_preview(&self, environment: EnvironmentId) -> Result<CommandVerdict, String> {
        let (preview, newest) = {
            let records = self.records.read();
            let newest = records.environments.get(&environment);
            let newest = newest.and_then(|environment| environment.newest_run);
            (records.preview_of(environment).cloned(), newest)
        };
        let Some(newest) = newest else { return Ok(CommandVerdict::Accepted) };
        let read = self.history.with_run(newest, |records, run| {
            let deployment = records.jobs_of(run.id).find(|job| job.kind.is_deploy());
            (run.clone(), PreviewStart::of(preview.as_ref(), Some(run), deployment))
        });
        match read.await.map_err(|error| unreadable_run(environment, &error))? {
            Some((newest, PreviewStart::NewRun)) => {
                let records = self.records.read();
                started(deploy_newest(&records, environment, &newest))
            }
            _ => Ok(CommandVerdict::Accepted),
        }
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

fn started(made: Result<RequestedRun, RebuildError>) -> Result<CommandVerdict, String> {
    made.map(|made| CommandVerdict::Rebuild(Box::new(made.run))).map_err(|error| error.to_string())
}

fn unreadable_run(environment: EnvironmentId, error: &StoreError) -> String {
    warn!(error = %ErrorChain(error), %environment, "the newest run cannot be read");
    "core cannot read the newest run".to_owned()
}
