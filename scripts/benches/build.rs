//! A whole build through Stagely, against the same commands in a shell script.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use secrecy::ExposeSecret as _;

use crate::STAGELY;
use crate::core::Core;
use crate::git;
use crate::report::{Pairs, Row, print};

const PAIRS_COLD: usize = 5;
const PAIRS_CACHED: usize = 9;

const MANIFEST: &str = "builds:\n  app: { context: . }\n";
const DOCKERFILE: &str = include_str!("service/Dockerfile");
const GENERATOR: &str = include_str!("service/generate.awk");

/// Where `scripts/setup` has put the registry.
struct Registry {
    address: String,
    username: String,
    password_file: String,
}

impl Registry {
    fn from_environment() -> anyhow::Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set; use scripts/bench"))
        };
        Ok(Self {
            address: variable("STAGELY_REGISTRY")?,
            username: variable("STAGELY_REGISTRY_USERNAME")?,
            password_file: variable("STAGELY_REGISTRY_PASSWORD_FILE")?,
        })
    }

    fn settings(&self) -> String {
        let Self { address, username, password_file } = self;
        format!(
            "[registry]\nurl = {address:?}\nusername = {username:?}\npassword-file = {password_file:?}\n"
        )
    }
}

pub(crate) async fn measure() -> anyhow::Result<()> {
    let registry = Registry::from_environment()?;
    let files =
        [("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE), ("generate.awk", GENERATOR)];
    let (_folder, repository) = git::local_repository(&files)?;
    let mut core = Core::start(&registry.settings()).await?;
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();

    let mut cold = Pairs::default();
    for pair in 0..PAIRS_COLD {
        let salt = |of: &str| format!("{begin}-{pair}-{of}");
        cold.0.push(measure_pair(&core, &registry, &repository, pair, salt)?);
        tell("cold", &cold);
    }
    let mut cached = Pairs::default();
    for pair in 0..=PAIRS_CACHED {
        let salt = |_: &str| format!("{begin}-cached");
        let seconds = measure_pair(&core, &registry, &repository, pair, salt)?;
        // The first fills the caches.
        if pair > 0 {
            cached.0.push(seconds);
            tell("cached", &cached);
        }
    }
    core.stop()?;
    print(rows(&cold, &cached));
    Ok(())
}

fn tell(what: &str, pairs: &Pairs) {
    if let Some((stagely, raw)) = pairs.0.last() {
        eprintln!("build, {what}, pair {}: {stagely:.2} s, raw {raw:.2} s", pairs.0.len());
    }
}

/// Builds both ways, one after the other; every second pair the other way round.
fn measure_pair(
    core: &Core,
    registry: &Registry,
    repository: &Path,
    pair: usize,
    salt: impl Fn(&str) -> String,
) -> anyhow::Result<(f64, f64)> {
    if pair.is_multiple_of(2) {
        let stagely = by_stagely(core, repository, &salt("stagely"))?;
        Ok((stagely, by_script(registry, repository, &salt("raw"))?))
    } else {
        let raw = by_script(registry, repository, &salt("raw"))?;
        Ok((by_stagely(core, repository, &salt("stagely"))?, raw))
    }
}

fn rows(cold: &Pairs, cached: &Pairs) -> Vec<Row> {
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
        row("whole build, all steps cached", cached, "≤ +0.5 s", cached.difference() <= 0.5),
    ]
}

fn by_stagely(core: &Core, repository: &Path, salt: &str) -> anyhow::Result<f64> {
    let mut command = Command::new(STAGELY);
    command
        .arg("run")
        .arg(repository)
        .args(["--set", &format!("SALT={salt}")])
        .env("STAGELY_SERVER", core.url.as_str())
        .env("STAGELY_TOKEN", core.token.expose_secret());
    timed(command)
}

fn by_script(registry: &Registry, repository: &Path, salt: &str) -> anyhow::Result<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/benches/bare-build.sh");
    let mut command = Command::new("bash");
    command
        .arg(script)
        .arg(repository)
        .arg(salt)
        .arg(format!("{}/service-bare/main:app-amd64", registry.address))
        .arg(format!("{}/service-bare/cache:app", registry.address));
    timed(command)
}

fn timed(mut command: Command) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}
