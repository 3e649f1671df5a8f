//! What ended runs cost: memory, the start, and requests, with few and with many of them in the store.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stagely::api::{AddMachine, ListRuns};
use stagely::core::store::{Batch, RecordTable, Store};
use stagely_protocol::{Arch, Digest, Step};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{
    ClosedBy, Ended, EndedRun, Environment, EnvironmentState, Job, JobKind, JobState, PlannedJob,
    Project, Run, RunState, Timestamp, Trigger,
};
use tempfile::TempDir;

use crate::load::as_f64;
use crate::report::{Row, median, print, quantile};
use crate::webhooks::Subject;

/// The numbers of ended runs that are compared.
const FEW: u64 = 100;
const MANY: u64 = 100_000;

const RUNS_OF_A_PULL_REQUEST: u64 = 10;
const JOBS: [&str; 3] = ["linux/amd64", "linux/arm64", "merge"];
const STEPS_OF_A_JOB: usize = 8;

/// Runs in one transaction of the filling.
const BATCH_RUNS: u64 = 1_000;

/// Requests of each kind, in alternation between both cores.
const REQUESTS: u64 = 200;

/// Pull requests that are opened on each core, in alternation.
const PULL_REQUESTS: u64 = 60;

/// The time between the creation of two runs. All are younger than the retention.
const BETWEEN_RUNS: Duration = Duration::from_mins(1);

pub(crate) async fn measure() -> anyhow::Result<()> {
    let few = Measured::start(FEW).await?;
    let many = Measured::start(MANY).await?;
    let (mut lists, mut adds, mut hooks) = (Times::default(), Times::default(), Times::default());
    let mut old = Times::default();
    for number in 0..REQUESTS {
        for (side, measured) in [&few, &many].into_iter().enumerate() {
            lists.add(side, measured.list().await?);
            old.add(side, measured.old_run(number).await?);
            adds.add(side, measured.add_machine().await?);
        }
    }
    // The first connects and warms up, and is not counted.
    for number in 0..=PULL_REQUESTS {
        for (side, measured) in [&few, &many].into_iter().enumerate() {
            let seconds = measured.subject.time_to_machine(number + 1).await?;
            if number > 0 {
                hooks.add(side, seconds);
            }
        }
    }
    let mib = |bytes: u64| as_f64(bytes) / 1024.0 / 1024.0;
    let (memory, of_few) = (many.subject.core.memory()?.rss, few.subject.core.memory()?.rss);
    let of_run = |measured: &Measured| as_f64(measured.bytes) / as_f64(measured.runs);
    print(vec![
        Row {
            what: format!("core's resident memory with {MANY} ended runs (raw: with {FEW})"),
            stagely: format!("{:.0} MiB", mib(memory)),
            raw: format!("{:.0} MiB", mib(of_few)),
            ratio: format!("{:.2}", as_f64(memory) / as_f64(of_few)),
            aim: "≤ 100 MiB".to_owned(),
            is_met: Some(mib(memory) <= 100.0),
        },
        Row {
            what: "core started to ready".to_owned(),
            stagely: format!("{:.0} ms", many.start.as_secs_f64() * 1e3),
            raw: format!("{:.0} ms", few.start.as_secs_f64() * 1e3),
            aim: "≤ 1 s".to_owned(),
            is_met: Some(many.start <= Duration::from_secs(1)),
            ..Row::default()
        },
        hooks.row("webhook sent to machine asked for, p50 / p99", true),
        lists.row("GET /runs, 50 runs, p50 / p99", true),
        old.row("GET /runs/ID of an ended run, p50 / p99", false),
        adds.row("POST /machines, p50 / p99", true),
        Row {
            what: "size of the database for each run of 3 jobs, without logs".to_owned(),
            stagely: format!("{:.0} bytes", of_run(&many)),
            ..Row::default()
        },
    ]);
    Ok(())
}

/// Seconds with few and with many ended runs.
#[derive(Default)]
struct Times([Vec<f64>; 2]);

impl Times {
    fn add(&mut self, side: usize, seconds: f64) {
        self.0[side].push(seconds * 1e3);
    }

    fn row(&self, what: &str, has_aim: bool) -> Row {
        let [few, many] = &self.0;
        let ratio = median(many) / median(few);
        let shown =
            |times: &[f64]| format!("{:.2} / {:.2} ms", median(times), quantile(times, 0.99));
        Row {
            what: what.to_owned(),
            stagely: shown(many),
            raw: shown(few),
            ratio: format!("{ratio:.2}"),
            aim: if has_aim { "ratio ≤ 1.1".to_owned() } else { String::new() },
            is_met: has_aim.then_some(ratio <= 1.1),
        }
    }
}

/// A core with ended runs in its store.
struct Measured {
    subject: Subject,
    runs: u64,
    first: RunId,
    start: Duration,
    /// The size of the filled database.
    bytes: u64,
}

impl Measured {
    async fn start(runs: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (first, bytes) = fill(&folder, runs)?;
        let begin = Instant::now();
        let subject = Subject::start_in(folder, 2 * PULL_REQUESTS).await?;
        let start = begin.elapsed();
        Ok(Self { subject, runs, first, start, bytes })
    }

