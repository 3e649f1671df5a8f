//! The runs that a step cancels: by request, by closing, and because a newer run supersedes them.

use stagely_state::ids::{EnvironmentId, RunId};
use stagely_state::{
    CommandKind, CommandVerdict, Effect, Event, JobState, PreviewCommand, Run, RunState, State,
};

use super::{Before, LiveWork};
use crate::world::World;

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
                    CommandKind::Preview { action: PreviewCommand::Stop } if is_followed => {
                        self.ended_with_preview(core, *environment)
                    }
                    _ => self.superseded(core),
                }
            }
            Event::PreviewEndRequested { preview } => {
                let preview = core.previews.get(preview);
                preview.map_or_else(Vec::new, |preview| {
                    self.ended_with_preview(core, preview.environment)
                })
            }
            Event::PreviewLabelRemoved { environment } => {
                self.ended_with_preview(core, *environment)
            }
            Event::RunRequested { .. } | Event::HeadMoved { .. } => self.superseded(core),
            // A report may start a run that builds lost images again. Another one may have ended with the report.
            Event::JobReported { .. } => {
                let is_cancelled =
                    |run: &RunId| matches!(core.runs[run].state, RunState::Cancelled { .. });
                self.superseded(core).into_iter().filter(is_cancelled).collect()
            }
            Event::Delivered { event: Some(event), .. } => self.cancelled(core, event),
            _ => Vec::new(),
        }
    }

    /// The runs that deploy the environment's preview, which are known only by their end.
    fn ended_with_preview(&self, core: &State, environment: EnvironmentId) -> Vec<RunId> {
        let is_its_own = |run: &RunId| {
            let has_ended = matches!(core.runs[run].state, RunState::Cancelled { .. });
            has_ended && core.jobs_of(*run).any(|job| job.kind.is_deploy())
        };
        self.open_in(environment).into_iter().filter(is_its_own).collect()
    }

    fn open_in(&self, environment: EnvironmentId) -> Vec<RunId> {
        self.environments.get(&environment).cloned().unwrap_or_default()
    }

    /// The run that the step has stored, beside one that starts a preview again.
    pub(crate) fn started<'a>(&self, core: &'a State) -> Option<&'a Run> {
        let is_new = |run: &&Run| !self.runs.contains(&run.id);
        core.runs.values().find(|run| is_new(run) && !run.trigger.is_of_preview())
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

impl LiveWork {
    /// Whether it is a deployment whose preview was ended, while its run goes on.
    pub(super) fn is_dropped(&self, event: &Event, world: &World) -> bool {
        let job = world.core.jobs.get(&self.job.id);
        let is_cancelled = job.is_some_and(|job| job.state == JobState::Cancelled);
        self.job.kind.is_deploy() && is_cancelled && ends_preview(event)
    }
}

fn ends_preview(event: &Event) -> bool {
    match event {
        Event::PreviewEndRequested { .. } | Event::PreviewLabelRemoved { .. } => true,
        Event::CommandChecked { command, .. } => {
            command.kind == CommandKind::Preview { action: PreviewCommand::Stop }
        }
        Event::Delivered { event: Some(event), .. } => ends_preview(event),
        _ => false,
    }
}

/// Whether the run supersedes others and is superseded.
pub(crate) fn is_of_github(core: &State, run: &Run) -> bool {
    let is_of_pull_request = core.environments[&run.environment].pull_request.is_some();
    run.trigger.builds() && (is_of_pull_request || run.github.is_some())
}

pub(super) fn is_check(effect: &Effect) -> bool {
    matches!(effect, Effect::CheckCommand { .. })
}
