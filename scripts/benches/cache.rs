//! The time that the layer cache saves, on new and empty engines: a fresh build, a build without changes,
//! and a build with one changed file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use stagely::api::RunView;
use stagely_test_support::engine::PrivateEngine;
use stagely_test_support::git::git;
use stagely_test_support::registry::Registry;
use tempfile::TempDir;

use crate::STAGELY;
use crate::build::{is_run, script, timed};
use crate::git::local_repository;
use crate::report::{Row, median, print};

const ROUNDS: usize = 3;

const MANIFEST: &str = "builds:\n  app: { context: . }\n";
const DOCKERFILE: &str = include_str!("layered/Dockerfile");

/// The library takes two processors about a minute to compile, the application a few seconds.
const LIBRARY: Part = Part { folder: "library", files: 14, functions: 1_000 };
const APPLICATION: Part = Part { folder: "application", files: 2, functions: 400 };

/// Generated C files. The first of the application contains `main`.
#[derive(Clone, Copy)]
struct Part {
    folder: &'static str,
    files: usize,
    functions: usize,
}

impl Part {
    fn write(self, repository: &Path, first: usize) -> anyhow::Result<()> {
        let generator =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/benches/service/generate.awk");
        fs::create_dir(repository.join(self.folder))?;
        for part in first..first + self.files {
            let mut awk = Command::new("awk");
            awk.args(["-v", &format!("part={part}"), "-v"]);
            awk.arg(format!("functions={}", self.functions)).arg("-f").arg(&generator);
            let (_, source) = timed(awk)?;
            fs::write(repository.join(self.folder).join(format!("part{part}.c")), source.stdout)?;
        }
        Ok(())
    }
}

/// A repository to build both ways, under new names in the registry.
struct Project {
    repository: PathBuf,
    name: String,
    /// Core's data folder, kept from run to run.
    state: TempDir,
    _folder: TempDir,
}

impl Project {
    fn new(round: usize) -> anyhow::Result<Self> {
        let files = [("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE)];
        let (folder, repository) = local_repository(&files)?;
        APPLICATION.write(&repository, 1)?;
        LIBRARY.write(&repository, 1 + APPLICATION.files)?;
        let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let name = format!("bench-cache-{begin}-{round}");
        let project = Self { repository, name, state: tempfile::tempdir()?, _folder: folder };
        project.commit();
        Ok(project)
    }

    fn commit(&self) {
        git(&self.repository, &["add", "--all"]);
        let as_somebody = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
        let commit = ["commit", "--quiet", "--message=another"];
        git(&self.repository, &[&as_somebody[..], &commit].concat());
    }

    fn change_one_file(&self) -> anyhow::Result<()> {
        let file = self.repository.join(APPLICATION.folder).join("part2.c");
        let source = fs::read_to_string(&file)?;
        fs::write(&file, source + "unsigned changed(void) { return 1; }\n")?;
        self.commit();
        Ok(())
    }
}

/// The change since the previous build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Fresh,
    NothingChanged,
    OneFileChanged,
}

const CASES: [Case; 3] = [Case::Fresh, Case::NothingChanged, Case::OneFileChanged];

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::NothingChanged => "nothing changed",
            Self::OneFileChanged => "one file changed",
        }
    }

    /// The required speed relative to a fresh build.
    const fn aim(self) -> Option<f64> {
        match self {
            Self::Fresh => None,
            Self::NothingChanged => Some(16.0),
            Self::OneFileChanged => Some(4.0),
        }
    }

    /// Checks the cache hits: without them, something else would be measured.
    fn check(self, run: &RunView) -> anyhow::Result<()> {
        let steps = run.jobs.iter().flat_map(|job| &job.steps).filter(|step| is_run(&step.name));
        let cached: Vec<bool> = steps.map(|step| step.cached).collect();
        let wanted = match self {
            Self::Fresh => [false, false],
            Self::NothingChanged => [true, true],
            Self::OneFileChanged => [true, false],
        };
        ensure!(cached == wanted, "{}: cached RUN steps {cached:?}, not {wanted:?}", self.name());
        Ok(())
    }
}

