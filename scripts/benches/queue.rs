//! How well the queue uses the slots: a hundred pull requests of three builds each on simulated machines,
//! compared with lower bounds. A simulated clock drives the pure core from event to event, so makespans
//! depend only on the seeds, and only the time of a step depends on this machine.
//!
//! A slot is in use from the launch of a machine until the provider reports its end. The slot time of a
//! build is the time of launch, build and end.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use stagely::config::Config;
use stagely_protocol::{Arch, Platform, SystemInfo};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId, SessionId};
use stagely_state::{
    Effect, Environment, Event, JobKind, JobOutcome, JobReport, JobState, Limits, PlannedJob,
    PlannedRun, Project, ProviderName, Run, State, Timestamp, Trigger,
};

use crate::report::{Pairs, Row, median, print, quantile};

const SEEDS: u64 = 20;
const SLOTS: u32 = 50;
const BUILDS_OF_A_PULL_REQUEST: usize = 3;
/// The time from the provider's response to a termination until the machine's end.
const END: Duration = Duration::from_secs(5);
const RATIO_MAX: f64 = 1.02;

/// The number of pull requests of a project, and its limit of machines.
struct Share {
    pull_requests: usize,
    limit: Option<u32>,
}

const ONE_PROJECT: [Share; 1] = [Share { pull_requests: 100, limit: None }];

/// Both limits matter: 60 builds, 10 at once, take as long as all 300 builds, 50 at once.
const THREE_PROJECTS: [Share; 3] = [
    Share { pull_requests: 20, limit: Some(10) },
    Share { pull_requests: 35, limit: Some(20) },
    Share { pull_requests: 45, limit: Some(30) },
];

pub(crate) fn measure() -> anyhow::Result<()> {
    let mut steps = Vec::new();
    let free = compare("one project", &ONE_PROJECT, &mut steps)?;
    let limited = compare("three projects", &THREE_PROJECTS, &mut steps)?;
    let mut rows = free.rows("100 pull requests × 3 builds, 50 slots");
    rows.extend(limited.rows("the same in 3 projects limited to 10, 20 and 30"));
    rows.push(step_row(&steps));
    rows.extend(waiting_rows());
    print(rows);
    Ok(())
}

/// Makespans in seconds, each paired with its reference.
#[derive(Default)]
struct Comparison {
    bound: Pairs,
    in_order: Pairs,
    longest_first: Pairs,
}

fn compare(name: &str, shares: &[Share], steps: &mut Vec<Duration>) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    for seed in 0..SEEDS {
        let work = Work::new(seed, shares);
        let makespan = Simulation::run(&work, steps)?.as_secs_f64();
        let bound = work.bound().as_secs_f64();
        let in_order = work.in_order().as_secs_f64();
        let longest_first = work.longest_first().as_secs_f64();
        eprintln!(
            "{name}, seed {seed}: {makespan:.0} s; bound {bound:.0} s ({:.3}), in order \
             {in_order:.0} s ({:.3}), longest first {longest_first:.0} s ({:.3})",
            makespan / bound,
            makespan / in_order,
            makespan / longest_first,
        );
        comparison.bound.0.push((makespan, bound));
        comparison.in_order.0.push((makespan, in_order));
        comparison.longest_first.0.push((makespan, longest_first));
    }
    Ok(comparison)
}

impl Comparison {
    fn rows(&self, what: &str) -> Vec<Row> {
        let row = |raw: &str, pairs: &Pairs, has_aim: bool| {
            let (stagely, ideal) = pairs.medians();
            Row {
                what: format!("{what} (raw: {raw})"),
                stagely: format!("{stagely:.0} s"),
                raw: format!("{ideal:.0} s"),
                ratio: format!("{:.3}", pairs.ratio()),
                aim: if has_aim { format!("≤ {RATIO_MAX}") } else { String::new() },
                is_met: has_aim.then(|| pairs.ratio() <= RATIO_MAX),
            }
        };
        vec![
            row("lower bound, slots full to the end", &self.bound, true),
            row("list scheduling in order of arrival", &self.in_order, true),
            row("longest first, as if durations were known", &self.longest_first, false),
        ]
    }
}

/// A build that has not started.
#[derive(Clone, Copy)]
struct Build {
    project: usize,
    launch: Duration,
    runs: Duration,
}

