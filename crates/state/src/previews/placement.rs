//! Where a deploy job can begin: which machine, which limit, and what has to sleep first.

use std::time::Duration;

use stagely_protocol::{Arch, FailureReason};

use crate::ids::{JobId, MachineId, PreviewId};
use crate::{
    Fleet, Job, JobKind, Machine, MachineKind, MachineState, Preview, PreviewState, ProviderName,
    QueueReason, Run, State, Timestamp, Trigger,
};

/// A preview gives its machine to another one only after this time without use. Otherwise previews that are in use would
/// take the machine from each other in turn.
const EVICTION_IDLE: Duration = Duration::from_mins(5);

/// Where a deploy job can begin now.
pub(super) enum DeployTarget {
    /// The machine that serves the preview, or a registered machine without a preview.
    Machine(MachineId),
    Launch(Arch, ProviderName),
    /// The preview sleeps first, because its data has to move to another machine.
    AfterSleep,
    /// Another preview sleeps first, but not before `idle_at`, so that there is a machine for this one.
    AfterSleepOf {
        preview: PreviewId,
        idle_at: Timestamp,
        /// What the job waits for until then.
        reason: QueueReason,
    },
    Wait(QueueReason),
    /// There is no machine for previews, and none can be launched.
    NoMachine,
    /// A newer run has taken its place.
    Outdated,
}

/// Previews that have what another deployment needs.
struct Contended<'a> {
    previews: Vec<&'a Preview>,
    /// Whether one of their machines is about to be free.
    is_freed: bool,
    reason: QueueReason,
}

impl State {
    /// The deploy jobs that wait for a machine or their preview, the oldest first, each with what it waits for.
    pub(crate) fn deploy_queue(&self) -> impl Iterator<Item = (JobId, QueueReason)> {
        self.index.deployments.iter().filter_map(|(_, id)| {
            let reason = match self.deploy_target(self.jobs.get(id)?) {
                DeployTarget::Wait(reason) | DeployTarget::AfterSleepOf { reason, .. } => reason,
                DeployTarget::AfterSleep => QueueReason::Preview,
                DeployTarget::Machine(_)
                | DeployTarget::Launch(..)
                | DeployTarget::NoMachine
                | DeployTarget::Outdated => QueueReason::Nothing,
            };
            Some((*id, reason))
        })
    }

    /// When the next preview may give its machine to a deployment that waits.
    pub(crate) fn next_eviction(&self) -> Option<Timestamp> {
        let waiting = self.index.deployments.iter().filter_map(|(_, id)| self.jobs.get(id));
        let evictions = waiting.filter_map(|job| match self.deploy_target(job) {
            DeployTarget::AfterSleepOf { idle_at, .. } => Some(idle_at),
            _ => None,
        });
        evictions.min()
    }

    pub(super) fn deploy_target(&self, job: &Job) -> DeployTarget {
        let Some(run) = self.runs.get(&job.run) else {
            return DeployTarget::Wait(QueueReason::Preview);
        };
        if self.is_outdated(run) {
            return DeployTarget::Outdated;
        }
        let preview = self.preview_of(run.environment);
        let state = preview.map_or(PreviewState::Ended, |preview| preview.state);
        if state.job().is_some_and(|other| other != job.id) {
            return DeployTarget::Wait(QueueReason::Preview);
        }
        match state {
            // What serves and is tested stays, unless its machine runs something else than the preview shows.
            PreviewState::Live { .. }
                if run.trigger != Trigger::Wake
                    && preview.is_some_and(|preview| self.is_under_test(preview)) =>
            {
                DeployTarget::Wait(QueueReason::Preview)
            }
            PreviewState::Live { machine } => self.beside_serving(job, run, machine),
            PreviewState::Deploying { .. }
            | PreviewState::Asleep
            | PreviewState::Waking { .. }
            | PreviewState::Ended
            | PreviewState::Failed { .. } => self.new_machine_for(job, run),
            PreviewState::Updating { .. }
            | PreviewState::Archiving { .. }
            | PreviewState::Ending => DeployTarget::Wait(QueueReason::Preview),
        }
    }

    /// Whether the preview shows images of a newer run, or the run repeats another one than the newest.
    fn is_outdated(&self, run: &Run) -> bool {
        let newest = self.environments.get(&run.environment).and_then(|found| found.newest_run);
        if !run.trigger.builds() || newest == Some(run.id) {
            return false;
        }
        let shown = self.preview_of(run.environment).and_then(|preview| preview.shown.as_ref());
        run.rebuilds.is_some() || shown.is_some_and(|shown| shown.requested_at > run.created_at)
    }