    async fn list(&self) -> anyhow::Result<f64> {
        let begin = Instant::now();
        self.subject.core.client.runs(&ListRuns::default()).await?;
        Ok(begin.elapsed().as_secs_f64())
    }

    async fn old_run(&self, number: u64) -> anyhow::Result<f64> {
        // Spread over all of them.
        let number = u128::from(number * 7_919 % self.runs);
        let id = RunId::from_bits(self.first.bits() + (number << 80) * BETWEEN_RUNS.as_millis());
        let begin = Instant::now();
        self.subject.core.client.run(id).await?;
        Ok(begin.elapsed().as_secs_f64())
    }

    async fn add_machine(&self) -> anyhow::Result<f64> {
        let machine = AddMachine::new(Arch::of_this_program());
        let begin = Instant::now();
        self.subject.core.client.add_machine(&machine).await?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// Fills a new store with ended runs. Returns the oldest one, and the size of the database in bytes.
fn fill(folder: &TempDir, runs: u64) -> anyhow::Result<(RunId, u64)> {
    let path = folder.path().join("data");
    std::fs::create_dir(&path)?;
    let path = path.join("core.redb");
    let (store, _) = Store::open(&path)?;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let age = BETWEEN_RUNS * u32::try_from(runs)?;
    let oldest = Timestamp(u64::try_from(now.saturating_sub(age).as_millis())?);
    let project =
        Project::new(ProjectId::from_bits(1), "ended".to_owned(), "https://h/r".to_owned());
    for begin in (0..runs).step_by(usize::try_from(BATCH_RUNS)?) {
        let mut batch = Batch::default();
        batch.record(RecordTable::Projects, project.id.bits(), Some(&project));
        let mut ended = Ended::default();
        for number in begin..runs.min(begin + BATCH_RUNS) {
            let environment = environment(&project, number / RUNS_OF_A_PULL_REQUEST);
            let key = environment.id.bits();
            batch.record(RecordTable::Environments, key, Some(&environment));
            ended.runs.push(ended_run(&environment, number, oldest)?);
        }
        batch.end(ended);
        store.commit(&batch)?;
    }
    drop(store);
    Ok((run_id(0, oldest), size_of(&path)?))
}

fn size_of(path: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(path).context("the database is not there")?.len())
}

fn environment(project: &Project, number: u64) -> Environment {
    let id = EnvironmentId::from_bits(u128::from(number) + 1);
    let environment = Environment::new(id, project.id, format!("pr-{number}"));
    Environment {
        pull_request: Some(number),
        state: EnvironmentState::closed(ClosedBy::Github),
        ..environment
    }
}

fn run_id(number: u64, oldest: Timestamp) -> RunId {
    let created_at = oldest.after(BETWEEN_RUNS * u32::try_from(number).unwrap_or(u32::MAX));
    RunId::from_bits(u128::from(created_at.0) << 80)
}

fn ended_run(
    environment: &Environment,
    number: u64,
    oldest: Timestamp,
) -> anyhow::Result<EndedRun> {
    let id = run_id(number, oldest);
    let created_at = Timestamp(u64::try_from(id.bits() >> 80)?);
    let commit = format!("{:040x}", u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let run = Run {
        trigger: Trigger::PrSynchronized,
        requested_ref: Some(commit.clone()),
        commit: Some(commit.parse()?),
        branch: Some(format!("change-{number}")),
        state: RunState::Completed,
        ended_at: Some(created_at.after(Duration::from_mins(4))),
        ..Run::new(id, environment, "https://h/r".to_owned(), created_at)
    };
    let jobs = JOBS.iter().zip(1..).map(|(platform, place)| ended_job(&run, platform, place));
    Ok(EndedRun { jobs: jobs.collect::<anyhow::Result<_>>()?, run })
}

fn ended_job(run: &Run, platform: &str, place: u128) -> anyhow::Result<Job> {
    let image = format!("registry.example.com/ended/pr:{}-{place}", run.id).parse()?;
    let kind = match platform.parse() {
        Ok(platform) => JobKind::build(platform, image),
        Err(_) => JobKind::Merge { platforms: Vec::new(), image },
    };
    let id = JobId::from_bits(run.id.bits() + place);
    let planned = PlannedJob::new(id, "app", kind, Duration::from_mins(30));
    let digest: Digest = format!("sha256:{:064x}", id.bits().wrapping_mul(0x9E37_79B9)).parse()?;
    let steps = (1..=STEPS_OF_A_JOB).map(|step| Step {
        name: format!("[{step}/{STEPS_OF_A_JOB}] RUN make part-{step}"),
        seconds: as_f64(step as u64) * 1.7,
        cached: step % 2 == 0,
    });
    Ok(Job {
        attempt: 1,
        state: JobState::Completed { digest: Some(digest) },
        started_at: Some(run.created_at),
        ended_at: run.ended_at,
        steps: steps.collect(),
        ..Job::queued(planned, run.id, run.created_at)
    })
}
