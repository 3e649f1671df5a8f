//! Which job gets the next machine: the highest priority first, within a priority the projects in turns, and within a
//! project the oldest job.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use stagely_protocol::{Arch, Emulation, FailureReason};

use super::budget::Reservations;
use super::step::Step;
use super::{
    Effect, Fleet, Job, JobEvent, JobFailure, JobKind, JobState, Limits, Machine, MachineKind,
    MachineState, Priorities, ProviderName, Run, Shortage, State, Timestamp, Trigger,
};
use crate::ids::{JobId, MachineId, ProjectId};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    pub job: JobId,
    pub reason: QueueReason,
}

/// What a queued job waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueReason {
    /// Other jobs of its run, which are not completed.
    Jobs(Vec<JobId>),
    /// The project has as many machines of the job's fleet as it may.
    ProjectLimit { project: ProjectId, max_concurrent: u32 },
    /// As many machines of the fleet are launched as may be.
    FleetLimit { fleet: Fleet, max_concurrent: u32 },
    RegisteredMachine {
        /// `None`: a machine of any arch can do the job, under emulation if need be.
        arch: Option<Arch>,
    },
    /// The provider has had no capacity since `since`. The next machine is requested after `retry_at`. The job fails if
    /// there is no capacity until `give_up_at`.
    Capacity { since: Timestamp, retry_at: Timestamp, give_up_at: Timestamp },
    /// Another deployment of the same preview, a preview that is sent to sleep, or tests of it. A test waits for its
    /// preview to serve, or for the machine of the preview.
    Preview,
    /// As many previews have a machine as may, and each of them is in use or never sleeps.
    PreviewLimit {
        /// The project whose limit it is; `None`: that of all previews.
        project: Option<ProjectId>,
        max_concurrent: u32,
    },
    /// A budget does not suffice for another machine.
    Budget(Shortage),
    /// The next step assigns the job.
    Nothing,
}

/// Groups jobs of equal priority that the same machines can do. There are few classes, so the cost of scheduling does
/// not depend on the queue's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JobClass {
    fleet: Fleet,
    origin: Origin,
    /// The arch that the jobs run on natively; `None`: any.
    arch: Option<Arch>,
    must_be_native: bool,
}

/// Where a run comes from. It stands for a priority, which a changed configuration changes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    DefaultBranch,
    PullRequest,
    Manual,
}

/// The classes of the ready jobs of each project, the highest priority first.
type QueueByPriority = BTreeMap<Reverse<u8>, BTreeMap<ProjectId, Vec<JobClass>>>;

/// The fleets whose jobs wait in the queue by project. Deployments depend on the previews that are there.
const QUEUED_FLEETS: [Fleet; 2] = [Fleet::Builder, Fleet::Tester];

/// The number of the last assignment of each project. Assignments are counted over all projects.
pub(super) type Served = BTreeMap<ProjectId, u64>;

/// The machine that a job is assigned to.
#[derive(Clone, Copy)]
enum Assignment {
    Registered(MachineId),
    Launch(Arch, ProviderName),
}

/// The machines of a fleet that jobs can be assigned to at the moment.
struct Capacity {
    fleet: Fleet,
    /// Registered machines without a job.
    idle: Vec<(Arch, MachineId)>,
    /// The arches of all registered machines that are connected and may get work.
    connected: BTreeSet<Arch>,
    /// The arches of all registered machines and of those that may be launched.
    available: BTreeSet<Arch>,
    launchable: Vec<(Arch, ProviderName)>,
    /// Whether another machine may be launched.
    has_slot: bool,
    /// The projects that have as many machines as they may, and how many that is.
    at_limit: BTreeMap<ProjectId, u32>,
    reserved: Reservations,
}

impl State {
    /// The queued jobs in the expected order of their assignments. A job that waits for a certain machine, or for its
    /// project's limit, may be overtaken. Jobs that wait for capacity or for other jobs come last.
    pub fn queue(&self) -> Vec<QueuedJob> {
        // This is called after each event, mostly with an empty queue.
        let index = &self.index;
        let is_empty = index.ready.is_empty() && index.blocked.is_empty();
        let has_previews = !index.deployments.is_empty() || !index.tests.is_empty();
        if is_empty && index.postponed.is_empty() && !has_previews {
            return Vec::new();
        }
        let mut queue = Vec::new();
        for fleet in QUEUED_FLEETS {
            self.add_ready(fleet, &mut queue);
        }
        queue.extend(self.index.postponed.iter().map(|(retry_at, job)| QueuedJob {
            job: *job,
            reason: self.missing_capacity(*job, *retry_at),
        }));
        let of_previews = self.deploy_queue().chain(self.test_queue());
        queue.extend(of_previews.map(|(job, reason)| QueuedJob { job, reason }));
        queue.extend(self.blocked_queue());
        queue
    }

