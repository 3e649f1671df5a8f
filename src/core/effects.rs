//! What happens outside: one function an effect, each safe to be done again.

mod assign;
mod build;
mod clean_up;
mod clone_token;
mod command;
mod launch;
mod plan;
mod report;
mod tag;
mod terminate;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use stagely_protocol::{Cancel, CoreMessage};
use stagely_provider::Providers;
use stagely_state::{Effect, Event};

use super::binaries::Binaries;
use super::disk::DiskGuard;
use super::github::Github;
use super::github::report::Reporting;
use super::logs::LogStore;
use super::records::SharedRecords;
use super::registry::Registry;
use super::secrets::SecretStore;
use super::sessions::Sessions;
use super::store::Store;
use crate::config::Config;

#[cfg(test)]
mod tests;

/// Performs effects.
pub struct Effects {
    /// The settings.
    pub config: Arc<Config>,
    /// The committed records.
    pub records: SharedRecords,
    /// The connected agents.
    pub sessions: Sessions,
    /// The secrets of runs and the tokens of machines.
    pub secrets: SecretStore,
    /// What builds were made of.
    pub store: Store,
    /// Where pull requests are.
    pub github: Github,
    /// Finds the lines of a failed step.
    pub logs: LogStore,
    /// Who tells GitHub next.
    pub(crate) reporting: Reporting,
    /// Where images go.
    pub registry: Registry,
    /// Where machines come from.
    pub providers: Providers,
    /// The agent's programs.
    pub(crate) binaries: Binaries,
    /// Holds short-lived checkouts.
    pub scratch: PathBuf,
    /// Refuses to plan when the disk is nearly full.
    pub(crate) disk: DiskGuard,
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effects").finish_non_exhaustive()
    }
}

impl Effects {
    /// Performs `effect`; what it brings about comes back as an event.
    pub async fn perform(&self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Plan { run } => Some(self.plan(run).await),
            Effect::Launch { machine } => Some(self.launch(machine).await),
            Effect::Terminate { machine } => Some(self.terminate(machine).await),
            Effect::Assign { machine, attempt } => self.assign(machine, attempt).await,
            Effect::Cancel { machine, attempt, reason } => {
                let cancel = Cancel { job_id: attempt.wire(), reason: reason.to_string() };
                self.sessions.send(machine, CoreMessage::Cancel(cancel));
                None
            }
            Effect::Tag { environment, variant } => self.tag(environment, variant).await,
            Effect::CleanUp { environment } => Some(self.clean_up(environment).await),
            Effect::CheckCommand { environment, command } => {
                Some(self.check_command(environment, command).await)
            }
            Effect::Report { environment } => Some(self.report(environment).await),
            Effect::Disconnect { machine } => {
                self.sessions.end(machine);
                None
            }
        }
    }
}
