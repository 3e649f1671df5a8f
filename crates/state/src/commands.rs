//! Commands in comments and labels. Each is followed once, after GitHub has said whether its author may write to the
//! repository.

use super::step::Step;
use super::{CancelReason, Command, CommandKind, CommandVerdict, Effect, RunState, State};
use crate::ids::{EnvironmentId, RunId};

impl Step<'_> {
    pub(super) fn check_command(&mut self, id: EnvironmentId, command: Command) {
        let Some(environment) = self.state.environments.get(&id) else { return };
        // The command of an older comment was followed already, or is outdated.
        if environment.state.is_closed()
            || command.comment.is_some_and(|comment| comment <= environment.last_command)
        {
            return;
        }
        if let Some(comment) = command.comment {
            self.state.change_environment(id, |environment| environment.last_command = comment);
        }
        let check = Effect::CheckCommand { environment: id, command };
        if !self.state.is_in_outbox(&check) {
            self.emit(check);
        }
    }

    pub(super) fn follow_command(
        &mut self,
        id: EnvironmentId,
        command: Command,
        verdict: CommandVerdict,
    ) {
        let check = Effect::CheckCommand { environment: id, command };
        if !self.state.remove_from_outbox(&check) {
            return;
        }
        let Effect::CheckCommand { command, .. } = check else { return };
        let outcome = self.follow(id, &command, verdict);
        let (kind, author) = (&command.kind, &command.author);
        let note = match outcome {
            Ok(what) => format!("`{kind}` by {author}: {what}"),
            Err(why) => format!("`{kind}` by {author} was not followed: {why}"),
        };
        self.state.change_environment(id, |environment| environment.report.note = Some(note));
        self.state.request_report_of(id);
    }

    /// Follows the command. Returns what it did, or why it had no effect, for people.
    fn follow(
        &mut self,
        id: EnvironmentId,
        command: &Command,
        verdict: CommandVerdict,
    ) -> Result<String, String> {
        let run = match verdict {
            CommandVerdict::Accepted => None,
            CommandVerdict::Rebuild(run) => Some(run),
            CommandVerdict::Rejected { reason } => return Err(reason),
        };
        let environments = &self.state.environments;
        let Some(environment) =
            environments.get(&id).filter(|environment| !environment.state.is_closed())
        else {
            return Err("the pull request is closed".to_owned());
        };
        let is_outdated = environment.head.as_ref().is_some_and(|head| head.at > command.at);
        if command.is_late && is_outdated {
            return Err("it arrived late, and the pull request has changed since".to_owned());
        }
        match &command.kind {
            CommandKind::Rebuild { .. } | CommandKind::Test => {
                let run = run.ok_or("there is no run to be built again")?;
                // Its run repeats the newest run of the moment of the check.
                if !self.state.is_newest(&run) || self.state.runs.contains_key(&run.id) {
                    return Err("a newer commit was pushed meanwhile".to_owned());
                }
                let started = format!("{} was started", run.id);
                let environment = environment.clone();
                self.start_run(*run, environment);
                Ok(started)
            }
            CommandKind::Cancel => {
                let open = self.state.open_runs_of(id);
                for run in &open {
                    self.cancel_run(*run, CancelReason::Requested);
                }
                if open.is_empty() {
                    Err("nothing is under way".to_owned())
                } else {
                    Ok("cancelled".to_owned())
                }
            }
            CommandKind::Preview { action } => self.follow_preview(id, *action, run),
            CommandKind::Approve { commit } => {
                let run = self.state.to_approve(id, command, commit.as_deref())?;
                self.approve_run(run, &command.author);
                Ok("approved".to_owned())
            }
        }
    }
}

impl State {
    /// The run that an approval is for: it must be of the commit that the author has seen.
    fn to_approve(
        &self,
        id: EnvironmentId,
        command: &Command,
        commit: Option<&str>,
    ) -> Result<RunId, String> {
        let environment = self.environments.get(&id);
        let run = environment
            .and_then(|environment| environment.newest_run)
            .and_then(|run| self.runs.get(&run));
        let awaiting = run.filter(|run| run.state == RunState::AwaitingApproval);
        let (Some(run), Some(head)) =
            (awaiting, environment.and_then(|environment| environment.head.as_ref()))
        else {
            return Err("nothing waits for approval".to_owned());
        };
        let Some(awaited) = run.requested_commit() else {
            return Err("the run that waits is of no certain commit".to_owned());
        };
        let is_meant = match commit {
            Some(commit) => awaited.as_str().starts_with(commit),
            // A comment that is newer than the head was written with that commit in view.
            None => awaited == head.commit && (head.is_first || command.at > head.at),
        };
        if is_meant {
            return Ok(run.id);
        }
        let short = &awaited.as_str()[..12];
        Err(format!("a newer commit is there; look at it and write `/stagely approve {short}`"))
    }
}
