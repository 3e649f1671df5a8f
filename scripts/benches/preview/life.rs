//! The time in which a preview is deployed and woken, against Docker Compose by hand.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use stagely::api::{CreateRun, JobStatus, JobView, ListPreviews, PreviewStatus};
use stagely::client::Client;
use stagely::core::previews::preview_label;
use stagely_state::ids::PreviewId;
use stagely_test_core::Core;
use stagely_test_support::ports::free_port;
use stagely_test_support::registry::Registry;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::STAGELY;
use crate::report::{Pairs, Row};

const ROUNDS: usize = 5;

const DATA_MEGABYTES: u32 = 100;

/// The longest time of a deployment or a wake.
const LIMIT: Duration = Duration::from_mins(2);

/// The pause between two requests until the app answers.
const POLL: Duration = Duration::from_millis(5);

const MANIFEST: &str = "builds: { app: { context: . } }
preview:
  compose: compose.yaml
  images: { web: app }
  access: public
  branches: [main]
  endpoints: { web: { service: web, port: 8080 } }
";

const COMPOSE: &str =
    "services:\n  web: { build: ., volumes: ['data:/data'] }\nvolumes: { data: }\n";

pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let core = Core::start(STAGELY, "bench-preview", "").await;
    let client = Client::new(core.url.parse()?, core.admin_token().into())?;
    let (mut deployments, mut wakes) = (Pairs::default(), Pairs::default());
    for round in 0..ROUNDS {
        let (build, deployed) = deploy(&core, &client, round).await?;
        let previews = client.previews(&ListPreviews::default()).await?;
        let id = previews
            .iter()
            .find(|preview| preview.status == PreviewStatus::Live)
            .context("no live preview")?
            .id;
        fill(&id)?;
        let woken = wake(&core, &client, id, round).await?;
        let by_hand = ByHand::prepare(&core.registry, &build)?;
        let (pulled, answered) = by_hand.start(&page_of(round)).await?;
        drop(by_hand);
        deployments.0.push((deployed, answered));
        wakes.0.push((woken, answered));
        eprintln!(
            "round {round}: {deployed:.2} s, {woken:.2} s; by hand {answered:.2} s, {pulled:.2} s of it the pull"
        );
        core.end_preview().await;
    }
    core.finish().await;
    let (deployed, by_hand) = deployments.medians();
    let added = deployments.difference();
    let (woken, _) = wakes.medians();
    let ratio = wakes.ratio();
    Ok(vec![
        Row {
            what: format!(
                "preview: from the end of the last build to the first answer, {ROUNDS} rounds (raw: docker \
                 compose pull and up, to the first answer)"
            ),
            stagely: format!("{deployed:.2} s ({added:+.2} s)"),
            raw: format!("{by_hand:.2} s"),
            ratio: format!("{:.2}", deployments.ratio()),
            aim: "≤ +1.0 s".to_owned(),
            is_met: Some(added <= 1.0),
        },
        Row {
            what: format!(
                "preview: a wake with {DATA_MEGABYTES} MB of data (raw: the same commands, without the data)"
            ),
            stagely: format!("{woken:.2} s"),
            raw: format!("{by_hand:.2} s"),
            ratio: format!("{ratio:.2}"),
            aim: "≤ 1.5".to_owned(),
            is_met: Some(ratio <= 1.5),
        },
    ])
}

fn page_of(round: usize) -> String {
    format!("page {round}\n")
}

/// Builds and deploys a new preview. Returns its build, and the seconds from the end of the build to the first answer.
async fn deploy(core: &Core, client: &Client, round: usize) -> anyhow::Result<(JobView, f64)> {
    let dockerfile = format!(
        "FROM busybox\nRUN : {}; mkdir /www /data && echo page {round} >/www/index.html\n\
         CMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
        core.name
    );
    core.repository.commit(&[
        ("Dockerfile", &*dockerfile),
        ("compose.yaml", COMPOSE),
        ("stagely.yaml", MANIFEST),
    ]);
    let request = CreateRun { reference: Some("main".to_owned()), ..core.request() };
    let run = core.run(request).await;
    answer(&core.url, &host(core), &page_of(round)).await?;
    let answered = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let run = client.run(run).await?;
    let build = run.jobs.into_iter().find(|job| job.name == "app").context("no job app")?;
    ensure!(build.status == JobStatus::Completed, "{build:?}");
    let end = build.ended_at.context("the build has not ended")?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970")]
    let end = end.0 as f64 / 1e3;
    Ok((build, answered - end))
}

