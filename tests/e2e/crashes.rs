//! Processes that die at the worst moment.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use stagely::api::{CreateRun, JobKindView, JobStatus, RunStatus};
use stagely_protocol::FailureReason;
use stagely_test_core::{Core, job, lines, numbers};
use stagely_test_support::breakpoint::Breakpoint;
use stagely_test_support::processes::processes_with;
use stagely_test_support::program;
use stagely_test_support::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::STAGELY;

#[tokio::test]
async fn a_core_that_is_killed_while_it_builds_goes_on_where_it_was() {
    let mut core = Core::start(STAGELY, "core-killed", "").await;
    let (first, second) = (Breakpoint::new(), Breakpoint::new());
    let steps = [
        lines(1, 2_000, "/bin/sleep 0.05"),
        first.command(),
        lines(2_001, 3_000, ":"),
        second.command(),
        lines(3_001, 3_100, ":"),
    ];
    let slow = format!("FROM busybox\nRUN : {}; {}\n", core.name, steps.join("; "));
    let quick = format!("FROM busybox\nRUN : {} quick\n", core.name);
    let manifest = "builds: { slow: { context: slow }, quick: { context: quick } }\n";
    let files =
        [("slow/Dockerfile", &*slow), ("quick/Dockerfile", &*quick), ("stagely.yaml", manifest)];
    let id = core.run_of(&files).await;
    let is_quick_done = |run: &_| job(run, "quick").status == JobStatus::Completed;
    let run = core
        .until(id, "the quick build completes", |run| !run.jobs.is_empty() && is_quick_done(run));
    let run = run.await;
    let (quick, slow) = (job(&run, "quick").clone(), job(&run, "slow").clone());
    core.log_has(&slow, " 100: a line").await;

    // Core is killed in the middle of the lines, and the build prints more while core is down.
    core.crash();
    core.launch().await;
    first.reached().await;
    core.crash();
    first.resume();
    second.reached().await;
    core.launch().await;
    core.log_has(&slow, " 3000: a line").await;
    second.resume();
    let run = core.ended(id).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(numbers(&core, &slow).await, (1..=3_100).collect::<Vec<_>>());
    for (before, after) in [(&quick, job(&run, "quick")), (&slow, job(&run, "slow"))] {
        assert_eq!((before.attempt, after.attempt), (1, 1), "{after:#?}");
        assert!(after.lost_attempts.is_empty(), "{after:#?}");
        assert_eq!(before.started_at, after.started_at);
    }
    assert_eq!(quick.digest, job(&run, "quick").digest);
    let stored = core.finish().await;
    assert_eq!(stored.state.machines.len(), 2, "a machine was launched twice");
}

#[tokio::test]
async fn a_run_that_was_accepted_just_before_a_crash_is_built_after_it() {
    let mut core = Core::start(STAGELY, "promised", "").await;
    let dockerfile = format!("FROM busybox\nRUN : {}\n", core.name);
    let manifest = "builds: { app: { context: ., platforms: [linux/amd64, linux/arm64] } }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    core.crash();
    core.launch().await;
    // Core is killed again when there are machines.
    core.until(run, "it has machines", |run| run.live_machines > 0).await;
    core.crash();
    core.launch().await;
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert!(run.jobs.iter().all(|job| job.lost_attempts.is_empty()), "{run:#?}");
    core.finish().await;
}

#[tokio::test]
async fn a_provider_that_is_removed_from_the_configuration_still_serves_its_machines() {
    let mut core = Core::start(STAGELY, "no-provider", "").await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    core.crash();
    let path = core.path("stagely.toml");
    let usual = fs::read_to_string(&path).unwrap();
    let mut config: toml::Table = usual.parse().unwrap();
    let builders = config.entry("builders").or_insert_with(|| toml::Table::new().into());
    builders.as_table_mut().unwrap().insert("provider".to_owned(), "none".into());
    fs::write(&path, config.to_string()).unwrap();

    core.launch().await;

    let log = fs::read_to_string(core.path("core.log")).unwrap();
    assert!(log.contains("machines that it launched earlier are still there"), "{log}");
    breakpoint.resume();
    assert_eq!(core.ended(run).await.status, RunStatus::Completed);
    core.finish().await;
}

