//! The order of the queue: the highest priority first, within a priority no project twice while another waits, and
//! within a project the oldest job. No project has more machines than its limit.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use stagely_protocol::{Arch, Emulation, Platform, SystemInfo};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId, SessionId};
use stagely_state::{
    Budget, Effect, Environment, Event, Fleet, Job, JobKind, JobOutcome, JobReport, JobState,
    Limits, Machine, MachineKind, MachineState, PlannedJob, PlannedRun, PreviewLimits,
    PreviewState, Prices, Priorities, Project, ProviderName, Run, State, Timestamp, Trigger,
};

use crate::money;
use crate::transitions::{self, Before};

/// The jobs that were passed over.
#[derive(Default)]
pub(crate) struct ServiceOrder {
    /// The waiting jobs, each with the projects that got a machine that the job could have used.
    passed_over: BTreeSet<(JobId, ProjectId)>,
}

impl ServiceOrder {
    pub(crate) fn restart(&mut self) {
        self.passed_over.clear();
    }

    /// Checks the assignments of a step with these effects.
    pub(crate) fn check(&mut self, core: &State, before: &Before, effects: &[Effect]) {
        let served: Vec<(&Machine, &Job)> =
            effects.iter().filter_map(|effect| served(core, before, effect)).collect();
        check_assigned(core, before, &served);
        // A merge on a builder of its build takes no machine from another job.
        let served: Vec<(&Machine, &Job)> =
            served.into_iter().filter(|(_, job)| job.took_over.is_none()).collect();
        for (turn, (machine, job)) in served.iter().enumerate() {
            assert!(could_use(core, job, machine), "{} is on a machine of another kind", job.id);
            let is_needless = machine.kind == MachineKind::Launched && can_launch_native(core, job);
            assert!(
                !is_needless || is_native(job, machine.arch),
                "{} is emulated needlessly",
                job.id
            );
            let later = served[turn + 1..].iter().map(|(_, job)| *job);
            // A later assignment of this step may have reached the project's limit.
            let may_have_more = |job: &&Job| !is_at_limit(core, job);
            let queued = core.jobs.values().filter(|job| is_ready(core, job));
            let queued = queued.filter(may_have_more);
            // A job that no budget sufficed for was passed over, and its reason may be another one by now.
            let has_price = machine.kind == MachineKind::Launched && money::has_budget(core);
            let queued = queued.chain(later).filter(|_| !has_price);
            for waiting in queued.filter(|job| could_use(core, job, machine)) {
                self.check_turn(core, job, waiting);
            }
            let turn_of = |job: &Job| (project_of(core, job), job.kind.fleet());
            self.passed_over.retain(|(waiting, _)| {
                core.jobs.get(waiting).is_some_and(|waiting| turn_of(waiting) != turn_of(job))
            });
        }
    }

    fn check_turn(&mut self, core: &State, served: &Job, waiting: &Job) {
        let project = project_of(core, served);
        let (mine, theirs) = (priority(core, served), priority(core, waiting));
        assert!(
            mine >= theirs,
            "{} is served before {}, which is more urgent",
            served.id,
            waiting.id
        );
        if mine > theirs {
            return;
        }
        if project_of(core, waiting) == project {
            let position = |job: &Job| (job.queued_at, job.id);
            assert!(position(served) < position(waiting), "{} jumps the queue", served.id);
        } else {
            let is_first = self.passed_over.insert((waiting.id, project));
            assert!(is_first, "{project} is served twice while {} waits", waiting.id);
        }
    }
}

/// The machine and the job that `effect` assigns for the first time.
fn served<'a>(core: &'a State, before: &Before, effect: &Effect) -> Option<(&'a Machine, &'a Job)> {
    let machine = match effect {
        Effect::Assign { machine, .. } | Effect::Launch { machine } => {
            core.machines.get(machine)?
        }
        _ => return None,
    };
    let attempt = transitions::current(core, machine)?;
    // Deployments and tests on the machines of previews are not served in turns.
    if machine.fleet == Fleet::Preview {
        return None;
    }
    let is_new = !before.had(machine.id, attempt);
    is_new.then(|| core.jobs.get(&attempt.job).map(|job| (machine, job)))?
}

/// Each new assignment has an effect.
fn check_assigned(core: &State, before: &Before, served: &[(&Machine, &Job)]) {
    for machine in core.live_machines().filter(|machine| machine.fleet != Fleet::Preview) {
        let attempt = transitions::current(core, machine);
        if let Some(attempt) = attempt.filter(|attempt| !before.had(machine.id, *attempt)) {
            let count = served.iter().filter(|(_, job)| job.id == attempt.job).count();
            assert_eq!(count, 1, "{} gets no order for {attempt:?}", machine.id);
        }
    }
}

