//! Who is served next: in turns over the projects, first come first served within one.

use std::collections::BTreeSet;

use stagely_agent::protocol::{Arch, Emulation, FailureReason};

use super::step::Turn;
use super::{Effect, Job, JobKind, JobState, Machine, MachineKind, MachineState, State, Timestamp};
use crate::ids::{JobId, MachineId, ProjectId};

/// A job that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// The job.
    pub job: JobId,
    /// What it waits for.
    pub reason: QueueReason,
}

/// What a queued job waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueReason {
    /// Other jobs of its run, which are not completed.
    Jobs(Vec<JobId>),
    /// One of the machines that may be launched; all are in use.
    Builder {
        /// How many may be launched.
        max_concurrent: u32,
    },
    /// A registered machine.
    StaticMachine {
        /// Its processor; `None` where any will do, be it under emulation.
        arch: Option<Arch>,
    },
    /// Nothing: the next step gives it a machine.
    Nothing,
}

/// Where a job goes.
#[derive(Clone, Copy)]
enum Place {
    Static(MachineId),
    Launched(Arch),
}

/// What there is to give.
struct Supply {
    /// Registered machines that wait for work.
    idle: Vec<(Arch, MachineId)>,
    /// The arches of all registered machines that are connected.
    connected: BTreeSet<Arch>,
    /// The arches of all registered machines and of those that may be launched.
    available: BTreeSet<Arch>,
    /// Whether another machine may be launched.
    has_slot: bool,
}

impl State {
    /// The queued jobs in the order in which they will be served, as far as can be known; those that
    /// wait for other jobs come last.
    pub fn queue(&self) -> Vec<QueuedJob> {
        // After each event somebody asks, mostly about nothing.
        if self.index.queued.is_empty() {
            return Vec::new();
        }
        let supply = self.supply();
        let reason = |job: &Job| self.place(job, &supply).err().unwrap_or(QueueReason::Nothing);
        let (mut served, mut blocked) = (Vec::new(), Vec::new());
        for (turn, project) in self.turns().into_iter().enumerate() {
            let mut round = 0;
            for job in self.queue_of(project) {
                let queued = QueuedJob { job: job.id, reason: reason(job) };
                if matches!(queued.reason, QueueReason::Jobs(_)) {
                    blocked.push((job.queued_at, queued));
                } else {
                    served.push(((round, turn), queued));
                    round += 1;
                }
            }
        }
        served.sort_by_key(|(place, _)| *place);
        blocked.sort_by_key(|(queued_at, queued)| (*queued_at, queued.job));
        let served = served.into_iter().map(|(_, queued)| queued);
        served.chain(blocked.into_iter().map(|(_, queued)| queued)).collect()
    }

    /// The projects with queued jobs, the one that has gone without for longest first.
    ///
    /// A pointer that goes round would not do: where machines differ, it can pass by a project again
    /// and again, each time at a moment when what is free does not fit.
    fn turns(&self) -> Vec<ProjectId> {
        let mut turns: Vec<ProjectId> = self.index.queued.keys().copied().collect();
        turns.sort_by_key(|project| self.served.get(project).copied().unwrap_or(0));
        turns
    }

    fn note_served(&mut self, project: ProjectId) {
        let turn = self.served.values().max().map_or(1, |last| last + 1);
        self.served.insert(project, turn);
    }

    fn queue_of(&self, project: ProjectId) -> impl Iterator<Item = &Job> {
        let queue = self.index.queued.get(&project).into_iter().flatten();
        queue.filter_map(|(_, job)| self.jobs.get(job))
    }

    fn supply(&self) -> Supply {
        let limits = &self.limits;
        let launched = self.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
        let has_slot =
            !limits.launchable.is_empty() && launched.count() < limits.max_concurrent as usize;
        let registered = || {
            let machines = self.live_machines();
            machines.filter(|it| it.kind == MachineKind::Static && it.connected)
        };
        let idle = registered().filter(|machine| machine.state == MachineState::Ready);
        Supply {
            idle: idle.map(|machine| (machine.arch, machine.id)).collect(),
            connected: registered().map(|machine| machine.arch).collect(),
            available: self.available(),
            has_slot,
        }
    }

    /// The jobs that `job` needs and that have not completed.
    pub(super) fn missing_needs(&self, job: &Job) -> impl Iterator<Item = JobId> {
        let is_completed = |id: &JobId| {
            self.jobs.get(id).is_some_and(|job| matches!(job.state, JobState::Completed { .. }))
        };
        job.needs.iter().copied().filter(move |needed| !is_completed(needed))
    }

    /// A queued job that must run natively where nobody can do that: neither the provider nor a
    /// registered machine, connected or not. Where there is no machine at all, it waits for one.
    fn next_without_arch(&self) -> Option<(JobId, Arch)> {
        let mut native = self.queued_jobs().filter(|job| job.must_be_native()).peekable();
        native.peek()?;
        let available = self.available();
        if available.is_empty() {
            return None;
        }
        let is_lacking = |arch: &Arch| !available.contains(arch);
        native.find_map(|job| Some((job.id, job.arch().filter(is_lacking)?)))
    }

    /// The arches that can be launched or that a registered machine has, connected or not.
    fn available(&self) -> BTreeSet<Arch> {
        let registered = self.live_machines().filter(|it| it.kind == MachineKind::Static);
        let launchable = self.limits.launchable.iter().copied();
        registered.map(|machine| machine.arch).chain(launchable).collect()
    }