/// The host name of the preview.
fn host(core: &Core) -> String {
    let port = core.url.rsplit_once(':').map_or("", |(_, port)| port);
    format!("{}.localhost:{port}", preview_label("main", &core.name, None))
}

/// Asks the app until it answers with `page`.
async fn answer(url: &str, host: &str, page: &str) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        let request = http.get(url).header(reqwest::header::HOST, host);
        if let Ok(response) = request.send().await
            && response.text().await.is_ok_and(|text| text == page)
        {
            return Ok(());
        }
        sleep(POLL).await;
    }
    bail!("{host} did not answer in {LIMIT:?}")
}

/// Writes data that does not compress into the volume of the preview `id`.
fn fill(id: &PreviewId) -> anyhow::Result<()> {
    let label = format!("label=stagely.preview={id}");
    let containers = output(Command::new("docker").args(["ps", "--quiet", "--filter", &label]))?;
    let count = format!("count={DATA_MEGABYTES}");
    let mut write = Command::new("docker");
    write.args([
        "exec",
        containers.trim(),
        "dd",
        "if=/dev/urandom",
        "of=/data/file",
        "bs=1M",
        &count,
    ]);
    output(&mut write).map(drop)
}

/// Puts the preview to sleep, and returns the seconds from the request that wakes it to the first answer.
async fn wake(core: &Core, client: &Client, id: PreviewId, round: usize) -> anyhow::Result<f64> {
    client.sleep_preview(id).await?;
    let begin = Instant::now();
    while client.preview(id).await?.status != PreviewStatus::Asleep {
        ensure!(begin.elapsed() < LIMIT, "{id} is not asleep after {LIMIT:?}");
        sleep(POLL).await;
    }
    let begin = Instant::now();
    client.wake_preview(id).await?;
    answer(&core.url, &host(core), &page_of(round)).await?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The same image and the same compose file, with the commands that a person would type.
struct ByHand {
    folder: TempDir,
    project: String,
    port: u16,
}

impl ByHand {
    fn prepare(registry: &Registry, build: &JobView) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port();
        let image = build.image.as_ref().context("the build has no image")?;
        let (repository, _) = image.as_str().rsplit_once(':').context("the image has no tag")?;
        let image = format!("{repository}@{}", build.digest_text());
        let by_hand = format!(
            "services:\n  web:\n    image: {image}\n    build: !reset null\n    ports: ['127.0.0.1:{port}:8080']\n"
        );
        fs::write(folder.path().join("compose.yaml"), COMPOSE)?;
        fs::write(folder.path().join("by-hand.yaml"), by_hand)?;
        let project = format!("by-hand-{port}");
        let made = Self { folder, project, port };
        let mut login = made.docker();
        login.args(["login", "--username", &registry.username, "--password-stdin", &registry.url]);
        let password = fs::File::open(&registry.password_file)?;
        output(login.stdin(password))?;
        Ok(made)
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_CONFIG", self.folder.path()).current_dir(self.folder.path());
        docker
    }

    fn compose(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut compose = self.docker();
        compose.args(["compose", "--project-name", &self.project]);
        compose.args(["--file", "compose.yaml", "--file", "by-hand.yaml"]).args(arguments);
        output(&mut compose).map(drop)
    }

    /// The seconds to the end of the pull, and to the first answer.
    async fn start(&self, page: &str) -> anyhow::Result<(f64, f64)> {
        let begin = Instant::now();
        self.compose(&["pull", "--quiet"])?;
        let pulled = begin.elapsed().as_secs_f64();
        self.compose(&["up", "--detach", "--quiet-pull"])?;
        let address = format!("127.0.0.1:{}", self.port);
        answer(&format!("http://{address}"), &address, page).await?;
        Ok((pulled, begin.elapsed().as_secs_f64()))
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        if let Err(error) = self.compose(&["down", "--volumes", "--timeout", "0"]) {
            eprintln!("{error:#}");
        }
    }
}

/// What `command` prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