#[tokio::test]
async fn the_work_of_an_agent_that_is_killed_goes_to_a_new_machine() {
    let core = Core::start(STAGELY, "agent-killed", "").await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    let id = core.view(run).await.jobs[0].id;
    let mut viewer = core.follow(id, "").await;
    let first = core.machines().await.remove(0).id;
    let mut agents = processes_with(&first.to_string());
    agents.retain(|process| process.arguments.get(1).is_some_and(|word| word == "agent"));
    assert_eq!(agents.len(), 1);

    agents[0].kill();
    eventually("the first machine is gone", async || {
        processes_with(&first.to_string()).is_empty().then_some(())
    })
    .await;
    let is_retried = |run: &_| {
        let app = job(run, "app");
        app.attempt == 2 && app.status == JobStatus::Running
    };
    core.until(run, "it is tried again", is_retried).await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!((app.attempt, app.lost_attempts.len()), (2, 1), "{app:#?}");
    assert_eq!(app.lost_attempts[0].reason, FailureReason::MachineLost);
    // A viewer of the job sees both attempts, which the store separates.
    let (seen, end) = viewer.rest().await;
    assert_eq!(end, JobStatus::Completed);
    let last = core.log(app).await;
    let path = format!("/api/v1/jobs/{id}/logs?attempt=1");
    let (_, first) = core.call(Some(&core.admin_token()), Method::GET, &path, None).await;
    assert!(!first.is_empty() && first != last);
    assert_eq!(seen, first.lines().chain(last.lines()).collect::<Vec<_>>());
    core.finish().await;
}

#[tokio::test]
async fn a_core_that_is_killed_again_and_again_loses_nothing_and_repeats_nothing() {
    let mut core = Core::start(STAGELY, "again-and-again", "").await;
    let dockerfile = format!(
        "FROM busybox\nARG N\nRUN : {} $N; {}\n",
        core.name,
        lines(1, 2_000, "/bin/sleep 0.2")
    );
    let manifest = "builds:\n  one: { context: ., build_args: { N: \"1\" } }\n  \
        two: { context: ., build_args: { N: \"2\" }, platforms: [linux/amd64, linux/arm64] }\n";
    let run = core.run_of(&[("Dockerfile", &*dockerfile), ("stagely.yaml", manifest)]).await;
    // A repository during whose reading core is killed twice is not read again.
    core.until(run, "it is planned", |run| !run.jobs.is_empty()).await;
    for _ in 0..12 {
        core.crash();
        core.launch().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1_000))).await;
    }
    let run = core.ended(run).await;

    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    for job in &run.jobs {
        assert!(job.attempt == 1 && job.lost_attempts.is_empty(), "{job:#?}");
        if job.kind == JobKindView::Build {
            assert_eq!(numbers(&core, job).await, (1..=2_000).collect::<Vec<_>>());
        }
    }
    let stored = core.finish().await;
    let builds = run.jobs.iter().filter(|job| job.kind == JobKindView::Build);
    assert_eq!(stored.state.machines.len(), builds.count(), "a machine was launched twice");
}

#[tokio::test]
async fn an_agent_that_hangs_is_killed_and_its_work_done_elsewhere() {
    let settings = "[builders]\njob-grace = \"5s\"\n\
        [agents]\nheartbeat-interval = \"2s\"\nreconnect-grace = \"10s\"\n";
    let core = Core::start(STAGELY, "hangs", settings).await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    let machine = core.machines().await.remove(0).id.to_string();
    for process in processes_with(&machine) {
        kill(process.pid, Signal::SIGSTOP).unwrap();
    }
    core.until(run, "it is tried again", |run| job(run, "app").attempt == 2).await;
    eventually("the first machine is gone", async || {
        processes_with(&machine).is_empty().then_some(())
    })
    .await;
    breakpoint.reached().await;
    breakpoint.resume();
    let run = core.ended(run).await;
    assert_eq!(run.status, RunStatus::Completed, "{run:#?}");
    assert_eq!(run.jobs[0].lost_attempts[0].reason, FailureReason::MachineLost);
    core.finish().await;
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_core_alone() {
    let core = Core::start(STAGELY, "alone", "").await;
    let text = fs::read_to_string(core.path("stagely.toml")).unwrap();
    let port = core.url.rsplit(':').next().unwrap();
    fs::write(core.path("second.toml"), text.replace(port, "0")).unwrap();
    let mut second = program::command(STAGELY);
    let output = second.args(["core", "--config"]).arg(core.path("second.toml")).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("in use by another"), "{error}");
    core.finish().await;
}