impl Build {
    fn slot_time(&self) -> Duration {
        self.launch + self.runs + END
    }
}

/// All builds, in the order in which they arrive.
struct Work {
    builds: Vec<Build>,
    /// The most machines of each project.
    limits: Vec<Option<u32>>,
}

impl Work {
    fn new(seed: u64, shares: &[Share]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let most = shares.iter().map(|share| share.pull_requests).max().unwrap_or(0);
        let mut builds = Vec::new();
        // The projects take turns.
        for number in 0..most {
            for (project, share) in shares.iter().enumerate() {
                if number < share.pull_requests {
                    let build = |_| Build {
                        project,
                        launch: Duration::from_millis(rng.random_range(20_000..=40_000)),
                        runs: Duration::from_millis(rng.random_range(60_000..=600_000)),
                    };
                    builds.extend((0..BUILDS_OF_A_PULL_REQUEST).map(build));
                }
            }
        }
        Self { builds, limits: shares.iter().map(|share| share.limit).collect() }
    }

    /// The lower bound of every scheduler: the largest of the total slot time over the slots, a project's
    /// slot time over its limit, and the longest slot time. It is reached if all slots end together.
    fn bound(&self) -> Duration {
        let total = |project: Option<usize>| -> Duration {
            let counts = |build: &&Build| project.is_none_or(|project| project == build.project);
            self.builds.iter().filter(counts).map(Build::slot_time).sum()
        };
        let longest = self.builds.iter().map(Build::slot_time).max();
        let limited = self.limits.iter().enumerate();
        let limited = limited.filter_map(|(id, limit)| Some(total(Some(id)) / (*limit)?));
        limited.chain(longest).fold(total(None) / SLOTS, Duration::max)
    }

    /// List scheduling in order of arrival. Without limits of projects, a scheduler that does not know the
    /// durations of builds cannot be expected to be faster. With limits another order can be.
    fn in_order(&self) -> Duration {
        list_schedule(self.builds.clone(), &self.limits)
    }

    /// List scheduling by known durations, longest first.
    fn longest_first(&self) -> Duration {
        let mut builds = self.builds.clone();
        builds.sort_by_key(|build| std::cmp::Reverse(build.slot_time()));
        list_schedule(builds, &self.limits)
    }
}

/// Graham's list scheduling, without any of the product's code: each free slot takes the first build of the
/// list that its project's limit allows. Returns the end of the last build.
fn list_schedule(mut waiting: Vec<Build>, limits: &[Option<u32>]) -> Duration {
    let mut now = Duration::ZERO;
    let mut running: Vec<(Duration, usize)> = Vec::new();
    loop {
        let may_start = |build: &Build| {
            let of_project = running.iter().filter(|(_, project)| *project == build.project);
            running.len() < SLOTS as usize
                && limits[build.project].is_none_or(|limit| of_project.count() < limit as usize)
        };
        if let Some(index) = waiting.iter().position(may_start) {
            let build = waiting.remove(index);
            running.push((now + build.slot_time(), build.project));
        } else if let Some(next) = running.iter().map(|(end, _)| *end).min() {
            now = next;
            running.retain(|(end, _)| *end > now);
        } else {
            return now;
        }
    }
}

/// The pure core, and a simulated world with exact durations.
struct Simulation<'a> {
    core: State,
    now: Timestamp,
    last_id: u128,
    /// Future events, by their time and then in the order in which they were caused.
    coming: BTreeMap<(Timestamp, u64), Event>,
    caused: u64,
    plans: BTreeMap<RunId, PlannedRun>,
    builds: BTreeMap<JobId, Build>,
    work: &'a Work,
    /// The real time of each step.
    steps: &'a mut Vec<Duration>,
}