/// The times of one case in one round, in seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Stagely, until the images are in the registry.
    image: f64,
    /// Stagely, until the builder and core have exited.
    gone: f64,
    raw: f64,
}

pub(crate) async fn measure() -> anyhow::Result<()> {
    let registry = Registry::real();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let project = Project::new(round)?;
        let mut times = Vec::new();
        for case in CASES {
            if case == Case::OneFileChanged {
                project.change_one_file()?;
            }
            let measured = measure_case(&project, &registry, case, round).await?;
            eprintln!("cache, round {}, {}: {measured:.2?}", round + 1, case.name());
            times.push(measured);
        }
        rounds.push(times);
    }
    print(rows(&rounds));
    Ok(())
}

/// Builds both ways, one after the other; every second round in reverse order.
async fn measure_case(
    project: &Project,
    registry: &Registry,
    case: Case,
    round: usize,
) -> anyhow::Result<Times> {
    let mut first_raw = None;
    if !round.is_multiple_of(2) {
        first_raw = Some(by_script(project, registry).await?);
    }
    let (image, gone) = by_stagely(project, case).await?;
    let raw = match first_raw {
        Some(raw) => raw,
        None => by_script(project, registry).await?,
    };
    Ok(Times { image, gone, raw })
}

async fn by_stagely(project: &Project, case: Case) -> anyhow::Result<(f64, f64)> {
    let mut engine = PrivateEngine::start().await;
    let mut command = Command::new(STAGELY);
    command
        .arg("run")
        .arg(&project.repository)
        .args(["--json", "--project", &project.name, "--docker-host", &engine.host()])
        .env("XDG_STATE_HOME", project.state.path())
        .env_remove("STAGELY_SERVER");
    let (image, gone, run) = until_image_and_end(command)?;
    engine.stop().await;
    case.check(&run)?;
    Ok((image, gone))
}

/// The seconds of a `stagely run --json` until its images were pushed, and until the command ended.
pub(crate) fn until_image_and_end(command: Command) -> anyhow::Result<(f64, f64, RunView)> {
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let (gone, output) = timed(command)?;
    let run: RunView = serde_json::from_slice(&output.stdout)?;
    let ended = run.ended_at.context("the run has not ended")?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
    let ended = ended.0 as f64 / 1e3;
    Ok((ended - begin, gone, run))
}

async fn by_script(project: &Project, registry: &Registry) -> anyhow::Result<f64> {
    let mut engine = PrivateEngine::start().await;
    let name = format!("{}-bare", project.name);
    let mut command = script(registry, &name, &project.repository, "none");
    command.env("DOCKER_HOST", engine.host());
    let (seconds, _) = timed(command)?;
    engine.stop().await;
    Ok(seconds)
}

fn rows(rounds: &[Vec<Times>]) -> Vec<Row> {
    let median_of =
        |value: &dyn Fn(&Vec<Times>) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    let mut rows = Vec::new();
    for (index, case) in CASES.into_iter().enumerate() {
        // The speed relative to the fresh build of the same round.
        let faster =
            |time: fn(&Times) -> f64| median_of(&|round| time(&round[0]) / time(&round[index]));
        let column = |time: fn(&Times) -> f64| {
            let seconds = median_of(&|round| time(&round[index]));
            format!("{seconds:.2} s ({:.1}x)", faster(time))
        };
        let row = |until: &str, time: fn(&Times) -> f64| Row {
            what: format!("{}, until {until}", case.name()),
            stagely: column(time),
            raw: column(|times| times.raw),
            ratio: format!("{:.3}", median_of(&|round| time(&round[index]) / round[index].raw)),
            ..Row::default()
        };
        rows.push(Row {
            aim: case.aim().map(|aim| format!("≥ {aim}x")).unwrap_or_default(),
            is_met: case.aim().map(|aim| faster(|times| times.image) >= aim),
            ..row("the image is there", |times| times.image)
        });
        rows.push(row("the builder is gone", |times| times.gone));
    }
    rows
}
