//! The time until an image with a far larger layer cache is available: exporting the cache after the image
//! was reported, compared with one command that does both.

use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret as _;
use stagely_test_support::registry::Registry;

use crate::STAGELY;
use crate::build::{script, timed};
use crate::cache::until_image_and_end;
use crate::core::Core;
use crate::git::local_repository;
use crate::report::{Pairs, Row, print};

const PAIRS: usize = 5;

const MANIFEST: &str = "builds:\n  app: { context: . }\n";
/// 200 MB of new incompressible data for each build, in a stage that is not part of the image.
const DOCKERFILE: &str = "\
FROM busybox AS big
ARG SALT
RUN echo $SALT && head -c 200000000 /dev/urandom >/big
FROM busybox
COPY --from=big /etc/passwd /small
";

pub(crate) async fn measure() -> anyhow::Result<()> {
    let registry = Registry::real();
    let files = [("stagely.yaml", MANIFEST), ("Dockerfile", DOCKERFILE)];
    let (_folder, repository) = local_repository(&files)?;
    let mut core = Core::start(&registry.settings().to_string()).await?;
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (mut image, mut gone) = (Pairs::default(), Pairs::default());
    for pair in 0..PAIRS {
        let salt = |way: &str| format!("{begin}-{pair}-{way}");
        let mut stagely = Command::new(STAGELY);
        stagely
            .arg("run")
            .arg(&repository)
            .args(["--json", "--project", "bench-export"])
            .args(["--set", &format!("SALT={}", salt("stagely"))])
            .env("STAGELY_SERVER", core.url.as_str())
            .env("STAGELY_TOKEN", core.token.expose_secret());
        let raw = script(&registry, "bench-export-bare", &repository, &salt("raw"));
        // The order alternates, because the second finds a busy disk.
        let ((until_image, until_gone), (raw, _)) = if pair.is_multiple_of(2) {
            (by_stagely(&core, stagely).await?, timed(raw)?)
        } else {
            let raw = timed(raw)?;
            (by_stagely(&core, stagely).await?, raw)
        };
        eprintln!(
            "export, pair {}: image {until_image:.2} s, gone {until_gone:.2} s, raw {raw:.2} s",
            pair + 1
        );
        image.0.push((until_image, raw));
        gone.0.push((until_gone, raw));
    }
    core.stop().await?;
    print(vec![row("the image is there", &image), row("the builder is gone", &gone)]);
    Ok(())
}

/// Waits for the builder, because the command returns while core still exports the cache.
async fn by_stagely(core: &Core, command: Command) -> anyhow::Result<(f64, f64)> {
    let begin = Instant::now();
    let (image, _, run) = until_image_and_end(command)?;
    let mut follower = core.client.follow_run(run.id);
    while follower.next().await?.is_some() {}
    Ok((image, begin.elapsed().as_secs_f64()))
}

fn row(until: &str, pairs: &Pairs) -> Row {
    let (stagely, raw) = pairs.medians();
    Row {
        what: format!("200 MB of cache, until {until} (raw: image and cache in one command)"),
        stagely: format!("{stagely:.2} s ({:+.2} s)", pairs.difference()),
        raw: format!("{raw:.2} s"),
        ratio: format!("{:.3}", pairs.ratio()),
        ..Row::default()
    }
}
