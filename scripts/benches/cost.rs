//! What a pull request costs: a day of a hundred pull requests on simulated machines, with the built-in prices. A
//! simulated clock drives the pure core from event to event, and the accounts are those of the core.
//!
//! The machine of a test is bought as that of a build is, at the price of a tester.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stagely::config::Config;
use stagely_protocol::{Arch, BuildArgs, Platform, Submodules, SystemInfo};
use stagely_state::ids::{EnvironmentId, JobId, PreviewId, ProjectId, RunId, SessionId};
use stagely_state::{
    Access, Deployment, Effect, Environment, Event, Extras, Fleet, Job, JobKind, JobOutcome,
    JobReport, Limits, Machine, MachineSize, Market, Placement, PlannedJob, PlannedRun,
    PreviewSettings, PreviewState, Prices, Project, ProviderName, Run, Spending, State, Timestamp,
    Trigger, Usd, UsedImage,
};

use crate::report::{Row, print};

const PULL_REQUESTS: u64 = 100;
/// One is opened in each of these.
const INTERVAL: Duration = Duration::from_mins(6);
/// From opened to closed.
const OPEN: Duration = Duration::from_hours(4);

/// From running to the agent's connection, and from the request to end a machine to its end.
const BOOT: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(20);
/// With boot and end 10 and 15 minutes, as in the original document.
const BUILD: Duration = Duration::from_secs(10 * 60 - 40);
const TEST: Duration = Duration::from_secs(15 * 60 - 40);
const DEPLOY: Duration = Duration::from_secs(40);
const ARCHIVE: Duration = Duration::from_secs(10);
const SLEEP_AFTER: Duration = Duration::from_mins(20);

/// When somebody looks at the preview, after the pull request was opened, and for how long.
const LOOKS: [Duration; 2] = [Duration::from_mins(11), Duration::from_hours(2)];
const LOOK: Duration = Duration::from_mins(25);
const VISIT: Duration = Duration::from_mins(1);

/// The sizes by which machines are told apart here.
const BUILDER: MachineSize = MachineSize::Medium;
const TESTER: MachineSize = MachineSize::Large;

/// Prices of an hour on demand: c5.xlarge, t3.medium, c5.2xlarge in us-east-1.
const BUILDER_PRICE: Usd = Usd(170_000);
const PREVIEW_PRICE: Usd = Usd(41_600);
const TESTER_PRICE: Usd = Usd(340_000);
/// What a spot machine costs of the price on demand, in percent.
const SPOT_PERCENT: u64 = 40;

const ORIGINAL: f64 = 0.28;
const AIM: f64 = 0.10;

/// How pull requests are handled.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    market: Market,
    sleeps: bool,
    /// Whether address and disk are counted.
    has_extras: bool,
    /// Whether the tests have a machine of their own.
    has_tester: bool,
    aim: Option<f64>,
}

const WAYS: [Way; 5] = [
    Way {
        name: "the original document's way: on demand, previews awake for 4 h, without address and disk",
        market: Market::OnDemand,
        sleeps: false,
        has_extras: false,
        has_tester: true,
        aim: None,
    },
    Way {
        name: "all on demand, previews sleep",
        market: Market::OnDemand,
        sleeps: true,
        has_extras: true,
        has_tester: true,
        aim: None,
    },
    Way {
        name: "spot, previews never sleep",
        market: Market::Spot,
        sleeps: false,
        has_extras: true,
        has_tester: true,
        aim: None,
    },
    Way {
        name: "spot, previews sleep",
        market: Market::Spot,
        sleeps: true,
        has_extras: true,
        has_tester: true,
        aim: Some(AIM),
    },
    Way {
        name: "spot, previews sleep, tests on the preview's machine",
        market: Market::Spot,
        sleeps: true,
        has_extras: true,
        has_tester: false,
        aim: None,
    },
];

