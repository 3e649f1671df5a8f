//! First come, first served within a project, and nobody's project twice while another's waits.

use std::collections::BTreeSet;

use stagely::core::state::{Effect, Job, JobKind, JobState, Machine, MachineKind, State};
use stagely::ids::{JobId, ProjectId};
use stagely_agent::protocol::{Arch, Emulation};

use crate::transitions::{self, Before};

/// Who has been passed over.
#[derive(Default)]
pub(crate) struct Turns {
    /// Waiting jobs, with each project that was served what they could have used.
    passed_over: BTreeSet<(JobId, ProjectId)>,
}

impl Turns {
    /// A new core begins anew.
    pub(crate) fn restart(&mut self) {
        self.passed_over.clear();
    }

    /// Checks who was served by a step with these effects.
    pub(crate) fn check(&mut self, core: &State, before: &Before, effects: &[Effect]) {
        let served: Vec<(&Machine, &Job)> =
            effects.iter().filter_map(|effect| served(core, before, effect)).collect();
        check_told(core, before, &served);
        // A merge on a builder of its own takes nothing from anybody.
        let served: Vec<(&Machine, &Job)> =
            served.into_iter().filter(|(_, job)| job.took_over.is_none()).collect();
        for (turn, (machine, job)) in served.iter().enumerate() {
            assert!(could_use(core, job, machine), "{} is on a machine of another kind", job.id);
            let later = served[turn + 1..].iter().map(|(_, job)| *job);
            let queued = core.jobs.values().filter(|job| is_ready(core, job));
            for waiting in queued.chain(later).filter(|it| could_use(core, it, machine)) {
                self.check_turn(core, job, waiting);
            }
            let project = project_of(core, job);
            self.passed_over.retain(|(waiting, _)| {
                core.jobs.get(waiting).is_some_and(|waiting| project_of(core, waiting) != project)
            });
        }
    }

    fn check_turn(&mut self, core: &State, served: &Job, waiting: &Job) {
        let project = project_of(core, served);
        if project_of(core, waiting) == project {
            let place = |job: &Job| (job.queued_at, job.id);
            assert!(place(served) < place(waiting), "{} jumps the queue", served.id);
        } else {
            let is_first = self.passed_over.insert((waiting.id, project));
            assert!(is_first, "{project} is served twice while {} waits", waiting.id);
        }
    }
}

/// The machine and the job that `effect` brings together for the first time.
fn served<'a>(core: &'a State, before: &Before, effect: &Effect) -> Option<(&'a Machine, &'a Job)> {
    let machine = match effect {
        Effect::Assign { machine, .. } | Effect::Launch { machine } => {
            core.machines.get(machine)?
        }
        _ => return None,
    };
    let attempt = transitions::current(core, machine)?;
    let is_new = !before.had(machine.id, attempt);
    is_new.then(|| core.jobs.get(&attempt.job).map(|job| (machine, job)))?
}

/// Whoever has got a machine is in the effects, too.
fn check_told(core: &State, before: &Before, served: &[(&Machine, &Job)]) {
    for machine in core.live_machines() {
        let attempt = transitions::current(core, machine);
        if let Some(attempt) = attempt.filter(|attempt| !before.had(machine.id, *attempt)) {
            let count = served.iter().filter(|(_, job)| job.id == attempt.job).count();
            assert_eq!(count, 1, "{} is not told of {attempt:?}", machine.id);
        }
    }
}

fn project_of(core: &State, job: &Job) -> ProjectId {
    core.runs[&job.run].project
}

/// Whether the job waits for nothing but a machine.
pub(crate) fn is_ready(core: &State, job: &Job) -> bool {
    let is_completed = |id| matches!(core.jobs[id].state, JobState::Completed { .. });
    matches!(job.state, JobState::Queued { .. }) && job.needs.iter().all(is_completed)
}

/// Whether `machine` would do for the job.
pub(crate) fn could_use(core: &State, job: &Job, machine: &Machine) -> bool {
    match machine.kind {
        MachineKind::Static => is_native(job, machine.arch) || may_emulate(core, job),
        MachineKind::Launched => may_launch(core, job),
    }
}

/// Whether a registered machine may emulate the job's arch: nobody has it, connected or not.
pub(crate) fn may_emulate(core: &State, job: &Job) -> bool {
    !must_be_native(job) && !has_native(core, job)
}

/// Whether a registered machine, or one that may be launched, has the job's arch.
pub(crate) fn has_native(core: &State, job: &Job) -> bool {
    let mut registered = core.live_machines().filter(|it| it.kind == MachineKind::Static);
    core.limits.launchable.iter().any(|arch| is_native(job, *arch))
        || registered.any(|machine| is_native(job, machine.arch))
}

/// Whether a machine may be launched for the job: one of its arch, or another if nobody has that.
pub(crate) fn may_launch(core: &State, job: &Job) -> bool {
    let launchable = &core.limits.launchable;
    let mut registered = core.live_machines().filter(|it| it.kind == MachineKind::Static);
    let has_native = registered.any(|it| it.connected && is_native(job, it.arch));
    launchable.iter().any(|arch| is_native(job, *arch))
        || !launchable.is_empty() && !has_native && !must_be_native(job)
}

/// Whether the job may not be emulated.
pub(crate) const fn must_be_native(job: &Job) -> bool {
    matches!(job.kind, JobKind::Build { emulation: Emulation::Forbid, .. })
}

/// Whether the job runs on `arch` without emulation.
pub(crate) fn is_native(job: &Job, arch: Arch) -> bool {
    match &job.kind {
        JobKind::Build { platform, .. } => platform.arch() == arch,
        JobKind::Merge { .. } => true,
    }
}
