//! Requests to previews that do not serve, and to new generations.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use stagely::core::previews::{Access, PreviewState};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::world::{World, echo, preview_id};

const HTML: &str = "text/html";

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_a_page_that_waits() {
    let mut world = World::start().await;
    for (state, text) in [
        (PreviewState::Waking, "This preview wakes up"),
        (PreviewState::Deploying, "This preview is being deployed"),
        (PreviewState::Asleep, "This preview sleeps"),
    ] {
        world.set_state(state);
        let page = world.get("/").header("accept", HTML).send().await.unwrap();
        assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(page.headers()["retry-after"], "5");
        assert_eq!(page.headers()["refresh"], "2");
        assert_eq!(page.headers()["x-robots-tag"], "noindex");
        let page = page.text().await.unwrap();
        assert!(page.contains(text), "{page}");
    }
    let message = "web has ended with exit code 1".to_owned();
    world.set_state(PreviewState::Failed { message: message.clone() });
    let page = world.get("/").header("accept", HTML).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(page.headers().get("refresh").is_none());
    assert!(page.text().await.unwrap().contains(&message));
    // Programs do not wait for a failed preview.
    let response = timeout(Duration::from_secs(20), world.get("/").send()).await.unwrap().unwrap();
    assert!(response.text().await.unwrap().contains(&message));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_waits_until_the_preview_serves() {
    let mut world = World::start().await;
    world.set_state(PreviewState::Asleep);
    let request = world.get("/").send();
    let mut request = std::pin::pin!(request);
    let early = timeout(Duration::from_millis(500), &mut request).await;
    assert!(early.is_err(), "{early:?}");
    assert!(world.core.preview_activity.touched().await.contains(&preview_id()));
    world.set_state(world.serving(1));
    let got = echo(request.await.unwrap()).await;
    assert_eq!(got.app(), "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_authorized_requests_wake() {
    let mut world = World::start().await;
    let touched = async |world: &World| {
        let touched = world.core.preview_activity.touched();
        timeout(Duration::from_millis(200), touched).await.is_ok()
    };
    world.set_state(PreviewState::Asleep);
    let strangers = [
        world.request(Method::GET, "/"),
        world.request(Method::GET, "/").header("accept", HTML),
        world.request(Method::POST, "/webhooks/github"),
        world.request(Method::GET, "/").header("x-stagely-access", "wrong"),
    ];
    for request in strangers {
        let response = timeout(Duration::from_secs(20), request.send()).await.unwrap().unwrap();
        assert!(!response.status().is_success());
        assert!(!touched(&world).await);
    }
    world.change_route(|route| route.access = Access::Public);
    let page = world.request(Method::GET, "/").header("accept", HTML).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(touched(&world).await);

    world.change_route(|route| route.access = Access::Link);
    world.set_state(world.serving(1));
    assert!(world.request(Method::GET, "/webhooks/x").send().await.unwrap().status().is_success());
    assert!(!touched(&world).await);
    sleep(Duration::from_secs(10)).await;
    assert!(world.get("/").send().await.unwrap().status().is_success());
    assert!(touched(&world).await);
    assert!(world.get("/").send().await.unwrap().status().is_success());
    assert!(!touched(&world).await, "once in ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_newest_generation() {
    let mut world = World::start().await;
    for _ in 0..5 {
        assert_eq!(echo(world.get("/").send().await.unwrap()).await.app(), "first");
    }
    let (_, address) = App::start("second").await;
    world.listen_at(address);
    // Connections of the first generation are still open.
    assert_eq!(echo(world.get("/").send().await.unwrap()).await.app(), "first");
    world.set_state(world.serving(2));
    for _ in 0..5 {
        assert_eq!(echo(world.get("/").send().await.unwrap()).await.app(), "second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_that_ends_lets_no_request_wait() {
    let mut world = World::start().await;
    world.set_state(PreviewState::Waking);
    let request = world.get("/").send();
    let mut request = std::pin::pin!(request);
    let early = timeout(Duration::from_millis(300), &mut request).await;
    assert!(early.is_err(), "{early:?}");
    world.remove_route();
    let response = timeout(Duration::from_secs(20), request).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}
