//! Who is served next: the highest priority first, within one the projects in turns, and within a project
//! first come, first served.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use stagely_protocol::{Arch, Emulation, FailureReason};

use super::step::Step;
use super::{
    Effect, Job, JobEvent, JobKind, JobState, Limits, Machine, MachineKind, MachineState,
    Priorities, ProviderName, Run, State, Timestamp, Trigger,
};
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
    /// One of the machines that may work for its project; all do.
    ProjectLimit {
        /// The project.
        project: ProjectId,
        /// How many may.
        max_concurrent: u32,
    },
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
    /// Capacity: no machine could be had, and another attempt is made after this moment.
    Capacity {
        /// When.
        until: Timestamp,
    },
    /// Nothing: the next step gives it a machine.
    Nothing,
}

/// Jobs that are equally urgent, and that the same machines will do for. There are few classes, so the
/// next job is found without a look at all that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JobClass {
    origin: Origin,
    /// The processor that they run on natively; `None` where any will do.
    arch: Option<Arch>,
    must_be_native: bool,
}

/// Where a run comes from. The priority is the configuration's, which may have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    DefaultBranch,
    PullRequest,
    Manual,
}

/// The classes of the jobs that each project has ready, by priority, the highest first.
type Lanes = BTreeMap<Reverse<u8>, BTreeMap<ProjectId, Vec<JobClass>>>;

/// When each project was last served, as a count of all that were.
type Served = BTreeMap<ProjectId, u64>;

/// Where a job goes.
#[derive(Clone, Copy)]
enum Place {
    Static(MachineId),
    Launched(Arch, ProviderName),
}

/// What there is to give.
struct Supply {
    /// Registered machines that wait for work.
    idle: Vec<(Arch, MachineId)>,
    /// The arches of all registered machines that are connected and may get work.
    connected: BTreeSet<Arch>,
    /// The arches of all registered machines and of those that may be launched.
    available: BTreeSet<Arch>,
    /// Who launches which.
    launchable: Vec<(Arch, ProviderName)>,
    /// Whether another machine may be launched.
    has_slot: bool,
    /// The projects that have as many machines as they may, and how many that is.
    at_limit: BTreeMap<ProjectId, u32>,
}

impl State {
    /// The queued jobs in the order in which they will be served, as far as can be known: others pass by
    /// those that wait for a certain machine, or for one of their project's. Those that wait for capacity
    /// or for other jobs come last.
    pub fn queue(&self) -> Vec<QueuedJob> {
        // After each event somebody asks, mostly about nothing.
        let index = &self.index;
        if index.ready.is_empty() && index.blocked.is_empty() && index.postponed.is_empty() {
            return Vec::new();
        }
        let supply = self.supply();
        let mut served = self.served.clone();
        let mut turn = served.values().copied().max().unwrap_or(0);
        let mut queue = Vec::new();
        for lanes in self.lanes().values() {
            let waiting = |project| (project, self.lane(project, &lanes[&project], &supply));
            let mut waiting: VecDeque<_> =
                in_turns(lanes, &served).into_iter().map(waiting).collect();
            while let Some((project, mut jobs)) = waiting.pop_front() {
                if let Some(job) = jobs.next() {
                    queue.push(job);
                    turn += 1;
                    served.insert(project, turn);
                    waiting.push_back((project, jobs));
                }
            }
        }
        queue.extend(self.index.postponed.iter().map(|(until, job)| QueuedJob {
            job: *job,
            reason: QueueReason::Capacity { until: *until },
        }));
        queue.extend(self.blocked_queue());
        queue
    }

    /// What `project` has ready of these classes, in order.
    fn lane(
        &self,
        project: ProjectId,
        classes: &[JobClass],
        supply: &Supply,
    ) -> impl Iterator<Item = QueuedJob> + use<> {
        let mut lane: Vec<(Timestamp, QueuedJob)> = Vec::new();
        for class in classes {
            let reason = self.reason(project, *class, supply);
            let jobs = self.index.ready.get(&(project, *class)).into_iter().flatten();
            let queued = |job: &JobId| QueuedJob { job: *job, reason: reason.clone() };
            lane.extend(jobs.map(|(queued_at, job)| (*queued_at, queued(job))));
        }
        lane.sort_by_key(|(queued_at, queued)| (*queued_at, queued.job));
        lane.into_iter().map(|(_, queued)| queued)
    }

    /// The oldest job that `project` has ready of these classes and that there is a place for.
    fn first_to_place(
        &self,
        project: ProjectId,
        classes: &[JobClass],
        supply: &Supply,
    ) -> Option<(JobId, Place)> {
        let oldest = classes.iter().filter_map(|class| {
            let place = self.place(*class, supply).ok()?;
            Some((self.index.ready.get(&(project, *class))?.first()?, place))
        });
        oldest.min_by_key(|(oldest, _)| *oldest).map(|((_, job), place)| (*job, place))
    }