    /// Where a preview is deployed again that `machine` serves. Fresh data begins on another machine, so that what is there
    /// serves until then, and afterwards if the deployment fails.
    fn beside_serving(&self, job: &Job, run: &Run, machine: MachineId) -> DeployTarget {
        let Some(machine) = self.machines.get(&machine) else {
            return DeployTarget::Wait(QueueReason::Preview);
        };
        let JobKind::Deploy { deployment, .. } = &job.kind else {
            return DeployTarget::Wait(QueueReason::Preview);
        };
        if deployment.fresh {
            return match self.new_machine_for(job, run) {
                target @ (DeployTarget::Machine(_)
                | DeployTarget::Launch(..)
                | DeployTarget::Wait(QueueReason::Budget(_))
                | DeployTarget::NoMachine) => target,
                // Without a second machine.
                _ => DeployTarget::AfterSleep,
            };
        }
        let fits = self.deploy_arch(job).is_none_or(|arch| arch == machine.arch)
            && (machine.kind == MachineKind::Registered
                || machine.size == job.size && self.has_disk_for(machine, job));
        match machine.interruption {
            None if fits && machine.connected && machine.state == MachineState::Ready => {
                self.serving_target(job, machine)
            }
            None if fits => DeployTarget::Wait(QueueReason::Preview),
            // What serves must not give its machine back for one that cannot be had.
            None => match self.new_machine_for(job, run) {
                target @ (DeployTarget::NoMachine | DeployTarget::Wait(QueueReason::Budget(_))) => {
                    target
                }
                _ => DeployTarget::AfterSleep,
            },
            Some(_) => DeployTarget::AfterSleep,
        }
    }

    /// Whether the disk of the launched `machine`, which is that of the deployment that it serves, is large enough. An update
    /// that has filled it goes to another machine.
    fn has_disk_for(&self, machine: &Machine, job: &Job) -> bool {
        let JobKind::Deploy { deployment, .. } = &job.kind else { return true };
        let shown = machine.serves.and_then(|id| self.previews.get(&id)?.shown.as_ref());
        let is_full =
            job.lost_attempts.last().is_some_and(|lost| lost.reason == FailureReason::DiskFull);
        !is_full && shown.is_none_or(|shown| deployment.disk_gib <= shown.deployment.disk_gib)
    }

    /// The registered machines of previews.
    fn registered_previews(&self) -> impl Iterator<Item = &Machine> {
        self.live_machines().filter(|machine| {
            machine.kind == MachineKind::Registered && machine.fleet == Fleet::Preview
        })
    }

    /// The arch that the machine has to have. `None` also if no machine has the images' own one: they are emulated then.
    fn deploy_arch(&self, job: &Job) -> Option<Arch> {
        let registered = self.registered_previews().map(|machine| machine.arch);
        let launchable = self.launchable(Fleet::Preview).map(|(arch, _)| arch);
        let mut known = registered.chain(launchable);
        job.arch().filter(|arch| known.any(|known| known == *arch))
    }

    fn new_machine_for(&self, job: &Job, run: &Run) -> DeployTarget {
        let arch = self.deploy_arch(job);
        let fits = |machine: Arch| arch.is_none_or(|arch| arch == machine);
        let mut registered = self.registered_previews().filter(|machine| fits(machine.arch));
        let is_free = |machine: &&Machine| {
            machine.state == MachineState::Ready
                && machine.serves.is_none()
                && machine.connected
                && machine.interruption.is_none()
        };
        if let Some(machine) = registered.find(is_free) {
            return DeployTarget::Machine(machine.id);
        }
        let launchable = self.launchable(Fleet::Preview).find(|(arch, _)| fits(*arch));
        let contended = match launchable {
            Some((arch, provider)) => {
                let target = self.launch_target(job, arch, provider);
                // A preview must not sleep for one that there is no money for.
                let is_refused = matches!(target, DeployTarget::Wait(_));
                match self.preview_limit(run).filter(|_| !is_refused) {
                    None => return target,
                    Some(contended) => contended,
                }
            }
            None if self.registered_previews().any(|machine| fits(machine.arch)) => {
                self.on_registered(arch, run)
            }
            None => return DeployTarget::NoMachine,
        };
        self.after_longest_idle(contended)
    }