#[tokio::test]
async fn a_copy_of_a_data_folder_is_refused_until_it_is_said_to_be_moved() {
    let mut core = Core::start(STAGELY, "copied", "").await;
    core.shut_down().await;
    let copied = program::command("cp")
        .arg("-a")
        .args([core.path("data"), core.path("copy")])
        .status()
        .unwrap();
    assert!(copied.success());
    let text = fs::read_to_string(core.path("stagely.toml")).unwrap();
    let port = core.url.rsplit(':').next().unwrap();
    let (data, copy) = (core.path("data"), core.path("copy"));
    let text = text.replace(port, "0").replace(data.to_str().unwrap(), copy.to_str().unwrap());
    let settings = core.path("copy.toml");
    fs::write(&settings, text).unwrap();
    let start = |option: &[&str]| {
        let mut command = program::command(STAGELY);
        command.args(["core", "--config"]).arg(&settings).args(option);
        command
    };

    let output = start(&[]).output().unwrap();

    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{error}");
    assert!(error.contains(&format!("was used at {} before", data.display())), "{error}");
    for option in [&["--moved"][..], &[]] {
        let mut moved = start(option).stderr(Stdio::null()).spawn().unwrap();
        eventually("the copy is used", async || copy.join("core.url").exists().then_some(())).await;
        kill(Pid::from_raw(moved.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(moved.wait().unwrap().success());
    }
    core.launch().await;
    core.finish().await;
}

#[tokio::test]
async fn a_repository_during_whose_reading_core_is_killed_twice_is_not_read_again() {
    let mut core = Core::start(STAGELY, "deadly", "").await;
    let (deadly, harmless) = (silent_server().await, silent_server().await);
    let [deadly_run, harmless_run] = [&deadly, &harmless]
        .map(|server| CreateRun::new(format!("http://{}/app.git", server.local_addr().unwrap())));
    let deadly_run = core.run(deadly_run).await;
    let first = deadly.accept().await.unwrap();
    let harmless_run = core.run(harmless_run).await;
    let second = harmless.accept().await.unwrap();

    core.crash();
    drop((first, second));
    let answers = tokio::spawn(answer_not_found(harmless));
    core.launch().await;
    let _open = deadly.accept().await.unwrap();
    // What is not stored before the next crash counts as not done.
    let error = core.ended(harmless_run).await.error.unwrap();
    assert!(error.contains("was not found"), "{error}");
    core.crash();
    core.launch().await;

    let error = core.ended(deadly_run).await.error.unwrap();
    assert!(error.contains("core ended unexpectedly twice"), "{error}");
    answers.abort();
    core.finish().await;
}

async fn answer_not_found(server: TcpListener) {
    loop {
        let (mut client, _) = server.accept().await.unwrap();
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let _ = client.read(&mut [0; 1_024]).await;
        let _ = client.write_all(answer).await;
    }
}

/// A server that accepts connections and sends nothing.
async fn silent_server() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

#[tokio::test]
async fn a_core_that_is_asked_to_stop_leaves_its_work_for_the_next_one() {
    let mut core = Core::start(STAGELY, "asked-to-stop", "").await;
    let (run, breakpoint) = core.run_to_breakpoint().await;
    let app = core.view(run).await.jobs.remove(0);
    // Viewers must not delay the shutdown.
    let mut viewer = core.follow(app.id, "").await;
    viewer.next().await.unwrap();

    let status = core.shut_down().await;
    assert!(status.success(), "{status}");
    while viewer.next().await.is_some() {}
    breakpoint.reached().await;
    core.launch().await;
    breakpoint.resume();
    let run = core.ended(run).await;

    let app = job(&run, "app");
    assert_eq!((run.status, app.attempt), (RunStatus::Completed, 1), "{run:#?}");
    core.finish().await;
}
