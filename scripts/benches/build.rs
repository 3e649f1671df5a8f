//! A whole build through Stagely, compared with the same commands in a shell script.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use secrecy::ExposeSecret as _;
use stagely::api::RunView;
use stagely_test_support::registry::Registry;

use crate::STAGELY;
use crate::core::Core;
use crate::git;
use crate::report::{Pairs, Row, print};

const PAIRS_COLD: usize = 5;
const PAIRS_CACHED: usize = 9;

const MANIFEST: &str = "builds:\n  app: { context: . }\n";
const DOCKERFILE: &str = include_str!("service/Dockerfile");
const GENERATOR: &str = include_str!("service/generate.awk");

/// The times of a build, in seconds.
struct Build {
    /// The whole build.
    seconds: f64,
    /// Its RUN steps alone, whose time is the compiler's.
    run_steps: f64,
}

impl Build {
    fn around_steps(&self) -> f64 {
        self.seconds - self.run_steps
    }
}

pub(crate) async fn measure() -> anyhow::Result<()> {
    let registry = Registry::real();
    let files =
        [("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE), ("generate.awk", GENERATOR)];
    let (_folder, repository) = git::local_repository(&files)?;
    let mut core = Core::start(&registry.settings().to_string()).await?;
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();

    let (mut cold, mut around) = (Pairs::default(), Pairs::default());
    for pair in 0..PAIRS_COLD {
        let salt = |of: &str| format!("{begin}-{pair}-{of}");
        let (stagely, raw) = measure_pair(&core, &registry, &repository, pair, salt)?;
        cold.0.push((stagely.seconds, raw.seconds));
        around.0.push((stagely.around_steps(), raw.around_steps()));
        print_pairs("cold", &cold);
        print_pairs("cold, around the RUN steps", &around);
    }
    let mut cached = Pairs::default();
    for pair in 0..=PAIRS_CACHED {
        let salt = |_: &str| format!("{begin}-cached");
        let (stagely, raw) = measure_pair(&core, &registry, &repository, pair, salt)?;
        // The first build fills the caches.
        if pair > 0 {
            cached.0.push((stagely.seconds, raw.seconds));
            print_pairs("cached", &cached);
        }
    }
    core.stop().await?;
    print(rows(&cold, &around, &cached));
    Ok(())
}

fn print_pairs(what: &str, pairs: &Pairs) {
    if let Some((stagely, raw)) = pairs.0.last() {
        eprintln!("build, {what}, pair {}: {stagely:.2} s, raw {raw:.2} s", pairs.0.len());
    }
}

/// Builds both ways, one after the other; every second pair in reverse order.
fn measure_pair(
    core: &Core,
    registry: &Registry,
    repository: &Path,
    pair: usize,
    salt: impl Fn(&str) -> String,
) -> anyhow::Result<(Build, Build)> {
    if pair.is_multiple_of(2) {
        let stagely = by_stagely(core, repository, &salt("stagely"))?;
        Ok((stagely, by_script(registry, repository, &salt("raw"))?))
    } else {
        let raw = by_script(registry, repository, &salt("raw"))?;
        Ok((by_stagely(core, repository, &salt("stagely"))?, raw))
    }
}

fn rows(cold: &Pairs, around: &Pairs, cached: &Pairs) -> Vec<Row> {
    let row = |what: &str, pairs: &Pairs, aim: &str, is_met: bool| {
        let (stagely, raw) = pairs.medians();
        Row {
            what: what.to_owned(),
            stagely: format!("{stagely:.2} s ({:+.2} s)", pairs.difference()),
            raw: format!("{raw:.2} s"),
            ratio: format!("{:.3}", pairs.ratio()),
            aim: aim.to_owned(),
            is_met: Some(is_met),
        }
    };
    let cold_is_met = cold.ratio() <= 1.05 && cold.difference() <= 0.5;
    vec![
        row("whole build, cold (raw: shell script)", cold, "≤ 1.05, ≤ +0.5 s", cold_is_met),
        row(
            "the same without the time of its RUN steps",
            around,
            "≤ +0.5 s",
            around.difference() <= 0.5,
        ),
        row("whole build, all steps cached", cached, "≤ +0.5 s", cached.difference() <= 0.5),
    ]
}

fn by_stagely(core: &Core, repository: &Path, salt: &str) -> anyhow::Result<Build> {
    let mut command = Command::new(STAGELY);
    command
        .arg("run")
        .arg(repository)
        .arg("--json")
        .args(["--set", &format!("SALT={salt}")])
        .env("STAGELY_SERVER", core.url.as_str())
        .env("STAGELY_TOKEN", core.token.expose_secret());
    let (seconds, output) = timed(command)?;
    let run: RunView = serde_json::from_slice(&output.stdout)?;
    let steps = run.jobs.iter().flat_map(|job| &job.steps);
    let run_steps = steps.filter(|step| is_run(&step.name)).map(|step| step.seconds).sum();
    Ok(Build { seconds, run_steps })
}

fn by_script(registry: &Registry, repository: &Path, salt: &str) -> anyhow::Result<Build> {
    let (seconds, output) = timed(script(registry, "service-bare", repository, salt))?;
    Ok(Build { seconds, run_steps: run_steps(&String::from_utf8_lossy(&output.stderr)) })
}

/// The script that builds the project without Stagely.
pub(crate) fn script(registry: &Registry, project: &str, repository: &Path, salt: &str) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/benches/bare-build.sh");
    let mut command = Command::new("bash");
    command
        .arg(script)
        .arg(repository)
        .arg(salt)
        .arg(format!("{}/{project}/main:app-amd64", registry.url))
        .arg(format!("{}/{project}/cache:app", registry.url));
    command
}

pub(crate) fn is_run(step: &str) -> bool {
    step.contains("] RUN ")
}

/// The seconds of all RUN steps, from buildx's plain progress: `#9 [build 4/5] RUN …`, `#9 DONE 7.1s`.
fn run_steps(progress: &str) -> f64 {
    let numbers = progress.lines().filter(|line| is_run(line));
    let numbers: BTreeSet<&str> = numbers.filter_map(|line| line.split(' ').next()).collect();
    let seconds = |line: &str| {
        let (number, seconds) = line.split_once(" DONE ")?;
        let seconds = seconds.strip_suffix('s')?.parse::<f64>().ok()?;
        numbers.contains(number).then_some(seconds)
    };
    progress.lines().filter_map(seconds).sum()
}

/// Runs a command that must succeed. Returns its seconds and its output.
pub(crate) fn timed(mut command: Command) -> anyhow::Result<(f64, Output)> {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((seconds, output))
}