    /// Adds the jobs that only wait for a machine of `fleet`.
    fn add_ready(&self, fleet: Fleet, queue: &mut Vec<QueuedJob>) {
        let ready = self.ready_by_priority(fleet);
        if ready.is_empty() {
            return;
        }
        let capacity = self.capacity(fleet);
        let mut served = self.served_of(fleet).clone();
        let mut turn = served.values().copied().max().unwrap_or(0);
        for projects in ready.values() {
            let waiting =
                |project| (project, self.ready_of(project, &projects[&project], &capacity));
            let mut waiting: VecDeque<_> =
                longest_waiting_first(projects, &served).into_iter().map(waiting).collect();
            while let Some((project, mut jobs)) = waiting.pop_front() {
                if let Some(job) = jobs.next() {
                    queue.push(job);
                    turn += 1;
                    served.insert(project, turn);
                    waiting.push_back((project, jobs));
                }
            }
        }
    }

    /// The ready jobs of `project` in these classes, the oldest first.
    fn ready_of(
        &self,
        project: ProjectId,
        classes: &[JobClass],
        capacity: &Capacity,
    ) -> impl Iterator<Item = QueuedJob> + use<> {
        let mut ready: Vec<(Timestamp, QueuedJob)> = Vec::new();
        for class in classes {
            let reason = self.reason(project, *class, capacity);
            let jobs = self.index.ready.get(&(project, *class)).into_iter().flatten();
            let queued = |job: &JobId| {
                let reason = reason.clone().unwrap_or_else(|assignment| {
                    let shortage = self.shortage_for(*job, assignment, capacity);
                    shortage.map_or(QueueReason::Nothing, QueueReason::Budget)
                });
                QueuedJob { job: *job, reason }
            };
            ready.extend(jobs.map(|(queued_at, job)| (*queued_at, queued(job))));
        }
        ready.sort_by_key(|(queued_at, queued)| (*queued_at, queued.job));
        ready.into_iter().map(|(_, queued)| queued)
    }

    /// The oldest ready job of `project` in these classes for which there is a machine.
    fn first_assignable(
        &self,
        project: ProjectId,
        classes: &[JobClass],
        capacity: &Capacity,
    ) -> Option<(JobId, Assignment)> {
        let oldest = classes.iter().filter_map(|class| {
            let assignment = self.find_machine(*class, capacity).ok()?;
            let mut jobs = self.index.ready.get(&(project, *class))?.iter();
            let is_affordable = |(_, job): &&(Timestamp, JobId)| {
                self.shortage_for(*job, assignment, capacity).is_none()
            };
            Some((jobs.find(is_affordable)?, assignment))
        });
        oldest.min_by_key(|(oldest, _)| *oldest).map(|((_, job), assignment)| (*job, assignment))
    }

    /// The jobs that wait for other jobs, the oldest first.
    fn blocked_queue(&self) -> impl Iterator<Item = QueuedJob> {
        let mut blocked: Vec<(Timestamp, JobId)> =
            self.index.blocked.values().flatten().copied().collect();
        blocked.sort_unstable();
        blocked.into_iter().filter_map(|(_, id)| {
            let missing = self.jobs.get(&id)?.missing_needs(&self.jobs).collect();
            Some(QueuedJob { job: id, reason: QueueReason::Jobs(missing) })
        })
    }

    /// What the ready jobs of `project` in a class wait for; the assignment of the next one, if nothing but money can
    /// be missing.
    fn reason(
        &self,
        project: ProjectId,
        class: JobClass,
        capacity: &Capacity,
    ) -> Result<QueueReason, Assignment> {
        if let Some(max_concurrent) = capacity.at_limit.get(&project) {
            return Ok(QueueReason::ProjectLimit { project, max_concurrent: *max_concurrent });
        }
        self.find_machine(class, capacity).map_or_else(Ok, Err)
    }