    /// The jobs that wait for others, the oldest first.
    fn blocked_queue(&self) -> impl Iterator<Item = QueuedJob> {
        let mut blocked: Vec<(Timestamp, JobId)> =
            self.index.blocked.values().flatten().copied().collect();
        blocked.sort_unstable();
        blocked.into_iter().filter_map(|(_, id)| {
            let missing = self.jobs.get(&id)?.missing_needs(&self.jobs).collect();
            Some(QueuedJob { job: id, reason: QueueReason::Jobs(missing) })
        })
    }

    /// What a job of `project` that is ready waits for.
    fn reason(&self, project: ProjectId, class: JobClass, supply: &Supply) -> QueueReason {
        if let Some(max_concurrent) = supply.at_limit.get(&project) {
            return QueueReason::ProjectLimit { project, max_concurrent: *max_concurrent };
        }
        self.place(class, supply).err().unwrap_or(QueueReason::Nothing)
    }

    fn note_served(&mut self, project: ProjectId) {
        let turn = self.served.values().max().map_or(1, |last| last + 1);
        self.served.insert(project, turn);
    }

    fn lanes(&self) -> Lanes {
        let mut lanes = Lanes::new();
        for (project, class) in self.index.ready.keys() {
            let priority = Reverse(class.origin.priority(self.limits.priorities));
            lanes.entry(priority).or_default().entry(*project).or_default().push(*class);
        }
        lanes
    }

    fn supply(&self) -> Supply {
        let limits = &self.limits;
        let launched = self.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
        let launchable: Vec<(Arch, ProviderName)> = self.launchable().collect();
        let has_slot = !launchable.is_empty() && launched.count() < limits.max_concurrent as usize;
        // One that the cloud wants back gets nothing, so nobody waits for it.
        let takes_work = |machine: &&Machine| {
            let is_there = machine.connected && machine.interruption.is_none();
            machine.kind == MachineKind::Static && is_there
        };
        let registered = || self.live_machines().filter(takes_work);
        let idle = registered().filter(|machine| machine.state == MachineState::Ready);
        Supply {
            idle: idle.map(|machine| (machine.arch, machine.id)).collect(),
            connected: registered().map(|machine| machine.arch).collect(),
            available: self.available(),
            launchable,
            has_slot,
            at_limit: self.at_limit(),
        }
    }

    /// The projects for which as many machines work as may. One counts from its launch until it is gone,
    /// since it costs money so long; a registered one while it is busy.
    fn at_limit(&self) -> BTreeMap<ProjectId, u32> {
        let mut in_use: BTreeMap<ProjectId, u32> = BTreeMap::new();
        for machine in self.live_machines() {
            let job = machine.job().and_then(|job| self.jobs.get(&job));
            if let Some(run) = job.and_then(|job| self.runs.get(&job.run)) {
                *in_use.entry(run.project).or_default() += 1;
            }
        }
        let is_reached = |(project, in_use): (ProjectId, u32)| {
            let limit = self.projects.get(&project)?.max_concurrent?.get();
            (in_use >= limit).then_some((project, limit))
        };
        in_use.into_iter().filter_map(is_reached).collect()
    }

    /// A queued job that must run natively where nobody can do that: neither the provider nor a
    /// registered machine, connected or not. Where there is no machine at all, it waits for one.
    fn next_without_arch(&self) -> Option<(JobId, Arch)> {
        let ready = self.index.ready.iter().map(|((_, class), jobs)| (class, jobs));
        let queued = ready.chain(&self.index.blocked);
        let mut native = queued.filter(|(class, _)| class.must_be_native).peekable();
        native.peek()?;
        let available = self.available();
        if available.is_empty() {
            return None;
        }
        let is_lacking = |arch: &Arch| !available.contains(arch);
        native.find_map(|(class, jobs)| Some((jobs.first()?.1, class.arch.filter(is_lacking)?)))
    }

    /// The arches that can be launched or that a registered machine has, connected or not.
    fn available(&self) -> BTreeSet<Arch> {
        let registered = self.live_machines().filter(|it| it.kind == MachineKind::Static);
        let launchable = self.launchable().map(|(arch, _)| arch);
        registered.map(|machine| machine.arch).chain(launchable).collect()
    }