pub(crate) fn measure() -> anyhow::Result<()> {
    print_assumptions();
    let mut rows = Vec::new();
    for way in WAYS {
        let costs = Day::play(way)?;
        let total = costs.total();
        let parts = format!(
            "{} (build {:.3}, preview {:.3}, tests {:.3})",
            way.name, costs.build, costs.preview, costs.test
        );
        rows.push(Row {
            what: parts,
            stagely: format!("${total:.3}"),
            raw: format!("${ORIGINAL:.2}"),
            ratio: format!("{:.2}", total / ORIGINAL),
            aim: way.aim.map(|aim| format!("≤ ${aim:.2}")).unwrap_or_default(),
            is_met: way.aim.map(|aim| total <= aim),
        });
    }
    print(rows);
    Ok(())
}

fn print_assumptions() {
    let minutes = |time: Duration| time.as_secs() / 60;
    eprintln!(
        "{PULL_REQUESTS} pull requests a day, one every {} minutes, each open for {} hours, with one push;\n\
         a build of {} minutes on c5.xlarge ({BUILDER_PRICE}/h), a test of {} minutes on c5.2xlarge \
         ({TESTER_PRICE}/h), both with boot and end;\n\
         previews on t3.medium ({PREVIEW_PRICE}/h), looked at twice for {} minutes, asleep {} minutes after that;\n\
         a spot machine costs {SPOT_PERCENT} % of its price on demand; address $0.005/h; 50 GiB of disk, 20 GiB \
         of previews, at $0.08 a GiB and month; paid by the second",
        minutes(INTERVAL),
        OPEN.as_secs() / 3600,
        minutes(BOOT + BUILD + END),
        minutes(BOOT + TEST + END),
        minutes(LOOK),
        minutes(SLEEP_AFTER),
    );
}

/// Dollars for a pull request.
struct Costs {
    build: f64,
    preview: f64,
    test: f64,
}

impl Costs {
    fn total(&self) -> f64 {
        self.build + self.preview + self.test
    }
}

/// The pure core, and a simulated world with exact durations.
struct Day {
    way: Way,
    core: State,
    now: Timestamp,
    last_id: u128,
    /// Future events, by their time and then in the order in which they were caused.
    coming: BTreeMap<(Timestamp, u64), Coming>,
    caused: u64,
    plans: BTreeMap<RunId, PlannedRun>,
    sessions: SessionId,
}

enum Coming {
    Event(Box<Event>),
    /// Somebody looks at the preview of an environment.
    Visit(EnvironmentId),
}

impl Day {
    fn play(way: Way) -> anyhow::Result<Costs> {
        let begin = Timestamp(1_700_000_000_000);
        let mut day = Self {
            way,
            core: State::new(limits(way)),
            now: begin,
            last_id: 0,
            coming: BTreeMap::new(),
            caused: 0,
            plans: BTreeMap::new(),
            sessions: SessionId::default(),
        };
        day.step(Event::CoreStarted)?;
        for number in 0..PULL_REQUESTS {
            day.open(number, INTERVAL * u32::try_from(number)?);
        }
        while let Some(coming) = day.next() {
            match coming {
                Coming::Event(event) => day.step(*event)?,
                Coming::Visit(environment) => day.visit(environment)?,
            }
        }
        ensure!(day.core.live_machines().next().is_none(), "machines are left");
        day.costs()
    }