    /// The budget that does not suffice for the assignment of a job.
    fn shortage_for(
        &self,
        job: JobId,
        assignment: Assignment,
        capacity: &Capacity,
    ) -> Option<Shortage> {
        match assignment {
            Assignment::Registered(_) => None,
            Assignment::Launch(arch, provider) => {
                let fleet = (capacity.fleet, provider);
                self.launch_shortage(self.jobs.get(&job)?, fleet, arch, &capacity.reserved)
            }
        }
    }

    /// A lease that covers the job's time limit, so that it never ends a live job.
    pub(super) fn lease_for(&self, job: &Job, now: Timestamp) -> Timestamp {
        let limits = &self.limits;
        let work = now.after(limits.boot).after(job.timeout);
        let grace = limits.grace_of(job);
        now.after(limits.lease).max(work.after(grace).after(grace))
    }

    fn missing_capacity(&self, job: JobId, retry_at: Timestamp) -> QueueReason {
        let gap = self.jobs.get(&job).and_then(|job| job.missing_capacity.as_ref());
        // Records of older versions do not say since when.
        let since = gap.map_or(retry_at, |gap| gap.since);
        let give_up_at = since.after(self.limits.capacity_limit);
        QueueReason::Capacity { since, retry_at, give_up_at }
    }

    fn note_served(&mut self, fleet: Fleet, project: ProjectId) {
        let served = self.served.entry(fleet).or_default();
        let turn = served.values().max().map_or(1, |last| last + 1);
        served.insert(project, turn);
    }

    fn served_of(&self, fleet: Fleet) -> &Served {
        static NOBODY: Served = Served::new();
        self.served.get(&fleet).unwrap_or(&NOBODY)
    }

    fn ready_by_priority(&self, fleet: Fleet) -> QueueByPriority {
        let mut queue = QueueByPriority::new();
        let ready = self.index.ready.keys().filter(|(_, class)| class.fleet == fleet);
        for (project, class) in ready {
            let priority = Reverse(class.origin.priority(self.limits.priorities));
            queue.entry(priority).or_default().entry(*project).or_default().push(*class);
        }
        queue
    }

    fn capacity(&self, fleet: Fleet) -> Capacity {
        let machines = move || self.live_machines().filter(move |machine| machine.fleet == fleet);
        let launched = machines().filter(|machine| machine.kind == MachineKind::Launched);
        let launchable: Vec<(Arch, ProviderName)> = self.launchable(fleet).collect();
        let max_concurrent = self.limits.max_of(fleet) as usize;
        let has_slot = !launchable.is_empty() && launched.count() < max_concurrent;
        // A machine that the cloud is about to reclaim gets no further job.
        let takes_work = |machine: &&Machine| {
            let is_there = machine.connected && machine.interruption.is_none();
            machine.kind == MachineKind::Registered && is_there
        };
        let registered = || machines().filter(takes_work);
        let idle = registered().filter(|machine| machine.state == MachineState::Ready);
        Capacity {
            fleet,
            idle: idle.map(|machine| (machine.arch, machine.id)).collect(),
            connected: registered().map(|machine| machine.arch).collect(),
            available: self.available(fleet),
            launchable,
            has_slot,
            at_limit: self.at_limit(fleet),
            reserved: self.reservations(),
        }
    }

