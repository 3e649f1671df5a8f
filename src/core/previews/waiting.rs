//! What a deployment waits for, and what helps.

use stagely_state::ids::RunId;
use stagely_state::{Job, JobState, MachineState, Preview, PreviewState, QueueReason};

use crate::core::records::Records;

const REBUILT: &str =
    "The registry has lost its images, so they are built again. That may take minutes.";

/// Why a deploy job has no machine yet, for people: a clause that may follow `it waits: `. `None` if it waits for its
/// images, or for nothing.
pub(crate) fn reason_of_wait(records: &Records, job: &Job) -> Option<String> {
    let (_, queued) = records.queued(job.id)?;
    Some(match &queued.reason {
        QueueReason::PreviewLimit { project, max_concurrent } => {
            let project = project.and_then(|project| records.projects.get(&project));
            let (whose, setting) = match project {
                Some(project) => (format!(" of {}", project.name), "max-per-project"),
                None => (String::new(), "max-concurrent"),
            };
            format!(
                "{max_concurrent} previews{whose} have a machine, which is the limit, and each was used a moment ago or never sleeps; \
                 `stagely previews` lists them, `stagely previews sleep` or `end` makes room, and so does a higher \
                 previews.{setting}"
            )
        }
        QueueReason::RegisteredMachine { arch } => {
            let arch = arch.map(|arch| format!("{arch} ")).unwrap_or_default();
            format!(
                "no {arch}machine for previews is free; `stagely previews sleep` or `end` frees one, and `stagely \
                 machines add --fleet preview` adds one"
            )
        }
        QueueReason::Preview => wait_for_preview(records, job),
        QueueReason::Capacity { .. } => {
            let wait = records.wait_for_capacity(job).map(|wait| wait.text());
            format!("there is no capacity {}", wait.unwrap_or_default())
        }
        QueueReason::Budget(shortage) => records.shortage_text(shortage),
        QueueReason::Jobs(_)
        | QueueReason::ProjectLimit { .. }
        | QueueReason::FleetLimit { .. }
        | QueueReason::Nothing => return None,
    })
}

/// What of the preview, or of another one, has to end first.
fn wait_for_preview(records: &Records, job: &Job) -> String {
    let environment = records.runs.get(&job.run).map(|run| run.environment);
    let preview = environment.and_then(|environment| records.preview_of(environment));
    let text = match preview.map(|preview| preview.state) {
        Some(PreviewState::Archiving { .. }) => "its data is being archived",
        Some(PreviewState::Ending) => "its former machine is being terminated",
        Some(state) if state.job().is_some() => "another deployment of it is under way",
        Some(PreviewState::Live { .. })
            if preview.is_some_and(|preview| is_tested(records, preview)) =>
        {
            "what it shows is being tested"
        }
        Some(PreviewState::Live { machine }) => {
            let machine = records.machines.get(&machine);
            if machine.is_some_and(|machine| machine.connected) {
                "its machine is busy"
            } else {
                "the agent of its machine is not connected; `stagely machines` shows it"
            }
        }
        _ => "another preview goes to sleep to make room",
    };
    text.to_owned()
}

/// Whether a test of what the preview shows is open.
pub(crate) fn is_tested(records: &Records, preview: &Preview) -> bool {
    let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
    records.jobs.values().any(|job| {
        let tested = job.kind.test().and_then(|test| test.preview_of);
        let environment = || records.runs.get(&job.run).map(|run| run.environment);
        let is_open = tested.is_some() && !job.state.is_final();
        is_open && tested == shown && environment() == Some(preview.environment)
    })
}

/// The open run that builds the preview's images again.
pub(crate) fn rebuild_of(records: &Records, preview: &Preview) -> Option<RunId> {
    let run = records.runs.get(&preview.rebuilt_by?)?;
    (!run.state.is_final()).then_some(run.id)
}