    /// The next event, which can be one of core's own deadlines.
    fn next(&mut self) -> Option<Coming> {
        let (&(at, _), _) = self.coming.first_key_value()?;
        if let Some(deadline) = self.core.next_deadline().filter(|deadline| *deadline < at) {
            self.now = deadline.max(self.now.after(Duration::from_millis(1)));
            return Some(Coming::Event(Box::new(Event::Tick)));
        }
        self.now = self.now.max(at);
        self.coming.pop_first().map(|(_, coming)| coming)
    }

    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        let last_id = &mut self.last_id;
        let mut new_id = || {
            *last_id += 1;
            *last_id
        };
        let outcome = self.core.step(event, self.now, &mut new_id);
        ensure!(outcome.anomalies.is_empty(), "{:?}", outcome.anomalies);
        for effect in outcome.effects {
            self.perform(effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Plan { run } => {
                let plan = self.plans.remove(&run).context("a run is planned twice")?;
                self.after(Duration::ZERO, Event::RunPlanned { run, plan: Ok(plan) });
            }
            Effect::Launch { machine } => {
                let record = self.core.machines.get(&machine).context("no such machine")?;
                let placement = Some(self.placement(record));
                self.after(Duration::ZERO, Event::MachineLaunched { machine, placement });
                self.sessions = self.sessions.next();
                let connected = Event::AgentConnected {
                    machine,
                    session: self.sessions,
                    system_info: SystemInfo {
                        hostname: "simulated".to_owned(),
                        architecture: Arch::Amd64,
                        docker_version: String::new(),
                        emulated: Vec::new(),
                    },
                    holds: Vec::new(),
                    previews: None,
                };
                self.after(BOOT, connected);
            }
            Effect::Assign { machine, attempt } => {
                let job = self.core.jobs.get(&attempt.job).context("no such job")?;
                let runs = duration(job);
                let report = JobReport::new(JobOutcome::Completed { digest: None });
                self.after(Duration::ZERO, Event::JobStarted { machine, attempt });
                self.after(runs, Event::JobReported { machine, attempt, report });
            }
            Effect::Terminate { machine } => {
                self.after(END, Event::MachineGone { machine, taken_back: false });
            }
            Effect::Sleep { machine, preview } => {
                let archived =
                    Event::PreviewArchived { machine, preview, archive: None, problem: None };
                self.after(ARCHIVE, archived);
            }
            Effect::CleanUp { environment } => {
                let refs = std::collections::BTreeSet::new();
                self.after(Duration::ZERO, Event::CleanedUp { environment, refs });
            }
            other => anyhow::bail!("nothing here should cause {other:?}"),
        }
        Ok(())
    }

    fn placement(&self, machine: &Machine) -> Placement {
        let price = price(machine.fleet, machine.size);
        let spot_price = Usd(price.0 * SPOT_PERCENT / 100);
        Placement {
            provider_id: machine.id.to_string(),
            instance_type: String::new(),
            zone: None,
            market: self.way.market,
            price: Some(price),
            spot_price: (self.way.market == Market::Spot).then_some(spot_price),
        }
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now.after(wait), Coming::Event(Box::new(event)));
    }

    fn at(&mut self, at: Timestamp, coming: Coming) {
        self.caused += 1;
        self.coming.insert((at, self.caused), coming);
    }

    fn id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    /// Opens a pull request after `wait`, which is looked at and closed later.
    fn open(&mut self, number: u64, wait: Duration) {
        let (run, environment) = (RunId::from_bits(self.id()), EnvironmentId::from_bits(self.id()));
        let build = planned(JobId::from_bits(self.id()), BUILDER);
        let mut jobs = vec![build.clone()];
        jobs.push(deployment(JobId::from_bits(self.id()), build.id, self.way.sleeps));
        if self.way.has_tester {
            let test = planned(JobId::from_bits(self.id()), TESTER);
            jobs.push(PlannedJob { needs: vec![build.id], ..test });
        }
        let project = Project::new(ProjectId::from_bits(1), "app".to_owned(), String::new());
        let mut record = Environment::new(environment, project.id, format!("pr-{number}"));
        record.pull_request = Some(number + 1);
        let opened_at = self.now.after(wait);
        let mut request = Run::new(run, &record, String::new(), opened_at);
        request.trigger = Trigger::PrOpened;
        let commit = "c".repeat(40).parse().expect("40 hexadecimal digits");
        self.plans.insert(run, PlannedRun::new(commit, jobs));
        let event = Event::RunRequested { run: Box::new(request), project, environment: record };
        self.at(opened_at, Coming::Event(Box::new(event)));
        for look in LOOKS {
            for minute in 0..LOOK.as_secs() / VISIT.as_secs() {
                let at = opened_at.after(look).after(VISIT * u32::try_from(minute).unwrap_or(0));
                self.at(at, Coming::Visit(environment));
            }
        }
        let closed = Event::EnvironmentClosed { environment };
        self.at(opened_at.after(OPEN), Coming::Event(Box::new(closed)));
    }

    fn visit(&mut self, environment: EnvironmentId) -> anyhow::Result<()> {
        let preview = self.core.preview_of(environment).context("there is no preview")?;
        ensure!(!matches!(preview.state, PreviewState::Failed { .. }), "a deployment failed");
        let preview: PreviewId = preview.id;
        self.step(Event::PreviewRequested { preview, at: self.now })
    }

    fn costs(&self) -> anyhow::Result<Costs> {
        let project = self.core.projects.values().next().context("there is no project")?;
        let mut spending = Spending::default();
        for month in project.spending.values() {
            spending += *month;
        }
        let of_tests =
            self.core.jobs.values().filter(|job| job.size == TESTER && !job.kind.is_deploy());
        let test: Usd = of_tests.map(|job| job.cost.amount).sum();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let each = |Usd(millionths): Usd| millionths as f64 / 1e6 / PULL_REQUESTS as f64;
        let builders = spending.of(Fleet::Builder).amount;
        Ok(Costs {
            build: each(builders.saturating_sub(test)),
            preview: each(spending.of(Fleet::Preview).amount),
            test: each(test),
        })
    }
}