fn project_of(core: &State, job: &Job) -> ProjectId {
    core.runs[&job.run].project
}

fn priority(core: &State, job: &Job) -> u8 {
    let priorities = core.limits.priorities;
    match core.runs[&job.run].trigger {
        Trigger::Push | Trigger::WarmUp => priorities.default_branch,
        Trigger::PrOpened | Trigger::PrSynchronized => priorities.pull_request,
        Trigger::Manual
        | Trigger::Rebuild
        | Trigger::Wake
        | Trigger::Reset
        | Trigger::ImagesGone => priorities.manual,
    }
}

/// The machines of `fleet` that have jobs of `project`.
fn machines_of(core: &State, fleet: Fleet, project: ProjectId) -> usize {
    let is_its_own = |machine: &&Machine| {
        let job = machine.job().and_then(|job| core.jobs.get(&job));
        job.is_some_and(|job| core.runs.get(&job.run).is_some_and(|run| run.project == project))
    };
    machines_in(core, fleet).filter(is_its_own).count()
}

/// The live machines of the fleet.
pub(crate) fn machines_in(core: &State, fleet: Fleet) -> impl Iterator<Item = &Machine> {
    core.live_machines().filter(move |machine| machine.fleet == fleet)
}

/// Whether the job's project has as many machines of the job's fleet as it may.
fn is_at_limit(core: &State, job: &Job) -> bool {
    let project = project_of(core, job);
    let limit = core.projects.get(&project).and_then(|project| project.max_concurrent);
    let machines = machines_of(core, job.kind.fleet(), project);
    limit.is_some_and(|limit| machines >= limit.get() as usize)
}

/// Whether the job only waits for a builder or a tester.
pub(crate) fn is_ready(core: &State, job: &Job) -> bool {
    let is_completed = |id| matches!(core.jobs[id].state, JobState::Completed { .. });
    job.kind.fleet() != Fleet::Preview
        && matches!(job.state, JobState::Queued { .. })
        && job.needs.iter().all(is_completed)
        && serves_tested(core, job)
}

/// Whether the preview that the job tests is live and shows what the test is for, or it tests none.
pub(crate) fn serves_tested(core: &State, job: &Job) -> bool {
    let Some(requested_at) = job.kind.test().and_then(|test| test.preview_of) else { return true };
    let environment = core.runs[&job.run].environment;
    let mut previews = core.previews.values();
    previews.any(|preview| {
        let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
        preview.environment == environment
            && matches!(preview.state, PreviewState::Live { .. })
            && shown == Some(requested_at)
    })
}

/// Whether `machine` can do the job.
pub(crate) fn could_use(core: &State, job: &Job, machine: &Machine) -> bool {
    let will_do = match machine.kind {
        MachineKind::Registered => {
            let has_arch = is_native(job, machine.arch) || may_emulate(core, job);
            has_arch && machine.interruption.is_none()
        }
        MachineKind::Launched => may_launch(core, job),
    };
    will_do && job.kind.fleet() == machine.fleet
}

/// Whether a registered machine may emulate the job's arch, because no machine has it, connected or not.
pub(crate) fn may_emulate(core: &State, job: &Job) -> bool {
    !must_be_native(job) && !has_native(core, job)
}

/// Whether a registered machine, or one that may be launched, has the job's arch.
pub(crate) fn has_native(core: &State, job: &Job) -> bool {
    let fleet = job.kind.fleet();
    let mut registered =
        machines_in(core, fleet).filter(|machine| machine.kind == MachineKind::Registered);
    core.launchable(fleet).any(|(arch, _)| is_native(job, arch))
        || registered.any(|machine| is_native(job, machine.arch))
}

/// Whether a machine may be launched for the job: one of its arch, or another one if no machine has its arch.
pub(crate) fn may_launch(core: &State, job: &Job) -> bool {
    let fleet = job.kind.fleet();
    let mut registered =
        machines_in(core, fleet).filter(|machine| machine.kind == MachineKind::Registered);
    let has_native = registered.any(|machine| {
        machine.connected && machine.interruption.is_none() && is_native(job, machine.arch)
    });
    can_launch_native(core, job)
        || core.launchable(fleet).next().is_some() && !has_native && !must_be_native(job)
}

