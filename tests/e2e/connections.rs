//! Networks that break between an agent and core.

use std::fs;
use std::time::{Duration, Instant};

use stagely::api::RunStatus;
use stagely_test_core::{Core, lines, numbers};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::proxy::Proxy;
use stagely_test_support::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::STAGELY;

/// A core whose agents reach it through a proxy that is down for a second when it breaks.
async fn behind_a_proxy(name: &str, settings: &str) -> (Core, Proxy) {
    let mut core = Core::start(STAGELY, name, settings).await;
    let to = core.url.strip_prefix("http://").unwrap().to_owned();
    let proxy = Proxy::start(to, Duration::from_secs(1)).await;
    assert!(core.shut_down().await.success());
    let path = core.path("stagely.toml");
    let mut config: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let url = format!("http://{}", proxy.address);
    config["core"].as_table_mut().unwrap().insert("public-url".to_owned(), url.into());
    fs::write(path, config.to_string()).unwrap();
    core.launch().await;
    (core, proxy)
}

/// Runs a build that prints `first`, waits at a breakpoint, and prints further lines.
async fn all_lines_arrive(core: &Core, first: &str, interrupt: impl AsyncFnOnce(&Breakpoint)) {
    let breakpoint = Breakpoint::new();
    let steps = [first.to_owned(), breakpoint.command(), lines(2_001, 2_500, ":")];
    let dockerfile = format!("FROM busybox\nRUN : {}; {}\n", core.name, steps.join("; "));
    let manifest = "builds: { app: { context: . } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    core.until(run, "it runs", |run| !run.jobs.is_empty()).await;
    let app = core.view(run).await.jobs.remove(0);
    core.log_has(&app, " 100: a line").await;
    interrupt(&breakpoint).await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    let app = &run.jobs[0];
    assert!(app.attempt == 1 && app.lost_attempts.is_empty(), "{app:#?}");
    assert_eq!(numbers(core, app).await, (1..=2_500).collect::<Vec<_>>());
}

/// Waits until the agent of the only machine is connected, or until it is not.
async fn agent_is(core: &Core, connected: bool) {
    let what = format!("the agent's `connected` is {connected}");
    eventually(&what, async || {
        (core.machines().await.first()?.connected == connected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_cut_off_again_and_again_loses_no_line() {
    let (core, proxy) = behind_a_proxy("cut-off", "").await;
    let first = lines(1, 2_000, "/bin/sleep 0.1");
    all_lines_arrive(&core, &first, async |breakpoint| {
        for _ in 0..3 {
            agent_is(&core, true).await;
            proxy.go_away();
            agent_is(&core, false).await;
        }
        breakpoint.reached().await;
        proxy.go_away();
        breakpoint.resume();
    })
    .await;
    core.finish().await;
}

#[tokio::test]
async fn a_frozen_connection_is_closed_and_another_one_opened() {
    let settings = "[agents]\nheartbeat-interval = \"1s\"\n";
    let (core, proxy) = behind_a_proxy("frozen", settings).await;
    let first = lines(1, 2_000, ":");
    all_lines_arrive(&core, &first, async |breakpoint| {
        breakpoint.reached().await;
        proxy.freeze();
        breakpoint.resume();
    })
    .await;
    core.finish().await;
}

#[tokio::test]
async fn stalled_connections_neither_stop_core_from_answering_nor_live_on() {
    let core = Core::start(STAGELY, "stalled", "[builders]\nprovider = \"none\"\n").await;
    let address = core.url.strip_prefix("http://").unwrap();
    let mut stalled = Vec::new();
    for number in 0..256 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: core\r\n").await.unwrap();
        }
        stalled.push(stream);
    }

    let begun = Instant::now();
    assert!(core.machines().await.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    // Core closes them all.
    for mut stream in stalled {
        let rest = timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
        let _: usize = rest.expect("core closes it").unwrap_or_default();
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    core.finish().await;
}
