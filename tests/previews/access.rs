//! Who may open a preview, and what the app sees of it.

use reqwest::header::{COOKIE, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Method, Response, StatusCode};
use secrecy::ExposeSecret as _;
use stagely::core::previews::Access;

use crate::world::{HOST_NAME, KEY, World, echo};

const HTML: &str = "text/html,application/xhtml+xml";

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_gives_a_cookie_and_the_app_does_not_see_it() {
    let world = World::start().await;
    let page = world.request(Method::GET, "/").header("accept", HTML).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(header(&page, "x-robots-tag"), "noindex");
    assert!(page.text().await.unwrap().contains("Open it with the link"));

    let entered = world.request(Method::GET, &format!("/a?b=1&stagely-access={KEY}&c"));
    let entered = entered.send().await.unwrap();
    assert_eq!(entered.status(), StatusCode::SEE_OTHER);
    assert_eq!(entered.headers()[LOCATION], format!("http://{HOST_NAME}/a?b=1&c"));
    let cookie = header(&entered, SET_COOKIE.as_str()).to_owned();
    assert!(cookie.starts_with(&format!("stagely-access={KEY}; Path=/; HttpOnly; SameSite=Lax")));
    assert_eq!(header(&entered, "referrer-policy"), "no-referrer");

    let cookies = format!("first=1; stagely-access={KEY}; second=2");
    let got = world.request(Method::GET, "/a?b=1").header(COOKIE, &cookies);
    let got = echo(got.header(COOKIE, "third=3; stagely-access=other").send().await.unwrap()).await;
    assert_eq!(got.header("cookie"), ["first=1; second=2", "third=3"]);
    assert!(!got.text().contains(KEY) && !got.text().contains("stagely-access"), "{got:?}");

    // Programs have no cookies.
    let target = format!("/hook?stagely-access={KEY}");
    let got = echo(world.request(Method::POST, &target).send().await.unwrap()).await;
    assert_eq!(got.target(), "/hook");
    let got = echo(world.get("/").send().await.unwrap()).await;
    assert!(!got.text().contains(KEY), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redirect_leads_to_the_same_host() {
    let world = World::start().await;
    let entered = world.request(Method::GET, &format!("//other.example/?stagely-access={KEY}"));
    let entered = entered.send().await.unwrap();
    assert_eq!(entered.headers()[LOCATION], format!("http://{HOST_NAME}//other.example/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_open_nothing() {
    let mut world = World::start().await;
    world.add_route("pr-8-app", |route| {
        route.preview = "prev_2".parse().unwrap();
        route.access_key = "key-of-pr-8".into();
    });
    world.add_route("pr-9-app", |route| route.access_key = "".into());
    let admin = world.core.admin_token.expose_secret().to_owned();
    for key in ["", "key-of-pr-8", "key-of-pr-", "KEY-OF-PR-7", &admin] {
        let status =
            |request: reqwest::RequestBuilder| async { request.send().await.unwrap().status() };
        for label in ["pr-7-app", "pr-9-app"] {
            let host = format!("{label}.preview.test");
            let request = |target: &str| world.request_to(&host, Method::GET, target);
            let by_header = request("/").header("x-stagely-access", key);
            assert_eq!(status(by_header).await, StatusCode::UNAUTHORIZED, "{label} {key}");
            let by_cookie = request("/").header(COOKIE, format!("__Host-stagely-access={key}"));
            assert_eq!(status(by_cookie).await, StatusCode::UNAUTHORIZED, "{label} {key}");
            let by_url = request(&format!("/?stagely-access={key}"));
            assert_eq!(status(by_url).await, StatusCode::UNAUTHORIZED, "{label} {key}");
        }
    }
    let other = world.request_to("pr-8-app.preview.test", Method::GET, "/");
    let other = other.header("x-stagely-access", KEY).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.app.requests.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn public_paths_open_nothing_else() {
    let world = World::start().await;
    let got = echo(world.request(Method::POST, "/webhooks/github").send().await.unwrap()).await;
    assert_eq!(got.target(), "/webhooks/github");
    for target in [
        "/webhooks/../admin",
        "/webhooks/%2e%2e/admin",
        "/webhooks/..%2fadmin",
        "/webhooks/..;/admin",
        "/webhooks//admin",
        "/webhooks\\..\\admin",
        "/x/../webhooks/a",
        "//webhooks/a",
        "/webhooks",
        "*",
    ] {
        let answer = world
            .send_raw(&format!(
                "GET {target} HTTP/1.1\r\nhost: {HOST_NAME}\r\nconnection: close\r\n\r\n"
            ))
            .await;
        let refused = answer.starts_with("HTTP/1.1 401 ") || answer.starts_with("HTTP/1.1 400 ");
        assert!(refused, "{target}: {answer}");
    }
    assert_eq!(world.app.requests.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_preview_needs_no_key() {
    let mut world = World::start().await;
    world.change_route(|route| route.access = Access::Public);
    let got = world.request(Method::GET, &format!("/?stagely-access={KEY}"));
    let response = got.send().await.unwrap();
    assert_eq!(header(&response, "x-robots-tag"), "noindex");
    assert_eq!(echo(response).await.target(), "/");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_api_opens_through_a_form() {
    let mut world = World::start().await;
    world.change_route(|route| route.access = Access::Token);
    let token = world.core.admin_token.expose_secret().to_owned();
    let got = world.request(Method::GET, "/").header("x-stagely-access", &token);
    let got = echo(got.send().await.unwrap()).await;
    assert!(!got.text().contains(&token), "{got:?}");

    // The key of the link does not open it in a URL.
    let target = format!("/a?stagely-access={KEY}&x=\"<b>");
    let page = world.request(Method::GET, &target).header("accept", HTML).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::UNAUTHORIZED);
    assert!(header(&page, "content-security-policy").contains("form-action 'self'"));
    let page = page.text().await.unwrap();
    assert!(page.contains("action=\"/.well-known/stagely-access\""), "{page}");
    assert!(!page.contains(KEY) && !page.contains("<b>") && page.contains("/a?x="), "{page}");

    let form = |token: &str, next: &str| {
        let body = format!("token={token}&next={next}");
        let post = world.request(Method::POST, "/.well-known/stagely-access");
        post.header("content-type", "application/x-www-form-urlencoded").body(body).send()
    };
    let wrong = form("stagely_wrong", "/a").await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.text().await.unwrap().contains("This token is not known"));
    for (next, location) in [("/a?x=1", "/a?x=1"), ("//b", "//b"), ("https://b", "/"), ("", "/")] {
        let right = form(&token, next).await.unwrap();
        assert_eq!(right.status(), StatusCode::SEE_OTHER);
        assert_eq!(right.headers()[LOCATION], format!("http://{HOST_NAME}{location}"));
        let cookie = header(&right, SET_COOKIE.as_str());
        assert!(!cookie.contains(&token), "{cookie}");
        let got = world.request(Method::GET, "/").header(COOKIE, cookie.split(';').next().unwrap());
        assert_eq!(got.send().await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_cores_word() {
    let world = World::start().await;
    let got = world
        .get("/")
        .header("x-forwarded-host", "evil.example")
        .header("x-forwarded-proto", "gopher")
        .header("x_forwarded_for", "1.2.3.4")
        .header("forwarded", "for=1.2.3.4")
        .header("connection", "x-listed")
        .header("x-listed", "1")
        .header("authorization", "Bearer of-the-app");
    let got = echo(got.send().await.unwrap()).await;
    assert_eq!(got.header("host"), [HOST_NAME]);
    assert_eq!(got.header("x-forwarded-host"), [HOST_NAME]);
    assert_eq!(got.header("x-forwarded-proto"), ["http"]);
    assert_eq!(got.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(got.header("authorization"), ["Bearer of-the-app"]);
    for absent in ["x_forwarded_for", "forwarded", "x-listed", "x-stagely-access", "connection"] {
        assert_eq!(got.header(absent), [""; 0], "{absent}");
    }
    let response = world.get("/cookies").send().await.unwrap();
    let cookies: Vec<_> = response.headers().get_all(SET_COOKIE).iter().collect();
    assert_eq!(cookies, ["session=1; Path=/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_of_previews_have_none_of_cores_pages() {
    let world = World::start().await;
    let hosts =
        ["pr-8-app.preview.test", "a.b.preview.test", "pr-8-app.localhost", "a.b.localhost"];
    for host in hosts {
        for target in ["/healthz", "/api/v1/openapi.json", "/", "/v1/previews/tls-ask?domain=x"] {
            let response = world.request_to(host, Method::GET, target).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{host}{target}");
        }
    }
    // The app has its own.
    let got = echo(world.get("/healthz").send().await.unwrap()).await;
    assert_eq!(got.target(), "/healthz");
    // The same preview on a laptop, and with any port and case.
    for host in ["pr-7-app.localhost:7780", "PR-7-APP.Preview.Test.", "pr-7-app.preview.test:443"] {
        let request = world.request_to(host, Method::GET, "/").header("x-stagely-access", KEY);
        let got = echo(request.send().await.unwrap()).await;
        assert_eq!(got.header("x-forwarded-host"), [host]);
    }
    let core = world.request_to("core.example", Method::GET, "/healthz").send().await.unwrap();
    assert_eq!(core.text().await.unwrap(), "ok\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_previews_cannot_write_to_core() {
    let world = World::start().await;
    let host = world.address().to_string();
    for (origin, is_refused) in [
        ("https://pr-7-app.preview.test", true),
        ("http://pr-7-app.localhost:7780", true),
        ("https://elsewhere.example", false),
        ("null", false),
    ] {
        let post = world.request_to(&host, Method::POST, "/api/v1/runs").header(ORIGIN, origin);
        let post = post.bearer_auth(world.core.admin_token.expose_secret());
        let response = post.json(&serde_json::json!({ "nothing": 1 })).send().await.unwrap();
        let expected = if is_refused { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
        assert_eq!(response.status(), expected, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_only_for_open_previews() {
    let world = World::start().await;
    let host = world.address().to_string();
    let ask = async |query: &str| {
        let target = format!("/v1/previews/tls-ask{query}");
        world.request_to(&host, Method::GET, &target).send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask("?domain=pr-7-app.preview.test").await, 200);
    assert_eq!(ask("?domain=PR-7-app.preview.test").await, 200);
    let artifacts = format!("artifacts---{}.preview.test", "0".repeat(26));
    for unknown in [
        &*artifacts,
        "pr-8-app.preview.test",
        "preview.test",
        "pr-7-app.localhost",
        "a.example",
        "",
    ] {
        assert_eq!(ask(&format!("?domain={unknown}")).await, 404, "{unknown}");
    }
    assert_eq!(ask("").await, 400);
    let mut last = 0;
    for _ in 0..500 {
        last = ask("?domain=guess.preview.test").await;
        if last == 429 {
            return;
        }
    }
    panic!("guessing goes on: {last}");
}