    /// The projects that have reached their limit in `fleet`, with that limit. A launched machine counts from its request to its
    /// end, since it costs money all the time; a registered machine counts while it is busy.
    fn at_limit(&self, fleet: Fleet) -> BTreeMap<ProjectId, u32> {
        let mut in_use: BTreeMap<ProjectId, u32> = BTreeMap::new();
        for machine in self.live_machines().filter(|machine| machine.fleet == fleet) {
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

    /// A queued job that must run natively although no machine of its arch is registered or can be launched. If there
    /// is no machine of any arch, the job waits for one.
    fn next_without_arch(&self) -> Option<(JobId, Arch)> {
        let ready = self.index.ready.iter().map(|((_, class), jobs)| (class, jobs));
        let queued = ready.chain(&self.index.blocked);
        let mut native = queued.filter(|(class, _)| class.must_be_native).peekable();
        native.peek()?;
        let available = self.available(Fleet::Builder);
        if available.is_empty() {
            return None;
        }
        let is_lacking = |arch: &Arch| !available.contains(arch);
        native.find_map(|(class, jobs)| Some((jobs.first()?.1, class.arch.filter(is_lacking)?)))
    }

    /// The arches of `fleet` that can be launched or that a registered machine has, connected or not.
    pub(super) fn available(&self, fleet: Fleet) -> BTreeSet<Arch> {
        let registered = self
            .live_machines()
            .filter(|machine| machine.kind == MachineKind::Registered && machine.fleet == fleet);
        let launchable = self.launchable(fleet).map(|(arch, _)| arch);
        registered.map(|machine| machine.arch).chain(launchable).collect()
    }

    /// Finds a machine for a ready job, or returns what the job waits for.
    fn find_machine(
        &self,
        class: JobClass,
        capacity: &Capacity,
    ) -> Result<Assignment, QueueReason> {
        let JobClass { arch, must_be_native, .. } = class;
        let fits = |machine: Arch| arch.is_none_or(|arch| arch == machine);
        // A registered machine emulates an arch only if no machine has it, connected or not.
        let is_lacking = arch.is_some_and(|arch| !capacity.available.contains(&arch));
        let takes_any = is_lacking && !must_be_native;
        let will_do = |machine: Arch| fits(machine) || takes_any;
        if let Some((_, machine)) = capacity.idle.iter().find(|(machine, _)| will_do(*machine)) {
            return Ok(Assignment::Registered(*machine));
        }
        let launchable = &capacity.launchable;
        let native = launchable.iter().copied().find(|(launchable, _)| fits(*launchable));
        let has_registered = capacity.connected.iter().any(|connected| fits(*connected));
        let may_emulate = !has_registered && !must_be_native;
        match native.or_else(|| launchable.first().copied().filter(|_| may_emulate)) {
            Some((arch, provider)) if capacity.has_slot => Ok(Assignment::Launch(arch, provider)),
            Some(_) => {
                let fleet = capacity.fleet;
                Err(QueueReason::FleetLimit { fleet, max_concurrent: self.limits.max_of(fleet) })
            }
            None => Err(QueueReason::RegisteredMachine { arch: arch.filter(|_| !takes_any) }),
        }
    }
}

/// These projects, the one whose last assignment is the oldest first.
///
/// A round-robin pointer could starve a project where machines differ: it could pass the project each time at a moment
/// when the free machine does not fit.
fn longest_waiting_first<T>(projects: &BTreeMap<ProjectId, T>, served: &Served) -> Vec<ProjectId> {
    let mut turns: Vec<ProjectId> = projects.keys().copied().collect();
    turns.sort_by_key(|project| served.get(project).copied().unwrap_or(0));
    turns
}

impl Step<'_> {
    /// Assigns queued jobs to machines while both are there.
    pub(super) fn schedule(&mut self, new_id: &mut dyn FnMut() -> u128) {
        while let Some((job, arch)) = self.state.next_without_arch() {
            self.refuse_emulation(job, arch);
        }
        self.assign_merges_to_builders();
        while let Some((fleet, project, job, assignment)) = self.next_to_serve() {
            self.state.note_served(fleet, project);
            match assignment {
                Assignment::Registered(machine) => {
                    self.begin_attempt(job, machine);
                    self.assign(machine, job);
                }
                Assignment::Launch(arch, provider) => {
                    self.launch(MachineId::from_bits(new_id()), job, arch, provider);
                }
            }
        }
    }

    fn next_to_serve(&self) -> Option<(Fleet, ProjectId, JobId, Assignment)> {
        QUEUED_FLEETS.into_iter().find_map(|fleet| {
            let (project, job, assignment) = self.next_in(fleet)?;
            Some((fleet, project, job, assignment))
        })
    }

    fn next_in(&self, fleet: Fleet) -> Option<(ProjectId, JobId, Assignment)> {
        let queue = self.state.ready_by_priority(fleet);
        if queue.is_empty() {
            return None;
        }
        let capacity = self.state.capacity(fleet);
        if capacity.idle.is_empty() && !capacity.has_slot {
            return None;
        }
        queue.values().find_map(|projects| {
            let turns = longest_waiting_first(projects, self.state.served_of(fleet)).into_iter();
            let mut turns = turns.filter(|project| !capacity.at_limit.contains_key(project));
            turns.find_map(|project| {
                let (job, assignment) =
                    self.state.first_assignable(project, &projects[&project], &capacity)?;
                Some((project, job, assignment))
            })
        })
    }

    /// Fails a job that must run natively and for whose arch there is no machine.
    fn refuse_emulation(&mut self, job: JobId, arch: Arch) {
        let message = format!(
            "no machine builds for {arch} natively, and `emulation: forbid` is set: register a machine \
             of that arch with `stagely machines add`, or allow emulation in stagely.yaml"
        );
        self.fail_job(job, JobFailure::new(FailureReason::Emulation, message));
    }

    /// Begins the job's next attempt on `machine`.
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
            job.results = None;
            job.artifacts = None;
            job.emulated = job.arch().is_some_and(|native| arch != Some(native));
        });
    }

    pub(super) fn launch(&mut self, id: MachineId, job: JobId, arch: Arch, provider: ProviderName) {
        let Some(job) = self.state.jobs.get(&job) else { return };
        let machine = Machine {
            size: job.size,
            fleet: job.kind.fleet(),
            provider,
            on_demand: job.is_last_launch(&self.state.limits),
            requested_for: Some(job.id),
            lease_until: Some(self.state.lease_for(job, self.now)),
            ..Machine::new(id, MachineKind::Launched, arch, self.now)
        };
        let bill = self.state.new_bill(job, &machine);
        let job = job.id;
        self.state.insert_machine(Machine { bill, ..machine });
        self.begin_attempt(job, id);
        self.emit(Effect::Launch { machine: id });
    }
}