    /// Finds a place for a job that is ready, or says what it waits for.
    fn place(&self, class: JobClass, supply: &Supply) -> Result<Place, QueueReason> {
        let JobClass { arch, must_be_native, .. } = class;
        let fits = |machine: Arch| arch.is_none_or(|arch| arch == machine);
        // A registered machine emulates only what nobody has, be it away for the moment.
        let is_lacking = arch.is_some_and(|arch| !supply.available.contains(&arch));
        let takes_any = is_lacking && !must_be_native;
        let will_do = |machine: Arch| fits(machine) || takes_any;
        if let Some((_, machine)) = supply.idle.iter().find(|(machine, _)| will_do(*machine)) {
            return Ok(Place::Static(*machine));
        }
        let launchable = &supply.launchable;
        let native = launchable.iter().copied().find(|(launchable, _)| fits(*launchable));
        let has_static = supply.connected.iter().any(|connected| fits(*connected));
        let may_emulate = !has_static && !must_be_native;
        match native.or_else(|| launchable.first().copied().filter(|_| may_emulate)) {
            Some((arch, provider)) if supply.has_slot => Ok(Place::Launched(arch, provider)),
            Some(_) => Err(QueueReason::Builder { max_concurrent: self.limits.max_concurrent }),
            None => Err(QueueReason::StaticMachine { arch: arch.filter(|_| !takes_any) }),
        }
    }
}

/// These projects, the one that has gone without for longest first.
///
/// A pointer that goes round would not do: where machines differ, it can pass by a project again and
/// again, each time at a moment when what is free does not fit.
fn in_turns<T>(projects: &BTreeMap<ProjectId, T>, served: &Served) -> Vec<ProjectId> {
    let mut turns: Vec<ProjectId> = projects.keys().copied().collect();
    turns.sort_by_key(|project| served.get(project).copied().unwrap_or(0));
    turns
}

impl Step<'_> {
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
                Place::Launched(arch, provider) => self.launch(new_machine(), job, arch, provider),
            }
        }
    }

    fn next_to_serve(&self) -> Option<(ProjectId, JobId, Place)> {
        if self.state.index.ready.is_empty() {
            return None;
        }
        let supply = self.state.supply();
        if supply.idle.is_empty() && !supply.has_slot {
            return None;
        }
        let lanes = self.state.lanes();
        lanes.values().find_map(|lanes| {
            let turns = in_turns(lanes, &self.state.served).into_iter();
            let mut turns = turns.filter(|project| !supply.at_limit.contains_key(project));
            turns.find_map(|project| {
                let (job, place) = self.state.first_to_place(project, &lanes[&project], &supply)?;
                Some((project, job, place))
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
        self.fail_job(job, JobEvent::Failed { reason, message, exit_code: None });
    }

    /// Gives the job's next attempt to `machine`, whose record is there.
    pub(super) fn begin_attempt(&mut self, id: JobId, machine: MachineId) {
        let arch = self.state.machines.get(&machine).map(|machine| machine.arch);
        if !self.move_job(id, JobEvent::MachineFound { machine }) {
            return;
        }
        self.state.change_job(id, |job| {
            job.attempt = job.state.attempt_on(machine).unwrap_or(job.attempt);
            job.steps.clear();
            job.warnings.clear();
            job.cache_miss = None;
            job.emulated = job.arch().is_some_and(|native| arch != Some(native));
        });
    }

    fn launch(&mut self, id: MachineId, job: JobId, arch: Arch, provider: ProviderName) {
        let Some(job) = self.state.jobs.get(&job) else { return };
        let attempts = self.state.limits.max_attempts;
        let machine = Machine {
            size: job.size,
            provider,
            on_demand: matches!(job.state, JobState::Queued { attempt } if attempt >= attempts),
            requested_for: Some(job.id),
            lease_until: Some(self.lease_for(job)),
            ..Machine::new(id, MachineKind::Launched, arch, self.now)
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
    /// The jobs that it needs and that have not completed.
    pub(super) fn missing_needs(
        &self,
        jobs: &BTreeMap<JobId, Self>,
    ) -> impl Iterator<Item = JobId> {
        let is_completed = |id: &JobId| {
            jobs.get(id).is_some_and(|job| matches!(job.state, JobState::Completed { .. }))
        };
        self.needs.iter().copied().filter(move |needed| !is_completed(needed))
    }

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

impl JobClass {
    /// The class of a job of `run`.
    pub(super) const fn of(job: &Job, run: &Run) -> Self {
        let origin = Origin::of(run.trigger);
        Self { origin, arch: job.arch(), must_be_native: job.must_be_native() }
    }
}

impl Limits {
    /// Higher goes first.
    pub(super) const fn priority_of(&self, trigger: Trigger) -> u8 {
        Origin::of(trigger).priority(self.priorities)
    }
}

impl Origin {
    const fn of(trigger: Trigger) -> Self {
        match trigger {
            Trigger::Push | Trigger::WarmUp => Self::DefaultBranch,
            Trigger::PrOpened | Trigger::PrSynchronized => Self::PullRequest,
            Trigger::Manual | Trigger::Retry => Self::Manual,
        }
    }

    const fn priority(self, priorities: Priorities) -> u8 {
        match self {
            Self::DefaultBranch => priorities.default_branch,
            Self::PullRequest => priorities.pull_request,
            Self::Manual => priorities.manual,
        }
    }
}
