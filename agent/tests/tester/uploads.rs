//! Uploads to a core that does not answer as it should.

use hyper::StatusCode;
use serde_json::json;
use stagely_protocol::{FailureReason, Status};

use crate::core::Fault;
use crate::setup::Setup;

/// Runs a test with one artifact of 20 MiB, while these faults happen.
async fn with_faults(setup: &Setup, faults: &[Fault], exit_code: i32) -> Status {
    let image = setup.image("");
    setup.core.artifacts().faults.extend(faults);
    let script = format!(
        "mkdir out && dd if=/dev/urandom of=out/large bs=1M count=20 2>/dev/null; exit {exit_code}"
    );
    let fields = json!({ "artifacts": ["out"] });
    setup.run(setup.test(&image, &script, fields)).await
}

/// Checks that core has everything, and returns the requests.
fn requests(setup: &Setup, status: &Status) -> Vec<String> {
    assert_eq!(status.error, None, "{}", setup.log());
    assert_eq!(status.warnings, [""; 0]);
    let files = setup.core.files(status.artifacts.as_ref().unwrap());
    assert_eq!((&*files[0].0, files[0].1.len()), ("out/large", 20 << 20));
    setup.core.artifacts().requests.clone()
}

/// The size of the archive: a header, 20 MiB, and its end.
const SIZE: usize = 512 + (20 << 20) + 1024;
const PIECE: usize = 8 << 20;

fn put(first: usize, end: usize, answer: &str) -> String {
    format!("PUT bytes {first}-{}/{SIZE} {answer}", end - 1)
}

#[tokio::test]
async fn an_archive_is_sent_in_pieces() {
    let setup = Setup::new("pieces").await;
    let status = with_faults(&setup, &[], 0).await;
    let expected = [
        "HEAD  200".to_owned(),
        put(0, PIECE, "202"),
        put(PIECE, 2 * PIECE, "202"),
        put(2 * PIECE, SIZE, "200"),
    ];
    assert_eq!(requests(&setup, &status), expected);
}

#[tokio::test]
async fn an_upload_that_is_cut_goes_on_where_core_has_it() {
    let setup = Setup::new("cut").await;
    let faults = [Fault::Cut(1000), Fault::Answer(StatusCode::SERVICE_UNAVAILABLE)];
    let status = with_faults(&setup, &faults, 0).await;
    let expected = [
        "HEAD  200".to_owned(),
        put(0, PIECE, "cut"),
        "HEAD  200".to_owned(),
        put(1000, 1000 + PIECE, "503"),
        "HEAD  200".to_owned(),
        put(1000, 1000 + PIECE, "202"),
        put(1000 + PIECE, 1000 + 2 * PIECE, "202"),
        put(1000 + 2 * PIECE, SIZE, "200"),
    ];
    assert_eq!(requests(&setup, &status), expected);
}

#[tokio::test]
async fn a_core_that_has_lost_bytes_gets_them_again() {
    let setup = Setup::new("lost").await;
    // The first piece is stored, and most of it is lost before the second one.
    setup.core.artifacts().faults.extend([Fault::Forget(0), Fault::Forget(100)]);
    let status = with_faults(&setup, &[], 0).await;
    let expected = [
        "HEAD  200".to_owned(),
        put(0, PIECE, "202"),
        put(PIECE, 2 * PIECE, "409"),
        put(100, 100 + PIECE, "202"),
        put(100 + PIECE, 100 + 2 * PIECE, "202"),
        put(100 + 2 * PIECE, SIZE, "200"),
    ];
    assert_eq!(requests(&setup, &status), expected);
}

#[tokio::test]
async fn a_core_that_keeps_nothing_is_not_asked_for_ever() {
    let setup = Setup::new("nothing").await;
    setup.core.artifacts().stored = vec![0; 10];
    let conflicts = [Fault::Answer(StatusCode::CONFLICT); 10];
    let status = with_faults(&setup, &conflicts, 0).await;
    assert_eq!((status.error, status.artifacts), (None, None));
    assert_eq!(
        status.warnings,
        ["the artifacts are not stored: core answered 409 Conflict: words"]
    );
    assert_eq!(setup.core.artifacts().requests.len(), 5);
}

#[tokio::test]
async fn a_core_that_refuses_changes_nothing_about_the_result() {
    let setup = Setup::new("full").await;
    for (status, words) in [
        (StatusCode::INSUFFICIENT_STORAGE, "507 Insufficient Storage"),
        (StatusCode::PAYLOAD_TOO_LARGE, "413 Payload Too Large"),
    ] {
        for exit_code in [0, 4] {
            setup.core.artifacts().requests.clear();
            let status = with_faults(&setup, &[Fault::Answer(status)], exit_code).await;
            let error = FailureReason::Test { failed: 0, exit_code };
            assert_eq!(status.error, (exit_code != 0).then_some(error));
            assert_eq!(status.artifacts, None);
            let warning = format!("the artifacts are not stored: core answered {words}: words");
            assert_eq!(status.warnings, [warning]);
            assert_eq!(setup.core.artifacts().requests.len(), 2);
        }
    }
}