    /// Finds a place for `job`, or says what it waits for.
    fn place(&self, job: &Job, supply: &Supply) -> Result<Place, QueueReason> {
        let missing: Vec<JobId> = self.missing_needs(job).collect();
        if !missing.is_empty() {
            return Err(QueueReason::Jobs(missing));
        }
        let arch = job.arch();
        let fits = |machine: Arch| arch.is_none_or(|arch| arch == machine);
        // A registered machine emulates only what nobody has, be it away for the moment.
        let is_lacking = arch.is_some_and(|arch| !supply.available.contains(&arch));
        let takes_any = is_lacking && !job.must_be_native();
        let will_do = |machine: Arch| fits(machine) || takes_any;
        if let Some((_, machine)) = supply.idle.iter().find(|(machine, _)| will_do(*machine)) {
            return Ok(Place::Static(*machine));
        }
        let launchable = &self.limits.launchable;
        let native = launchable.iter().copied().find(|launchable| fits(*launchable));
        let has_static = supply.connected.iter().any(|connected| fits(*connected));
        let may_emulate = !has_static && !job.must_be_native();
        match native.or_else(|| launchable.first().copied().filter(|_| may_emulate)) {
            Some(arch) if supply.has_slot => Ok(Place::Launched(arch)),
            Some(_) => Err(QueueReason::Builder { max_concurrent: self.limits.max_concurrent }),
            None => Err(QueueReason::StaticMachine { arch: arch.filter(|_| !takes_any) }),
        }
    }
}

impl Turn<'_> {
    /// Gives machines to queued jobs for as long as there are any.
    pub(super) fn schedule(&mut self, new_machine: &mut dyn FnMut() -> MachineId) {
        while let Some((job, arch)) = self.state.next_without_arch() {
            self.refuse_emulation(job, arch);
        }
        self.give_merges_to_builders();
        while let Some((project, job, place)) = self.next_to_serve() {
            self.state.note_served(project);
            match place {
                Place::Static(machine) => {
                    self.begin_attempt(job, machine);
                    self.assign(machine, job);
                }
                Place::Launched(arch) => self.launch(new_machine(), job, arch),
            }
        }
    }

    fn next_to_serve(&self) -> Option<(ProjectId, JobId, Place)> {
        if self.state.index.queued.is_empty() {
            return None;
        }
        let supply = self.state.supply();
        if supply.idle.is_empty() && !supply.has_slot {
            return None;
        }
        self.state.turns().into_iter().find_map(|project| {
            self.state.queue_of(project).find_map(|job| {
                let place = self.state.place(job, &supply).ok()?;
                Some((project, job.id, place))
            })
        })
    }

    /// Ends a job that no machine can do as it is wanted.
    fn refuse_emulation(&mut self, job: JobId, arch: Arch) {
        let message = format!(
            "no machine builds for {arch} natively, and `emulation: forbid` is set: register a machine \
             of that arch with `stagely machines add`, or allow emulation in stagely.yaml"
        );
        let reason = FailureReason::Emulation;
        self.end_job(job, JobState::Failed { reason, message, exit_code: None });
    }

    /// Gives the job's next attempt to `machine`, whose record is there.
    pub(super) fn begin_attempt(&mut self, id: JobId, machine: MachineId) {
        let arch = self.state.machines.get(&machine).map(|machine| machine.arch);
        self.state.change_job(id, |job| {
            if let JobState::Queued { attempt } = job.state {
                job.state = JobState::Provisioning { attempt, machine };
                job.attempt = attempt;
                job.steps.clear();
                job.warnings.clear();
                job.cache_miss = None;
                job.emulated = job.arch().is_some_and(|native| arch != Some(native));
            }
        });
    }

    fn launch(&mut self, id: MachineId, job: JobId, arch: Arch) {
        let Some(job) = self.state.jobs.get(&job) else { return };
        let machine = Machine {
            id,
            kind: MachineKind::Launched,
            name: String::new(),
            arch,
            size: job.size,
            state: MachineState::Requested,
            stopping: BTreeSet::new(),
            exporting: None,
            requested_for: Some(job.id),
            requested_at: self.now,
            lease_until: Some(self.lease_for(job)),
            connected: false,
            contact_at: self.now,
            system_info: None,
            terminated_at: None,
        };
        let job = job.id;
        self.state.insert_machine(machine);
        self.begin_attempt(job, id);
        self.emit(Effect::Launch { machine: id });
    }

    /// The lease covers the job's whole time: one that ends sooner would kill live work.
    fn lease_for(&self, job: &Job) -> Timestamp {
        let limits = &self.state.limits;
        let work = self.now.after(limits.boot).after(job.timeout);
        let grace = limits.job_grace;
        self.now.after(limits.lease).max(work.after(grace).after(grace))
    }
}

impl Job {
    /// The processor that it runs on natively; `None` where any will do.
    const fn arch(&self) -> Option<Arch> {
        match &self.kind {
            JobKind::Build { platform, .. } => Some(platform.arch()),
            JobKind::Merge { .. } => None,
        }
    }

    const fn must_be_native(&self) -> bool {
        match &self.kind {
            JobKind::Build { emulation, .. } => matches!(emulation, Emulation::Forbid),
            JobKind::Merge { .. } => false,
        }
    }
}