/// How far the deployment of a preview has come, as a sentence for people; empty if nothing is known.
pub(super) fn progress(records: &Records, preview: &Preview) -> String {
    if let PreviewState::Archiving { .. } = preview.state {
        return "Its data is being archived, so that it can move to another machine.".to_owned();
    }
    let Some(job) = preview.state.job().and_then(|job| records.jobs.get(&job)) else {
        return match rebuild_of(records, preview) {
            Some(_) => REBUILT.to_owned(),
            None => String::new(),
        };
    };
    match job.state {
        JobState::Queued { .. } | JobState::Postponed { .. } => reason_of_wait(records, job)
            .map_or_else(
                || "It waits for a machine.".to_owned(),
                |reason| format!("It waits: {reason}."),
            ),
        JobState::Provisioning { machine, .. } => {
            let machine = records.machines.get(&machine);
            let starts = machine.is_none_or(|machine| {
                matches!(machine.state, MachineState::Requested | MachineState::Booting)
            });
            let text = if starts { "Its machine starts." } else { "Its machine is there." };
            text.to_owned()
        }
        JobState::Running { .. } => {
            let restores = preview.archive.is_some() && preview.shown.is_some();
            let data = if restores { ", its data is restored," } else { "" };
            format!("Its images are pulled{data} and its containers start.")
        }
        JobState::Completed { .. } | JobState::Failed(_) | JobState::Cancelled => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Arch;
    use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId};
    use stagely_state::{Environment, Project, QueuedJob, Run, Timestamp};

    use super::*;
    use crate::core::fixtures;

    /// The records of a project whose only deployment waits.
    fn waiting(state: Option<PreviewState>, reason: QueueReason) -> Records {
        let mut records = Records::default();
        let project = Project::new(ProjectId::from_bits(1), "shop".to_owned(), String::new());
        let environment =
            Environment::new(EnvironmentId::from_bits(1), project.id, "pr-7".to_owned());
        let run = Run::new(RunId::from_bits(1), &environment, String::new(), Timestamp(0));
        let job = fixtures::job(1, 1, "deploy", "linux/amd64");
        if let Some(state) = state {
            let id = PreviewId::from_bits(1);
            let preview = Preview::new(id, project.id, environment.id, Timestamp(0));
            records.previews.insert(id, Preview { state, ..preview });
        }
        records.set_queue(vec![QueuedJob { job: job.id, reason }]);
        records.jobs.insert(job.id, job);
        records.runs.insert(run.id, run);
        records.environments.insert(environment.id, environment);
        records.projects.insert(project.id, project);
        records
    }

    fn reason(records: &Records) -> Option<String> {
        reason_of_wait(records, &records.jobs[&JobId::from_bits(1)])
    }

    #[test]
    fn a_wait_for_a_limit_names_the_commands_that_make_room_and_the_setting() {
        let limit = |project| QueueReason::PreviewLimit { project, max_concurrent: 5 };
        let of_project = waiting(None, limit(Some(ProjectId::from_bits(1))));
        let text = reason(&of_project).unwrap();
        for part in [
            "5 previews of shop have a machine",
            "`stagely previews sleep` or `end`",
            "previews.max-per-project",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let of_all = reason(&waiting(None, limit(None))).unwrap();
        assert!(of_all.starts_with("5 previews have") && of_all.ends_with("max-concurrent"));

        let machine = QueueReason::RegisteredMachine { arch: Some(Arch::Arm64) };
        let text = reason(&waiting(None, machine)).unwrap();
        assert!(text.starts_with("no arm64 machine for previews is free"), "{text}");
        assert!(text.contains("`stagely machines add --fleet preview`"), "{text}");
        assert_eq!(reason(&waiting(None, QueueReason::Jobs(Vec::new()))), None);
    }

    #[test]
    fn a_wait_for_a_preview_says_for_what() {
        let machine = MachineId::from_bits(1);
        let archiving = PreviewState::Archiving { machine, since: Timestamp(0), wakes: false };
        for (state, text) in [
            (Some(archiving), "its data is being archived"),
            (Some(PreviewState::Ending), "its former machine is being terminated"),
            (
                Some(PreviewState::Deploying { job: JobId::from_bits(9) }),
                "another deployment of it is under way",
            ),
            (
                Some(PreviewState::Live { machine }),
                "the agent of its machine is not connected; `stagely machines` shows it",
            ),
            (None, "another preview goes to sleep to make room"),
        ] {
            assert_eq!(reason(&waiting(state, QueueReason::Preview)).as_deref(), Some(text));
        }
    }

    #[test]
    fn the_progress_is_that_of_the_deploy_job() {
        let job = JobId::from_bits(1);
        let mut records = waiting(
            Some(PreviewState::Waking { job }),
            QueueReason::RegisteredMachine { arch: None },
        );
        let progress =
            |records: &Records| progress(records, &records.previews[&PreviewId::from_bits(1)]);
        assert!(progress(&records).starts_with("It waits: no machine for previews"));
        let machine = fixtures::machine(1);
        let mut set = |state| records.jobs.get_mut(&job).unwrap().state = state;
        set(JobState::Provisioning { attempt: 1, machine: machine.id });
        assert_eq!(progress(&records), "Its machine starts.");
        records.machines.insert(machine.id, machine.clone());
        assert_eq!(progress(&records), "Its machine is there.");
        let running = JobState::Running { attempt: 1, machine: machine.id, deadline: Timestamp(1) };
        records.jobs.get_mut(&job).unwrap().state = running;
        assert_eq!(progress(&records), "Its images are pulled and its containers start.");

        let preview = records.previews.get_mut(&PreviewId::from_bits(1)).unwrap();
        preview.state = PreviewState::Asleep;
        assert_eq!(progress(&records), "");
        let preview = records.previews.get_mut(&PreviewId::from_bits(1)).unwrap();
        preview.rebuilt_by = Some(RunId::from_bits(1));
        assert_eq!(progress(&records), REBUILT);
    }
}
