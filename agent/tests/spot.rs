//! Interruption notices of a metadata service over HTTP.

#![expect(clippy::unwrap_used, reason = "a helper's failure fails the test")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stagely_agent::spot::SpotWatch;
use stagely_protocol::{Interrupted, Notice};
use stagely_test_support::imds::Imds;
use tokio::time::timeout;

const WAIT_LIMIT: Duration = Duration::from_mins(1);
const INTERVAL: Duration = Duration::from_millis(20);

const TOKEN: &str = "PUT /latest/api/token 200";
const NO_ACTION: &str = "GET /latest/meta-data/spot/instance-action 404";
const NO_REBALANCE: &str = "GET /latest/meta-data/events/recommendations/rebalance 404";
const WITHOUT_TOKEN: &str = "GET /latest/meta-data/spot/instance-action 401";

/// 2026-01-01T00:02:00Z.
const AT: u64 = 1_767_225_720_000;

const REBALANCE: &str = r#"{"noticeTime": "2026-01-01T00:02:00Z"}"#;

fn action(name: &str) -> String {
    format!(r#"{{"action": "{name}", "time": "2026-01-01T00:02:00Z"}}"#)
}

async fn next(watch: &mut SpotWatch) -> Interrupted {
    timeout(WAIT_LIMIT, watch.next()).await.unwrap()
}

#[tokio::test]
async fn every_action_of_a_spot_notice_is_a_certain_interruption() {
    for name in ["terminate", "stop", "hibernate"] {
        let imds = Imds::start().await;
        let mut watch = SpotWatch::start(imds.url.clone(), INTERVAL);
        imds.shows(|imds| imds.count(NO_REBALANCE) >= 2).await;
        assert!(watch.notice().is_none());
        imds.script().action = Some(action(name));
        let notice = next(&mut watch).await;
        assert_eq!((notice.at, notice.notice), (AT, Notice::Certain));
        // It stands, and there is nothing left to ask.
        assert!(watch.notice().is_some());
        let asked = imds.script().asked.len();
        tokio::time::sleep(INTERVAL * 5).await;
        assert_eq!(imds.script().asked.len(), asked);
        assert_eq!(imds.count(TOKEN), 1);
    }
}

#[tokio::test]
async fn an_action_without_a_known_time_is_expected_after_the_notice_time() {
    for body in [r#"{"action": "stop"}"#, r#"{"action": "stop", "time": "soon"}"#] {
        let imds = Imds::start().await;
        imds.script().action = Some(body.to_owned());
        let before = SystemTime::now();
        let notice = next(&mut SpotWatch::start(imds.url.clone(), INTERVAL)).await;
        let at = UNIX_EPOCH + Duration::from_millis(notice.at + 1);
        assert!(at > before + Duration::from_mins(2), "{notice:?}");
        assert_eq!(notice.notice, Notice::Certain);
    }
}

#[tokio::test]
async fn a_likely_interruption_is_reported_once_and_a_certain_one_after_it() {
    let imds = Imds::start().await;
    imds.script().rebalance = Some(REBALANCE.to_owned());
    let mut watch = SpotWatch::start(imds.url.clone(), INTERVAL);
    let notice = next(&mut watch).await;
    assert_eq!((notice.at, notice.notice), (AT, Notice::Likely));
    let before = imds.count(NO_ACTION);
    imds.shows(|imds| imds.count(NO_ACTION) >= before + 3).await;
    assert!(timeout(Duration::ZERO, watch.next()).await.is_err());
    assert_eq!(watch.notice().unwrap().notice, Notice::Likely);
    imds.script().action = Some(action("terminate"));
    assert_eq!(next(&mut watch).await.notice, Notice::Certain);
}

#[tokio::test]
async fn a_token_that_the_service_does_not_know_is_renewed_at_once() {
    let imds = Imds::start().await;
    let watch = SpotWatch::start(imds.url.clone(), INTERVAL);
    imds.shows(|imds| imds.count(NO_REBALANCE) >= 1).await;
    imds.script().tokens.clear();
    imds.shows(|imds| imds.count(WITHOUT_TOKEN) == 1 && imds.count(NO_ACTION) >= 3).await;
    assert_eq!(imds.count(TOKEN), 2);
    drop(watch);
}

#[tokio::test]
async fn an_expiring_token_is_renewed_before_it_is_refused() {
    let imds = Imds::start().await;
    // Less than the margin: each is at its end when it comes.
    imds.script().token_seconds = Some(30);
    let watch = SpotWatch::start(imds.url.clone(), INTERVAL);
    imds.shows(|imds| imds.count(NO_REBALANCE) >= 3).await;
    assert!(imds.count(TOKEN) >= 6 && imds.count(WITHOUT_TOKEN) == 0);
    drop(watch);
}

#[tokio::test]
async fn invalid_responses_are_no_notices_and_the_service_is_asked_again() {
    let imds = Imds::start().await;
    imds.script().is_broken = true;
    let mut watch = SpotWatch::start(imds.url.clone(), INTERVAL);
    imds.shows(|imds| imds.count("PUT /latest/api/token 500") >= 2).await;
    imds.script().is_broken = false;
    let wrong = ["", "[]", "{}", r#"{"time":"2026-01-01T00:02:00Z"}"#, &"x".repeat(100_000)];
    for body in wrong {
        let asked = "GET /latest/meta-data/spot/instance-action 200";
        let before = imds.count(asked);
        imds.script().action = Some(body.to_owned());
        imds.shows(|imds| imds.count(asked) >= before + 2).await;
        assert!(watch.notice().is_none(), "{body:.20}");
    }
    imds.script().action = Some(action("stop"));
    assert_eq!(next(&mut watch).await.notice, Notice::Certain);
}

#[tokio::test]
async fn a_service_that_is_not_up_yet_is_polled_until_it_answers() {
    let imds = Imds::start().await;
    imds.script().action = Some(action("terminate"));
    // The port of a listener that is gone.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let url = format!("http://{address}/").parse().unwrap();
    let mut watch = SpotWatch::start(url, INTERVAL);
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(watch.notice().is_none());
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let there = imds.url.socket_addrs(|| None).unwrap()[0];
    let forward = tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut to = tokio::net::TcpStream::connect(there).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        }
    });
    assert_eq!(next(&mut watch).await.notice, Notice::Certain);
    forward.abort();
}

#[tokio::test]
async fn a_machine_without_a_watch_never_gets_a_notice() {
    let mut watch = SpotWatch::none();
    assert!(watch.notice().is_none());
    assert!(timeout(Duration::from_millis(50), watch.next()).await.is_err());
}