fn duration(job: &Job) -> Duration {
    match &job.kind {
        JobKind::Deploy { .. } => DEPLOY,
        _ if job.size == TESTER => TEST,
        _ => BUILD,
    }
}

fn price(fleet: Fleet, size: MachineSize) -> Usd {
    match fleet {
        Fleet::Preview => PREVIEW_PRICE,
        Fleet::Builder | Fleet::Tester if size == TESTER => TESTER_PRICE,
        Fleet::Builder | Fleet::Tester => BUILDER_PRICE,
    }
}

/// The defaults of the configuration, with machines of AWS and their prices.
fn limits(way: Way) -> Limits {
    let limits = Config::default().limits();
    let mut prices = Prices::default();
    for fleet in Fleet::ALL {
        for size in MachineSize::ALL {
            let key = (ProviderName::Aws, fleet, Arch::Amd64, size);
            prices.machines.insert(key, price(fleet, size));
        }
    }
    if way.has_extras {
        let extras = Extras { address: Usd(5_000), disk_gib_month: Usd(80_000), disk_gib: 50 };
        prices.extras.insert(ProviderName::Aws, extras);
    }
    let aws = BTreeMap::from([(Arch::Amd64, ProviderName::Aws)]);
    let mut previews = limits.previews;
    (previews.max_concurrent, previews.max_of_project) = (1_000, 1_000);
    Limits {
        max_concurrent: 1_000,
        launchable: aws.clone(),
        launchable_previews: aws,
        prices,
        previews,
        ..limits
    }
}

fn planned(id: JobId, size: MachineSize) -> PlannedJob {
    let image = "registry/app:1".parse().expect("an image reference");
    let kind = JobKind::build(Platform(Arch::Amd64), image);
    let timeout = Duration::from_mins(30);
    PlannedJob { name: id.to_string(), size, ..PlannedJob::new(id, "app", kind, timeout) }
}

fn deployment(id: JobId, build: JobId, sleeps: bool) -> PlannedJob {
    let deployment = Deployment {
        compose: None,
        images: BTreeMap::from([("app".to_owned(), UsedImage::Job { job: build })]),
        default_images: BTreeMap::new(),
        endpoints: Vec::new(),
        env: BuildArgs::default(),
        submodules: Submodules::default(),
        secrets: Vec::new(),
        migrate: None,
        seed: None,
        fresh: false,
        reset_when: Vec::new(),
        disk_gib: 20,
        settings: PreviewSettings {
            access: Access::Link,
            public_paths: Vec::new(),
            on_request: false,
            sleep_after: sleeps.then_some(SLEEP_AFTER),
            ttl: Duration::from_hours(7 * 24),
        },
    };
    let kind = JobKind::Deploy { arch: Some(Arch::Amd64), deployment: Box::new(deployment) };
    let timeout = Duration::from_mins(30);
    let job = PlannedJob::new(id, "deploy", kind, timeout);
    PlannedJob { name: "deploy".to_owned(), needs: vec![build], ..job }
}