impl<'a> Simulation<'a> {
    /// Runs all of `work` and returns the makespan.
    fn run(work: &'a Work, steps: &'a mut Vec<Duration>) -> anyhow::Result<Duration> {
        let begin = Timestamp(1_700_000_000_000);
        let mut simulation = Self {
            core: State::new(limits()),
            now: begin,
            last_id: 0,
            coming: BTreeMap::new(),
            caused: 0,
            plans: BTreeMap::new(),
            builds: BTreeMap::new(),
            work,
            steps,
        };
        simulation.step(Event::CoreStarted)?;
        for (project, limit) in work.limits.iter().enumerate() {
            let mut project = new_project(project);
            project.max_concurrent = limit.and_then(NonZeroU32::new);
            simulation.step(Event::ProjectSet { project })?;
        }
        for builds in work.builds.chunks(BUILDS_OF_A_PULL_REQUEST) {
            simulation.open(builds);
        }
        while let Some(event) = simulation.next() {
            simulation.step(event)?;
        }
        let is_completed = |state: &JobState| matches!(state, JobState::Completed { .. });
        let completed =
            simulation.core.jobs.values().filter(|job| is_completed(&job.state)).count();
        ensure!(completed == work.builds.len(), "only {completed} builds completed");
        Ok(simulation.now.since(begin))
    }

    /// Advances the time to the next event, which can be one of core's own deadlines.
    fn next(&mut self) -> Option<Event> {
        let (&(at, _), _) = self.coming.first_key_value()?;
        if let Some(deadline) = self.core.next_deadline().filter(|deadline| *deadline < at) {
            self.now = deadline.max(self.now.after(Duration::from_millis(1)));
            return Some(Event::Tick);
        }
        self.now = self.now.max(at);
        self.coming.pop_first().map(|(_, event)| event)
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let last_id = &mut self.last_id;
        let mut new_id = || {
            *last_id += 1;
            *last_id
        };
        let begin = Instant::now();
        let outcome = self.core.step(event, self.now, &mut new_id);
        self.steps.push(begin.elapsed());
        for effect in outcome.effects {
            self.perform(effect)?;
        }
        self.check_limits()
    }

    fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Plan { run } => {
                let plan = self.plans.remove(&run).context("a run is planned twice")?;
                self.after(Duration::ZERO, Event::RunPlanned { run, plan: Ok(plan) });
            }
            Effect::Launch { machine } => {
                let job =
                    self.core.machines.get(&machine).and_then(|machine| machine.requested_for);
                let launch = self.build(job.context("a machine is for no job")?)?.launch;
                let session = SessionId::default();
                let system_info = SystemInfo {
                    hostname: "simulated".to_owned(),
                    architecture: Arch::Amd64,
                    docker_version: String::new(),
                    emulated: Vec::new(),
                };
                let connected = Event::AgentConnected {
                    machine,
                    session,
                    system_info,
                    holds: Vec::new(),
                    previews: None,
                };
                self.after(launch, Event::MachineLaunched { machine, placement: None });
                self.after(launch, connected);
            }
            Effect::Assign { machine, attempt } => {
                let runs = self.build(attempt.job)?.runs;
                let report = JobReport::new(JobOutcome::Completed { digest: None });
                self.after(Duration::ZERO, Event::JobStarted { machine, attempt });
                self.after(runs, Event::JobReported { machine, attempt, report });
            }
            Effect::Terminate { machine } => {
                self.after(END, Event::MachineGone { machine, taken_back: false });
            }
            other => anyhow::bail!("nothing here should cause {other:?}"),
        }
        Ok(())
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.caused += 1;
        self.coming.insert((self.now.after(wait), self.caused), event);
    }

    fn build(&self, job: JobId) -> anyhow::Result<Build> {
        self.builds.get(&job).copied().with_context(|| format!("{job} is unknown"))
    }

    /// Checks that no more slots are in use than there are.
    fn check_limits(&self) -> anyhow::Result<()> {
        let mut of_project = vec![0_u32; self.work.limits.len()];
        for machine in self.core.live_machines() {
            let job = machine.requested_for.context("a machine is for no job")?;
            of_project[self.build(job)?.project] += 1;
        }
        let in_use: u32 = of_project.iter().sum();
        ensure!(in_use <= SLOTS, "{in_use} machines for {SLOTS} slots");
        for (in_use, limit) in of_project.iter().zip(&self.work.limits) {
            ensure!(limit.is_none_or(|limit| *in_use <= limit), "{in_use} machines of a project");
        }
        Ok(())
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    /// Opens a pull request at the present time.
    fn open(&mut self, builds: &[Build]) {
        let Some(first) = builds.first() else { return };
        let jobs: Vec<PlannedJob> = builds
            .iter()
            .map(|build| {
                let job = planned(JobId::from_bits(self.id()));
                self.builds.insert(job.id, *build);
                job
            })
            .collect();
        let id = RunId::from_bits(self.id());
        let environment = EnvironmentId::from_bits(self.id());
        let (event, plan) = pull_request(first.project, id, environment, jobs, self.now);
        self.plans.insert(id, plan);
        self.after(Duration::ZERO, event);
    }
}

