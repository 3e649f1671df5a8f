//! Performs effects, with a part for each kind. Every effect may be repeated after a crash.

mod assign;
mod clean_up;
mod clone_token;
mod command;
mod edited_files;
mod interrupted;
mod launch;
mod plan;
mod project_secrets;
mod report;
mod tag;
mod terminate;

use stagely_protocol::{Cancel, CoreMessage, FailureReason, Sleep};
use stagely_state::ids::{MachineId, PreviewId};
use stagely_state::{CommandVerdict, Effect, Event, PlanFailure};

use self::interrupted::GIVEN_UP;
use super::github::report::reporter::published;
use super::records::SharedRecords;
use super::sessions::Sessions;
use super::waits;

pub(crate) use assign::Assigner;
pub(crate) use clean_up::Cleaner;
pub(crate) use clone_token::CloneTokens;
pub(crate) use command::CommandChecker;
pub(crate) use edited_files::EditedFiles;
pub(crate) use interrupted::{InterruptedWork, Verdict};
pub(crate) use launch::Launcher;
pub(crate) use plan::{Planner, RepositoryReader};
pub(crate) use report::Reporter;
pub(crate) use tag::Tagger;
pub(crate) use terminate::Terminator;

#[cfg(test)]
mod tests;

/// The parts that perform effects.
#[derive(Debug)]
pub(crate) struct Effects {
    pub(crate) records: SharedRecords,
    pub(crate) interrupted: InterruptedWork,
    pub(crate) planner: Planner,
    pub(crate) launcher: Launcher,
    pub(crate) terminator: Terminator,
    pub(crate) assigner: Assigner,
    pub(crate) tagger: Tagger,
    pub(crate) cleaner: Cleaner,
    pub(crate) command_checker: CommandChecker,
    pub(crate) reporter: Reporter,
    pub(crate) sessions: Sessions,
    /// The volumes of a preview are not archived if they are larger.
    pub(crate) archive_bytes_max: u64,
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

    /// The outcome of an effect that is not run again, because core was killed during it. `None` for effects that read
    /// nothing but the answers of the configured provider: a machine that is not terminated costs money.
    pub(crate) fn given_up(&self, effect: &Effect) -> Option<Event> {
        let message = || GIVEN_UP.to_owned();
        Some(match effect {
            Effect::Plan { run } => {
                let failure = PlanFailure { reason: FailureReason::Internal, message: message() };
                Event::RunPlanned { run: *run, plan: Err(failure) }
            }
            Effect::Tag { environment, variant } => {
                let records = self.records.read();
                let image = records.environments.get(environment)?.images.get(variant)?;
                Event::ImageTagged {
                    environment: *environment,
                    variant: variant.clone(),
                    digest: image.digest.clone(),
                    result: Err(message()),
                }
            }
            Effect::CleanUp { environment } => {
                let records = self.records.read();
                let refs = records.environments.get(environment)?.cache_refs.clone();
                Event::CleanedUp { environment: *environment, refs }
            }
            Effect::CheckCommand { environment, command } => Event::CommandChecked {
                environment: *environment,
                command: command.clone(),
                verdict: CommandVerdict::Rejected { reason: message() },
            },
            Effect::Report { environment } => {
                let (wanted, _) = published(&self.records, *environment);
                Event::Reported { environment: *environment, wanted, result: Err(message()) }
            }
            Effect::Launch { .. }
            | Effect::Terminate { .. }
            | Effect::Assign { .. }
            | Effect::Cancel { .. }
            | Effect::Sleep { .. }
            | Effect::Retire { .. }
            | Effect::Disconnect { .. } => return None,
        })
    }

    /// Has the agent remove the preview, after it has archived at most `archive_bytes_max` bytes of its volumes.
    fn sleep(&self, machine: MachineId, preview: PreviewId, archive_bytes_max: u64) {
        let sleep = Sleep { preview_id: preview.wire(), archive_bytes_max };
        self.sessions.send(machine, CoreMessage::Sleep(sleep));
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
            Effect::Sleep { machine, preview } => {
                self.sleep(machine, preview, self.archive_bytes_max);
                None
            }
            Effect::Retire { machine, preview } => {
                self.sleep(machine, preview, 0);
                None
            }
            Effect::Disconnect { machine } => {
                self.sessions.end(machine);
                None
            }
        }
    }
}