/// Whether a machine of the job's arch may be launched.
fn can_launch_native(core: &State, job: &Job) -> bool {
    core.launchable(job.kind.fleet()).any(|(arch, _)| is_native(job, arch))
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
        JobKind::Deploy { arch: wanted, .. } | JobKind::Test { arch: wanted, .. } => {
            wanted.is_none_or(|wanted| wanted == arch)
        }
    }
}

// Whole queues without faults.

const SLOTS: u32 = 50;

/// A core whose machines take one step in each round.
struct Crowd {
    core: State,
    now: Timestamp,
    last_id: u128,
    session: SessionId,
    /// The most machines at once: of all projects, and of each.
    most: usize,
    most_of: BTreeMap<ProjectId, usize>,
    /// The jobs with their projects, in the order of their assignments.
    served: Vec<(JobId, ProjectId)>,
}

impl Crowd {
    fn new() -> Self {
        let limits = Limits {
            max_concurrent: SLOTS,
            max_attempts: 3,
            boot: Duration::from_mins(5),
            reconnect_grace: Duration::from_mins(2),
            job_grace: Duration::from_mins(1),
            lease: Duration::from_hours(1),
            cache_export: Duration::from_mins(10),
            planned_at_once: 1_000,
            planning: Duration::from_mins(10),
            priorities: Priorities::default(),
            launchable: BTreeMap::from([(Arch::Amd64, ProviderName::Local)]),
            max_testers: 0,
            launchable_previews: BTreeMap::new(),
            launchable_testers: BTreeMap::new(),
            capacity_wait: Duration::from_secs(30),
            capacity_limit: Duration::from_hours(1),
            previews: PreviewLimits::default(),
            prices: Prices::default(),
            budget: Budget::default(),
        };
        Self {
            core: State::new(limits),
            now: Timestamp(1_700_000_000_000),
            last_id: 0,
            session: SessionId::default(),
            most: 0,
            most_of: BTreeMap::new(),
            served: Vec::new(),
        }
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    fn step(&mut self, event: Event) {
        let last_id = &mut self.last_id;
        let mut new_id = || {
            *last_id += 1;
            *last_id
        };
        for effect in self.core.step(event, self.now, &mut new_id).effects {
            if let Effect::Launch { machine } = effect {
                let job = &self.core.jobs[&self.core.machines[&machine]
                    .requested_for
                    .expect("a launched machine has a job")];
                self.served.push((job.id, project_of(&self.core, job)));
            }
        }
        self.most = self.most.max(self.core.live_machines().count());
        let projects: Vec<ProjectId> = self.core.projects.keys().copied().collect();
        for project in projects {
            let most = self.most_of.entry(project).or_default();
            *most = machines_of(&self.core, Fleet::Builder, project).max(*most);
        }
    }

    fn limit(&mut self, project: u128, limit: u32) {
        let mut project = new_project(project);
        project.max_concurrent = NonZeroU32::new(limit);
        self.step(Event::ProjectSet { project });
    }

    /// Runs of one build each, every one in an environment of its own.
    fn run(&mut self, project: u128, trigger: Trigger, count: usize) -> Vec<JobId> {
        (0..count).map(|_| self.run_once(project, trigger)).collect()
    }

    fn run_once(&mut self, project: u128, trigger: Trigger) -> JobId {
        let project = new_project(project);
        let (environment, id) = (EnvironmentId::from_bits(self.id()), RunId::from_bits(self.id()));
        let mut environment = Environment::new(environment, project.id, String::new());
        let is_pull = matches!(trigger, Trigger::PrOpened | Trigger::PrSynchronized);
        environment.pull_request = is_pull.then_some(7);
        let mut run = Run::new(id, &environment, String::new(), self.now);
        run.trigger = trigger;
        self.step(Event::RunRequested { run: Box::new(run), project, environment });
        let job = build(JobId::from_bits(self.id()));
        let job_id = job.id;
        let plan =
            PlannedRun::new("c".repeat(40).parse().expect("40 hexadecimal digits"), vec![job]);
        self.step(Event::RunPlanned { run: id, plan: Ok(plan) });
        job_id
    }

    /// Lets every machine take one step.
    fn round(&mut self) {
        self.now = self.now.after(Duration::from_secs(1));
        let machines: Vec<Machine> = self.core.live_machines().cloned().collect();
        for Machine { id: machine, state, .. } in machines {
            self.session = self.session.next();
            let session = self.session;
            self.step(match state {
                MachineState::Requested => Event::MachineLaunched { machine, placement: None },
                MachineState::Booting | MachineState::Ready => {
                    let system_info = SystemInfo {
                        hostname: "builder".to_owned(),
                        architecture: Arch::Amd64,
                        docker_version: String::new(),
                        emulated: Vec::new(),
                    };
                    let (holds, previews) = (Vec::new(), None);
                    Event::AgentConnected { machine, session, system_info, holds, previews }
                }
                MachineState::Busy { attempt } => {
                    let report = JobReport::new(JobOutcome::Completed { digest: None });
                    Event::JobReported { machine, attempt, report }
                }
                MachineState::Terminating => Event::MachineGone { machine, taken_back: false },
                MachineState::Terminated => continue,
            });
        }
    }

    /// Plays rounds until no job waits or runs.
    fn finish(&mut self) {
        for _ in 0..1_000 {
            if self.core.live_machines().next().is_none() && self.core.queue().is_empty() {
                let is_done = |job: &Job| matches!(job.state, JobState::Completed { .. });
                assert!(self.core.jobs.values().all(is_done));
                return;
            }
            self.round();
        }
        panic!("{} jobs still wait", self.core.queue().len());
    }

    fn restart(&mut self) {
        self.core = State::load(self.core.limits.clone(), self.core.snapshot());
        self.step(Event::CoreStarted);
    }
}

fn new_project(id: u128) -> Project {
    Project::new(ProjectId::from_bits(id), String::new(), String::new())
}

fn build(id: JobId) -> PlannedJob {
    let image = "registry/app:1".parse().expect("an image reference");
    let kind = JobKind::build(Platform(Arch::Amd64), image);
    let timeout = Duration::from_mins(30);
    PlannedJob { name: id.to_string(), ..PlannedJob::new(id, "app", kind, timeout) }
}

#[test]
fn of_a_hundred_pull_requests_at_once_exactly_fifty_run_and_all_end() {
    let mut crowd = Crowd::new();
    for project in [1, 2, 3, 4] {
        crowd.run(project, Trigger::PrOpened, 25);
    }
    assert_eq!(crowd.core.live_machines().count(), 50);
    assert_eq!(crowd.core.queue().len(), 50);

    crowd.finish();

    assert_eq!(crowd.most, 50);
    assert_eq!(crowd.served.len(), 100);
}

#[test]
fn the_projects_of_a_full_queue_take_turns_and_what_is_urgent_goes_first() {
    let mut crowd = Crowd::new();
    crowd.run(9, Trigger::PrOpened, 50);
    let branches = crowd.run(1, Trigger::Push, 10);
    for project in [1, 2, 3] {
        crowd.run(project, Trigger::PrSynchronized, 10);
    }
    let manual = crowd.run(3, Trigger::Manual, 2);

    crowd.finish();

    let later = &crowd.served[50..];
    let jobs = |range: &[(JobId, ProjectId)]| range.iter().map(|(job, _)| *job).collect::<Vec<_>>();
    assert_eq!(jobs(&later[..2]), manual);
    for turns in later[2..32].chunks(3) {
        let projects: BTreeSet<ProjectId> = turns.iter().map(|(_, project)| *project).collect();
        assert_eq!(projects.len(), 3, "a project is served twice: {turns:?}");
    }
    assert_eq!(jobs(&later[32..]), branches);
}

#[test]
fn a_project_with_a_limit_does_not_block_others_and_its_jobs_end() {
    let mut crowd = Crowd::new();
    crowd.limit(1, 5);
    crowd.run(1, Trigger::Manual, 60);
    crowd.run(2, Trigger::PrOpened, 60);

    assert_eq!(crowd.core.live_machines().count(), 50);
    crowd.finish();

    assert_eq!(crowd.most_of[&ProjectId::from_bits(1)], 5);
    assert_eq!(crowd.most_of[&ProjectId::from_bits(2)], 45);
}

#[test]
fn a_restart_in_the_middle_loses_no_job_of_the_queue() {
    let mut crowd = Crowd::new();
    crowd.limit(1, 5);
    for project in [1, 2, 3, 4] {
        crowd.run(project, Trigger::PrOpened, 25);
    }
    for _ in 0..3 {
        crowd.round();
    }
    let waiting = |crowd: &Crowd| -> BTreeSet<JobId> {
        crowd.core.queue().iter().map(|queued| queued.job).collect()
    };
    let before = waiting(&crowd);
    assert!(!before.is_empty());

    crowd.restart();

    assert_eq!(waiting(&crowd), before);
    crowd.finish();
    assert_eq!((crowd.most, crowd.served.len()), (50, 100));
}