/// The defaults of the configuration, with a provider of AMD64 machines.
fn limits() -> Limits {
    let limits = Config::default().limits();
    Limits {
        max_concurrent: SLOTS,
        max_testers: 0,
        launchable_testers: BTreeMap::new(),
        launchable: BTreeMap::from([(Arch::Amd64, ProviderName::Local)]),
        ..limits
    }
}

fn new_project(number: usize) -> Project {
    Project::new(ProjectId::from_bits(number as u128 + 1), format!("p{number}"), String::new())
}

/// The event of a pull request, and the plan of its `stagely.yaml`.
fn pull_request(
    project: usize,
    id: RunId,
    environment: EnvironmentId,
    jobs: Vec<PlannedJob>,
    now: Timestamp,
) -> (Event, PlannedRun) {
    let project = new_project(project);
    let mut environment = Environment::new(environment, project.id, environment.to_string());
    environment.pull_request = Some(1);
    let mut run = Run::new(id, &environment, String::new(), now);
    run.trigger = Trigger::PrOpened;
    let commit = "c".repeat(40).parse().expect("40 hexadecimal digits");
    let event = Event::RunRequested { run: Box::new(run), project, environment };
    (event, PlannedRun::new(commit, jobs))
}

fn planned(id: JobId) -> PlannedJob {
    let image = "registry/app:1".parse().expect("an image reference");
    let kind = JobKind::build(Platform(Arch::Amd64), image);
    let timeout = Duration::from_mins(30);
    PlannedJob { name: id.to_string(), ..PlannedJob::new(id, "app", kind, timeout) }
}

fn step_row(steps: &[Duration]) -> Row {
    let micros: Vec<f64> = steps.iter().map(|step| step.as_secs_f64() * 1e6).collect();
    Row {
        what: format!("a step of these, p50 / p99 of {}", steps.len()),
        stagely: format!("{:.0} / {:.0} µs", median(&micros), quantile(&micros, 0.99)),
        ..Row::default()
    }
}

const WAITING_PROJECTS: usize = 20;
const WAITING_RUNS: usize = 10;
const WAITING_JOBS: usize = 50;
const WAITING_STEPS: usize = 100;

/// The time of a step while ten thousand jobs wait, and of the queue's list after each step.
fn waiting_rows() -> Vec<Row> {
    let mut core = State::new(limits());
    let now = Timestamp(1_700_000_000_000);
    let mut last_id = 0;
    let mut id = || {
        last_id += 1;
        last_id
    };
    for project in 0..WAITING_PROJECTS {
        for _ in 0..WAITING_RUNS {
            let jobs = (0..WAITING_JOBS).map(|_| planned(JobId::from_bits(id()))).collect();
            let (run, environment) = (RunId::from_bits(id()), EnvironmentId::from_bits(id()));
            let (event, plan) = pull_request(project, run, environment, jobs, now);
            for event in [event, Event::RunPlanned { run, plan: Ok(plan) }] {
                core.step(event, now, &mut id);
            }
        }
    }
    let mut measure = |mut work: Box<dyn FnMut(&mut State)>| -> Vec<f64> {
        let once = |_| {
            let begin = Instant::now();
            work(&mut core);
            begin.elapsed().as_secs_f64() * 1e6
        };
        (0..WAITING_STEPS).map(once).collect()
    };
    let no_machine = || -> u128 { unreachable!("all slots are taken") };
    let steps = measure(Box::new(move |core| {
        core.step(Event::Tick, now, &mut { no_machine });
    }));
    let lists = measure(Box::new(|core| {
        std::hint::black_box(core.queue());
    }));
    let row = |what: &str, micros: &[f64]| Row {
        what: format!("{what}, p50 / p99 of {WAITING_STEPS}"),
        stagely: format!("{:.0} / {:.0} µs", median(micros), quantile(micros, 0.99)),
        ..Row::default()
    };
    let waiting = core.queue().len();
    vec![
        row(&format!("a step while {waiting} jobs wait"), &steps),
        row("the list of them, after each step", &lists),
    ]
}