    /// A launch, unless a budget does not suffice for it.
    fn launch_target(&self, job: &Job, arch: Arch, provider: ProviderName) -> DeployTarget {
        let fleet = (Fleet::Preview, provider);
        match self.launch_shortage(job, fleet, arch, &self.reservations()) {
            Some(shortage) => DeployTarget::Wait(QueueReason::Budget(shortage)),
            None => DeployTarget::Launch(arch, provider),
        }
    }

    /// The machine that serves the preview already, unless a budget does not suffice for its longer life.
    fn serving_target(&self, job: &Job, machine: &Machine) -> DeployTarget {
        let lease = self.end_of_deployment(job, self.stepped_at).after(self.limits.job_grace);
        match self.lease_shortage(machine, lease) {
            Some(shortage) => DeployTarget::Wait(QueueReason::Budget(shortage)),
            None => DeployTarget::Machine(machine.id),
        }
    }

    fn after_longest_idle(&self, contended: Contended<'_>) -> DeployTarget {
        let Contended { previews, is_freed, reason } = contended;
        // One at a time. A preview that is archived frees its machine, also if it wakes afterwards: it waits then.
        let frees = |preview: &&Preview| {
            matches!(preview.state, PreviewState::Archiving { .. } | PreviewState::Ending)
        };
        if is_freed || previews.iter().any(frees) {
            return DeployTarget::Wait(QueueReason::Preview);
        }
        let may_be_evicted = |preview: &&&Preview| {
            let machine = match preview.state {
                PreviewState::Live { machine } => self.machines.get(&machine),
                _ => None,
            };
            // Its data could not be archived otherwise.
            let is_there = |machine: &Machine| machine.connected && machine.interruption.is_none();
            let may_sleep = preview.may_sleep() && !self.is_under_test(preview);
            may_sleep && machine.is_some_and(is_there)
        };
        let idle = previews.iter().filter(may_be_evicted);
        match idle.min_by_key(|preview| preview.active_at) {
            Some(preview) => {
                let retry_at = preview.archive_retry_at.unwrap_or_default();
                let idle_at = preview.active_at.after(EVICTION_IDLE).max(retry_at);
                DeployTarget::AfterSleepOf { preview: preview.id, idle_at, reason }
            }
            None => DeployTarget::Wait(reason),
        }
    }

    /// The limit that forbids another preview machine.
    fn preview_limit(&self, run: &Run) -> Option<Contended<'_>> {
        let limits = self.limits.previews;
        let others = || self.active_previews_beside(run);
        let of_project = || others().filter(|preview| preview.project == run.project);
        if of_project().count() >= limits.max_of_project as usize {
            let (project, max_concurrent) = (Some(run.project), limits.max_of_project);
            return Some(Contended {
                previews: of_project().collect(),
                is_freed: false,
                reason: QueueReason::PreviewLimit { project, max_concurrent },
            });
        }
        let launched = || {
            self.live_machines().filter(|machine| {
                machine.fleet == Fleet::Preview && machine.kind == MachineKind::Launched
            })
        };
        if launched().count() < limits.max_concurrent as usize {
            return None;
        }
        let is_served =
            |preview: &&Preview| launched().any(|machine| machine.serves == Some(preview.id));
        Some(Contended {
            previews: others().filter(is_served).collect(),
            is_freed: launched().any(|machine| machine.state == MachineState::Terminating),
            reason: QueueReason::PreviewLimit {
                project: None,
                max_concurrent: limits.max_concurrent,
            },
        })
    }

    /// The previews on registered machines, none of which is free.
    fn on_registered(&self, arch: Option<Arch>, run: &Run) -> Contended<'_> {
        let machines = || {
            let fits = move |machine: &&Machine| arch.is_none_or(|arch| arch == machine.arch);
            self.registered_previews().filter(fits)
        };
        let is_served =
            |preview: &&Preview| machines().any(|machine| machine.serves == Some(preview.id));
        Contended {
            previews: self.active_previews_beside(run).filter(is_served).collect(),
            is_freed: false,
            reason: QueueReason::RegisteredMachine { arch },
        }
    }

    /// The previews of other environments that may have a machine.
    fn active_previews_beside(&self, run: &Run) -> impl Iterator<Item = &Preview> {
        let active = self.index.active_previews.iter().filter_map(|id| self.previews.get(id));
        active.filter(|preview| preview.environment != run.environment)
    }
}