impl Job {
    /// The needed jobs that have not completed.
    pub(super) fn missing_needs(
        &self,
        jobs: &BTreeMap<JobId, Self>,
    ) -> impl Iterator<Item = JobId> {
        let is_completed = |id: &JobId| {
            jobs.get(id).is_some_and(|job| matches!(job.state, JobState::Completed { .. }))
        };
        self.needs.iter().copied().filter(move |needed| !is_completed(needed))
    }

    /// Whether as many machines were requested as there may be attempts, but for one. On demand there is more capacity,
    /// and nothing takes the machine back.
    fn is_last_launch(&self, limits: &Limits) -> bool {
        let failed = self.missing_capacity.as_ref().map_or(0, |gap| gap.launches);
        let last = self.last_attempt(limits);
        matches!(self.state, JobState::Queued { attempt } if attempt + failed >= last)
    }

    /// The arch that the job runs on natively; `None`: any.
    pub(super) const fn arch(&self) -> Option<Arch> {
        match &self.kind {
            JobKind::Build { platform, .. } => Some(platform.arch()),
            JobKind::Deploy { arch, .. } | JobKind::Test { arch, .. } => *arch,
            JobKind::Merge { .. } => None,
        }
    }

    const fn must_be_native(&self) -> bool {
        match &self.kind {
            JobKind::Build { emulation, .. } => matches!(emulation, Emulation::Forbid),
            JobKind::Merge { .. } | JobKind::Deploy { .. } | JobKind::Test { .. } => false,
        }
    }
}

impl JobClass {
    pub(super) const fn of(job: &Job, run: &Run) -> Self {
        let origin = Origin::of(run.trigger);
        let (fleet, arch) = (job.kind.fleet(), job.arch());
        Self { fleet, origin, arch, must_be_native: job.must_be_native() }
    }

    pub(super) const fn fleet(self) -> Fleet {
        self.fleet
    }
}

impl Limits {
    /// The most launched machines of `fleet` at once.
    pub const fn max_of(&self, fleet: Fleet) -> u32 {
        match fleet {
            Fleet::Builder => self.max_concurrent,
            Fleet::Preview => self.previews.max_concurrent,
            Fleet::Tester => self.max_testers,
        }
    }

    /// The priority of a run's jobs; higher goes first.
    pub(super) const fn priority_of(&self, trigger: Trigger) -> u8 {
        Origin::of(trigger).priority(self.priorities)
    }
}

impl Origin {
    const fn of(trigger: Trigger) -> Self {
        match trigger {
            Trigger::Push | Trigger::WarmUp => Self::DefaultBranch,
            Trigger::PrOpened | Trigger::PrSynchronized => Self::PullRequest,
            Trigger::Manual
            | Trigger::Rebuild
            | Trigger::Wake
            | Trigger::Reset
            | Trigger::ImagesGone => Self::Manual,
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
