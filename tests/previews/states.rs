//! Requests to previews that do not serve, and to new generations.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use stagely::core::previews::{Access, PreviewState};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::world::{KEY, World, echo, preview_id};

const HTML: &str = "text/html";

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_a_page_that_waits() {
    let mut world = World::start().await;
    for (state, text) in [
        (PreviewState::Waking { progress: String::new() }, "This preview wakes up"),
        (PreviewState::Deploying { progress: String::new() }, "This preview is being deployed"),
        // The visit wakes it.
        (PreviewState::Asleep, "This preview wakes up"),
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
async fn a_stranger_does_not_see_why_a_preview_does_not_serve() {
    let mut world = World::start().await;
    let secret = "web has ended; its last line: no DATABASE_URL".to_owned();
    for state in [
        PreviewState::Failed { message: secret.clone() },
        PreviewState::Deploying { progress: secret.clone() },
        PreviewState::Waking { progress: secret.clone() },
    ] {
        world.set_state(state);
        for accept in [HTML, "*/*"] {
            let request = world.request(Method::GET, "/webhooks/a").header("accept", accept);
            let limit = Duration::from_secs(2);
            // Programs wait while it is deployed.
            let Ok(response) = timeout(limit, request.send()).await else { continue };
            let text = response.unwrap().text().await.unwrap();
            assert!(!text.contains("DATABASE_URL"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_waits_until_the_preview_serves() {
    let mut world = World::start().await;
    world.set_state(PreviewState::Asleep);
    let request = world.get("/").send();
    let mut request = std::pin::pin!(request);
    let early = timeout(Duration::from_millis(500), &mut request).await;
    assert!(early.is_err(), "{early:?}");
    assert!(world.core.preview_activity.last_use(&preview_id()).is_some());
    world.set_state(world.serving(1));
    let got = echo(request.await.unwrap()).await;
    assert_eq!(got.app(), "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_authorized_requests_wake() {
    let mut world = World::start().await;
    let mut last = None;
    let mut is_noted = async |world: &World| {
        let newest = world.core.preview_activity.last_use(&preview_id());
        std::mem::replace(&mut last, newest) != newest
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
        assert!(!is_noted(&world).await);
    }
    world.change_route(|route| route.access = Access::Public);
    let page = world.request(Method::GET, "/").header("accept", HTML).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(is_noted(&world).await);

    world.change_route(|route| route.access = Access::Link);
    world.set_state(world.serving(1));
    assert!(world.request(Method::GET, "/webhooks/x").send().await.unwrap().status().is_success());
    assert!(!is_noted(&world).await);
    sleep(Duration::from_secs(10)).await;
    assert!(world.get("/").send().await.unwrap().status().is_success());
    assert!(is_noted(&world).await);
    assert!(world.get("/").send().await.unwrap().status().is_success());
    assert!(!is_noted(&world).await, "once in ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_asked_for_neither_wakes_a_preview_nor_keeps_it_awake() {
    let mut world = World::start().await;
    let slack = ("user-agent", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)");
    let automatic = |world: &World| {
        vec![
            world.request(Method::HEAD, "/").header("x-stagely-access", KEY),
            world.get("/favicon.ico"),
            world.get("/robots.txt"),
            world.get("/").header(slack.0, slack.1),
            world.get("/").header("accept", HTML).header("sec-purpose", "prefetch"),
        ]
    };
    for access in [Access::Link, Access::Public] {
        world.change_route(|route| route.access = access);
        for state in [PreviewState::Asleep, world.serving(1)] {
            world.set_state(state.clone());
            for request in automatic(&world) {
                let response = timeout(Duration::from_secs(20), request.send()).await;
                let expected = match state {
                    PreviewState::Asleep => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::OK,
                };
                assert_eq!(response.unwrap().unwrap().status(), expected, "{access:?}");
            }
        }
    }
    assert!(world.core.preview_activity.last_use(&preview_id()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_that_waits_says_how_far_the_preview_is() {
    let mut world = World::start().await;
    let progress = "It waits: 5 previews of app have a machine.".to_owned();
    world.set_state(PreviewState::Waking { progress });
    let page = world.get("/").header("accept", HTML).send().await.unwrap().text().await.unwrap();
    let text =
        "It waits: 5 previews of app have a machine. The page appears as soon as the app answers.";
    assert!(page.contains(text), "{page}");
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
    world.set_state(PreviewState::Waking { progress: String::new() });
    let request = world.get("/").send();
    let mut request = std::pin::pin!(request);
    let early = timeout(Duration::from_millis(300), &mut request).await;
    assert!(early.is_err(), "{early:?}");
    world.remove_route();
    let response = timeout(Duration::from_secs(20), request).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}
