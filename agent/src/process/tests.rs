//! Tests with real child processes.

use std::collections::BTreeSet;

use tokio::time::timeout;

use super::outputs::DRAIN_LIMIT;
use super::*;

fn shell(script: &str) -> Invocation {
    Invocation::new("sh", &"vm_test".parse().unwrap()).arg("-c").arg(script)
}

fn is_running(marker: &str) -> bool {
    let output = std::process::Command::new("pgrep").args(["-f", marker]).output().unwrap();
    output.status.success()
}

#[tokio::test]
async fn a_program_can_inherit_less_than_others() {
    let mut output = Vec::new();
    let env = Invocation::new("env", &"vm_test".parse().unwrap()).inherit_only(&["PATH"]);
    let stop = CancellationToken::new();
    let ended = env.env("OWN", "1").run(Duration::from_secs(5), &stop, |_, bytes| {
        output.extend_from_slice(bytes);
    });
    assert!(ended.await.unwrap().success());
    let output = String::from_utf8(output).unwrap();
    let names: BTreeSet<&str> =
        output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, BTreeSet::from(["OWN", "PATH", AGENT_VARIABLE, MACHINE_VARIABLE]));
}

#[tokio::test]
async fn both_outputs_arrive_whole_and_the_status_is_the_childs() {
    let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; cat; exit 3";
    let (mut stdout, mut stderr) = (0, 0);
    let status = shell(script)
        .stdin("input".into())
        .run(Duration::from_secs(1), &CancellationToken::new(), |stream, bytes| match stream {
            Stream::Stdout => stdout += bytes.len(),
            Stream::Stderr => stderr += bytes.len(),
        })
        .await
        .unwrap();
    assert_eq!((status.code(), stdout, stderr), (Some(3), 300_005, 300_000));
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let (stop, mut length) = (CancellationToken::new(), 0);
    let run = shell("head -c 60000 /dev/zero >&2; head -c 60000 /dev/zero");
    // Like a slow disk: slower than the limit for the pipes of a dead group.
    let slow = |_, bytes: &[u8]| {
        length += bytes.len();
        let (_sender, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(DRAIN_LIMIT + Duration::from_millis(100));
    };
    run.run(Duration::ZERO, &stop, slow).await.unwrap();
    assert_eq!(length, 120_000);
}

#[tokio::test]
async fn a_process_outside_the_group_that_still_writes_delays_nothing() {
    let stop = CancellationToken::new();
    let run = shell("setsid sh -c 'exec 2>/dev/null; while echo 7918; do :; done' & exit 0");
    timeout(Duration::from_mins(1), run.run(Duration::ZERO, &stop, |_, _| {}))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_machine_is_named_in_the_environment() {
    let mut text = Vec::new();
    let stop = CancellationToken::new();
    let run = shell("printf %s $STAGELY_MACHINE");
    run.run(Duration::ZERO, &stop, |_, bytes| text.extend_from_slice(bytes)).await.unwrap();
    assert_eq!(text, b"vm_test");
}

#[tokio::test]
async fn stopping_also_kills_a_process_that_ignores_sigterm() {
    let stop = CancellationToken::new();
    let started = Instant::now();
    let run = shell("trap '' TERM; (trap '' TERM; sleep 7913) & wait; sleep 7913");
    let (result, ()) = tokio::join!(run.run(Duration::from_millis(200), &stop, |_, _| {}), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel();
    });
    assert!(matches!(result, Err(ProcessError::Stopped { .. })));
    assert!(started.elapsed() < Duration::from_mins(1));
    assert!(!is_running("sleep 7913"));
}

#[tokio::test]
async fn a_background_process_does_not_outlive_its_leader() {
    let stop = CancellationToken::new();
    let status = shell("sleep 7914 & exit 0").run(Duration::ZERO, &stop, |_, _| {}).await;
    assert!(status.unwrap().success());
    assert!(!is_running("sleep 7914"));
}

#[tokio::test]
async fn dropping_the_future_leaves_nothing() {
    let stop = CancellationToken::new();
    let run = shell("sleep 7915 & sleep 7915").run(Duration::ZERO, &stop, |_, _| {});
    timeout(Duration::from_millis(300), run).await.unwrap_err();
    // A killed process may exist for a moment longer.
    let started = Instant::now();
    while is_running("sleep 7915") {
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn only_processes_of_the_same_machine_are_killed_as_leftovers() {
    let sleep = |machine: &str, seconds| {
        #[expect(clippy::disallowed_methods, reason = "a process that a killed agent left")]
        let mut command = Command::new("sleep");
        command.arg(seconds).env(MACHINE_VARIABLE, machine).kill_on_drop(true).spawn().unwrap()
    };
    let mut left = sleep("vm_left", "7916");
    let mut other = sleep("vm_left_2", "7917");
    leftovers::kill_leftovers(&"vm_left".parse().unwrap());
    assert!(!left.wait().await.unwrap().success());
    assert!(other.try_wait().unwrap().is_none());
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let run = shell("env").env("NPM_TOKEN", "hunter2").stdin("hunter2".into());
    assert_eq!(format!("{run:?}"), "sh with 2 arguments");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let run = Invocation::new("no-such-program", &"vm_test".parse().unwrap());
    let error = run.run(Duration::ZERO, &CancellationToken::new(), |_, _| {}).await;
    assert_eq!(error.unwrap_err().to_string(), "cannot start `no-such-program`");
}
