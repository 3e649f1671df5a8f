//! The runs that a step cancels: by request, by closing, and because a newer run supersedes them.

use stagely_state::ids::{EnvironmentId, RunId};
use stagely_state::{CommandKind, CommandVerdict, Effect, Event, Run, State, Trigger};

use super::Before;

impl Before {
    /// The open runs that `event` cancels. `core` is the state after it.
    pub(super) fn cancelled(&self, core: &State, event: &Event) -> Vec<RunId> {
        match event {
            Event::CancelRequested { run, .. } if self.open_runs.contains(run) => vec![*run],
            Event::EnvironmentClosed { environment } => self.open_in(*environment),
            // A closing that a newer event has overtaken changes nothing.
            Event::PullRequestClosed { environment, .. } => {
                let is_closed = |id| {
                    core.environments
                        .get(id)
                        .is_some_and(|environment| environment.state.is_closed())
                };
                if is_closed(environment) { self.open_in(*environment) } else { Vec::new() }
            }
            Event::ProjectRemoved { project } => {
                let environments = core.environments.values();
                let closed = environments.filter(|environment| {
                    environment.project == *project && environment.state.is_closed()
                });
                closed.flat_map(|environment| self.open_in(environment.id)).collect()
            }
            Event::CommandChecked { environment, command, verdict } => {
                let check =
                    Effect::CheckCommand { environment: *environment, command: command.clone() };
                let is_open = core
                    .environments
                    .get(environment)
                    .is_some_and(|environment| !environment.state.is_closed());
                let is_followed = is_open
                    && !matches!(verdict, CommandVerdict::Rejected { .. })
                    && self.checks.contains(&check);
                match command.kind {
                    CommandKind::Cancel if is_followed => self.open_in(*environment),
                    _ => self.superseded(core),
                }
            }
            Event::RunRequested { .. } | Event::HeadMoved { .. } => self.superseded(core),
            Event::Delivered { event: Some(event), .. } => self.cancelled(core, event),
            _ => Vec::new(),
        }
    }

    fn open_in(&self, environment: EnvironmentId) -> Vec<RunId> {
        self.environments.get(&environment).cloned().unwrap_or_default()
    }

    /// The run that the step has stored.
    pub(crate) fn started<'a>(&self, core: &'a State) -> Option<&'a Run> {
        core.runs.values().find(|run| !self.runs.contains(&run.id))
    }

    /// The runs that the new run of the step supersedes.
    fn superseded(&self, core: &State) -> Vec<RunId> {
        let Some(new) = self.started(core) else { return Vec::new() };
        let environment = &core.environments[&new.environment];
        if environment.report.run != Some(new.id) || !is_of_github(core, new) {
            return Vec::new();
        }
        let older = self.open_in(environment.id).into_iter();
        older.filter(|older| is_of_github(core, &core.runs[older])).collect()
    }
}

/// Whether the run supersedes others and is superseded.
pub(crate) fn is_of_github(core: &State, run: &Run) -> bool {
    let is_of_pull_request = core.environments[&run.environment].pull_request.is_some();
    run.trigger != Trigger::WarmUp && (is_of_pull_request || run.github.is_some())
}

pub(super) fn is_check(effect: &Effect) -> bool {
    matches!(effect, Effect::CheckCommand { .. })
}
