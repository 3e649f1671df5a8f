//! What a test says about itself: exit codes, `JUnit` files, retries.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use stagely_protocol::{CaseOutcome, FailureReason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::setup::Setup;

const SECRET: &str = "value-of-nobody-else";

/// A script that writes a file with these cases.
fn junit(cases: &str) -> String {
    format!("mkdir -p results && echo \"<testsuite name='s'>{cases}</testsuite>\" >results/a.xml")
}

#[tokio::test]
async fn a_test_that_passes_reports_its_cases_and_streams_its_output() {
    let setup = Setup::new("passes").await;
    let image = setup.image("ENTRYPOINT [\"/bin/busybox\", \"env\", \"FROM_ENTRYPOINT=1\"]");
    let cases = "<testcase name='a'/><testcase name='b'><skipped/></testcase>\
                 <testcase name='c'><flakyFailure message='it is $KEY'/></testcase>";
    let script = format!(
        "echo out; echo err >&2; echo key $KEY; echo $PREVIEW_URL $STAGELY_ACCESS_HEADER; \
         echo shard $STAGELY_SHARD of $STAGELY_SHARDS in $PWD $CI $FROM_ENTRYPOINT $A; {}",
        junit(cases)
    );
    let fields = json!({
        "env": { "A": "b" },
        "secrets": { "KEY": SECRET },
        "preview": { "url": "https://pr-7.example.com", "headers": { "x-stagely-access": "access-key" } },
        "shard": { "index": 2, "total": 3 },
        "junit": ["results/*.xml"],
    });
    let status = setup.passes(setup.test(&image, &script, fields)).await;
    let results = status.tests.unwrap();
    assert_eq!((results.passed, results.failed, results.skipped, results.flaky), (1, 0, 1, 1));
    let case = &results.cases[0];
    assert_eq!((&*case.suite, &*case.name, case.outcome), ("s", "c", CaseOutcome::Flaky));
    assert_eq!(case.message, "it is ***");
    assert_eq!((status.artifacts, status.warnings), (None, Vec::new()));
    let log = setup.log();
    for line in [
        "Logging in to",
        "Pulled",
        "out",
        "err",
        "key ***",
        "https://pr-7.example.com x-stagely-access: ***",
        "shard 2 of 3 in /app true 1 b",
        "1 passed, 1 flaky, 1 skipped",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(!log.contains(SECRET) && !log.contains("access-key"), "{log}");
    // The second time it is there.
    let status = setup.passes(setup.test(&image, "true", json!({}))).await;
    assert_eq!(status.tests, None);
    assert_eq!(setup.log().matches("Pulled").count(), 1);
    assert!(setup.log().ends_with("the test passed"), "{}", setup.log());
}

#[tokio::test]
async fn an_exit_code_without_failed_cases_is_explained_by_the_last_lines() {
    let setup = Setup::new("exit").await;
    let image = setup.image("");
    // One stream: the order of lines of two is not known.
    let script = format!("{}; seq 100 && echo the cause: $KEY; exit 3", junit("<testcase/>"));
    let fields = json!({ "junit": ["results"], "secrets": { "KEY": SECRET } });
    let status = setup.fails(setup.test(&image, &script, fields)).await;
    assert_eq!(status.error, Some(FailureReason::Test { failed: 0, exit_code: 3 }));
    assert_eq!((status.exit_code, status.tests.unwrap().passed), (Some(3), 1));
    let message = status.error_message.unwrap();
    assert!(
        message.starts_with("the test failed with exit code 3; its last lines:\n"),
        "{message}"
    );
    assert!(message.contains("\n100") && message.contains("the cause: ***"), "{message}");
    assert!(!message.contains("\n50\n"), "{message}");
    assert!(setup.log().ends_with("Failed: the test failed with exit code 3"), "{}", setup.log());
}

#[tokio::test]
async fn failed_cases_fail_a_test_whatever_its_exit_code() {
    let setup = Setup::new("cases").await;
    let image = setup.image("");
    let cases = "<testcase name='a'><failure message='got 401'>line 1\nline 2</failure></testcase>\
                 <testcase name='b'/>";
    for exit_code in [0, 1] {
        let script = format!("{}; exit {exit_code}", junit(cases));
        let fields = json!({ "junit": ["results/*.xml", "more/*.xml"] });
        let status = setup.fails(setup.test(&image, &script, fields)).await;
        assert_eq!(status.error, Some(FailureReason::Test { failed: 1, exit_code }));
        assert_eq!(status.error_message.unwrap(), "1 test failed: s › a: got 401");
        let results = status.tests.unwrap();
        assert_eq!((results.passed, results.failed), (1, 1));
        assert_eq!(results.cases[0].lines, ["line 1", "line 2"]);
    }
    assert!(setup.log().contains("FAILED s › a: got 401"), "{}", setup.log());
}

#[tokio::test]
async fn a_damaged_file_is_a_warning_that_names_it() {
    let setup = Setup::new("damaged").await;
    let image = setup.image("");
    let script = "mkdir results; echo '<testsuite><testcase name=\"a\"/><testcase' >results/b.xml";
    let fields = json!({ "junit": ["results/*.xml"] });
    let status = setup.passes(setup.test(&image, script, fields)).await;
    assert_eq!(status.tests.unwrap().passed, 1);
    assert_eq!(status.warnings.len(), 1);
    let warning = &status.warnings[0];
    assert!(warning.starts_with("the JUnit file `results/b.xml` is damaged: "), "{warning}");
    let fields = json!({ "junit": ["nothing/*.xml", "../x"] });
    let status = setup.passes(setup.test(&image, "true", fields)).await;
    assert_eq!(status.tests, None);
    let warnings =
        ["`../x` leads out of its folder", "no JUnit file matches `nothing/*.xml`, `../x`"];
    assert_eq!(status.warnings, warnings);
}

/// A script that fails as long as a time is not over, and runs until then; a new container has no other memory.
fn fails_once(on_failure: &str, on_success: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // The image is there, so that the first attempt begins before.
    let until = (now + Duration::from_secs(10)).as_secs();
    format!(
        "if [ $(date +%s) -ge {until} ]; then {on_success}; exit 0; fi; \
         while [ $(date +%s) -lt {until} ]; do sleep 1; done; {on_failure}; exit 7"
    )
}

#[tokio::test]
async fn a_test_that_passes_when_it_runs_again_is_flaky() {
    let setup = Setup::new("flaky").await;
    let image = setup.image("");
    setup.passes(setup.test(&image, "true", json!({}))).await;
    let failed = "<testcase name='a'><failure message='early'/></testcase><testcase name='b'/>";
    let passed = "<testcase name='a'/><testcase name='b'/>";
    // The second container does not have the file of the first one.
    let script = fails_once(&junit(failed), &format!("test ! -e results && {}", junit(passed)));
    let fields = json!({ "junit": ["results/*.xml"], "retries": 2 });
    let status = setup.passes(setup.test(&image, &script, fields)).await;
    let results = status.tests.unwrap();
    assert_eq!((results.passed, results.failed, results.flaky), (1, 0, 1));
    let case = &results.cases[0];
    assert_eq!((&*case.name, &*case.message, case.outcome), ("a", "early", CaseOutcome::Flaky));
    assert!(setup.log().contains("Trying again: attempt 2 of 3"), "{}", setup.log());

    let script = fails_once("echo too early", "true");
    let status = setup.passes(setup.test(&image, &script, json!({ "retries": 1 }))).await;
    let results = status.tests.unwrap();
    assert_eq!((results.flaky, &*results.cases[0].message), (1, "exit code 7 at attempt 1"));
    assert_eq!(results.cases[0].lines, ["too early"]);
}

#[tokio::test]
async fn a_test_that_fails_at_every_attempt_is_failed() {
    let setup = Setup::new("again").await;
    let image = setup.image("");
    let message = setup.test(&image, "echo attempt; exit 5", json!({ "retries": 1 }));
    let status = setup.fails(message).await;
    assert_eq!(status.error, Some(FailureReason::Test { failed: 0, exit_code: 5 }));
    assert_eq!(setup.log().lines().filter(|line| *line == "attempt").count(), 2);
}

#[tokio::test]
async fn a_preview_with_an_address_of_this_machine_can_be_reached() {
    let setup = Setup::new("loopback").await;
    let image = setup.image("");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://pr-7-app.localhost:{}", listener.local_addr().unwrap().port());
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = socket.read(&mut request).await.unwrap();
        socket.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe preview\n").await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    };
    let script = "wget -q -O - --header \"$STAGELY_ACCESS_HEADER\" $PREVIEW_URL";
    let preview = json!({ "url": url, "headers": { "x-stagely-access": "access-key" } });
    let message = setup.test(&image, script, json!({ "preview": preview }));
    let (_, request) = tokio::join!(setup.passes(message), serve);
    assert!(request.contains("x-stagely-access: access-key\r\n"), "{request}");
    assert!(setup.log().contains("the preview"), "{}", setup.log());
}
