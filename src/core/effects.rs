//! Performs effects, with a part for each kind. Every effect may be repeated after a crash.

mod assign;
mod clean_up;
mod clone_token;
mod command;
mod launch;
mod plan;
mod report;
mod tag;
mod terminate;

use stagely_protocol::{Cancel, CoreMessage};
use stagely_state::{Effect, Event};

use super::records::SharedRecords;
use super::sessions::Sessions;
use super::waits;

pub(crate) use assign::Assigner;
pub(crate) use clean_up::Cleaner;
pub(crate) use clone_token::CloneTokens;
pub(crate) use command::CommandChecker;
pub(crate) use launch::Launcher;
pub(crate) use plan::{InterruptedReads, Planner, RepositoryReader};
pub(crate) use report::Reporter;
pub(crate) use tag::Tagger;
pub(crate) use terminate::Terminator;

#[cfg(test)]
mod tests;

/// The parts that perform effects.
#[derive(Debug)]
pub(crate) struct Effects {
    pub(crate) records: SharedRecords,
    pub(crate) planner: Planner,
    pub(crate) launcher: Launcher,
    pub(crate) terminator: Terminator,
    pub(crate) assigner: Assigner,
    pub(crate) tagger: Tagger,
    pub(crate) cleaner: Cleaner,
    pub(crate) command_checker: CommandChecker,
    pub(crate) reporter: Reporter,
    pub(crate) sessions: Sessions,
}

impl Effects {
    pub(crate) async fn perform(&self, effect: Effect) -> Option<Event> {
        // Planning is a large future.
        let performed = Box::pin(self.outcome_of(effect.clone()));
        let give_up_at = match effect {
            Effect::Plan { .. } => Some(self.planner.give_up_at()),
            _ => None,
        };
        waits::shown(&self.records, &effect, give_up_at, performed).await
    }

    async fn outcome_of(&self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Plan { run } => Some(Box::pin(self.planner.plan(run)).await),
            Effect::Launch { machine } => Some(self.launcher.launch(machine).await),
            Effect::Terminate { machine } => Some(self.terminator.terminate(machine).await),
            Effect::Assign { machine, attempt } => self.assigner.assign(machine, attempt).await,
            Effect::Cancel { machine, attempt, reason } => {
                let cancel = Cancel { job_id: attempt.wire(), reason: reason.to_string() };
                self.sessions.send(machine, CoreMessage::Cancel(cancel));
                None
            }
            Effect::Tag { environment, variant } => self.tagger.tag(environment, variant).await,
            Effect::CleanUp { environment } => Some(self.cleaner.clean_up(environment).await),
            Effect::CheckCommand { environment, command } => {
                Some(self.command_checker.check(environment, command).await)
            }
            Effect::Report { environment } => Some(self.reporter.report(environment).await),
            Effect::Disconnect { machine } => {
                self.sessions.end(machine);
                None
            }
        }
    }
}
