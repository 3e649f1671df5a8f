//! Requests and answers that are made to deceive core, byte by byte.

use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use stagely::core::previews::Access;

use crate::recorder::{Recorder, send, status};
use crate::world::{HOST_NAME, KEY, World};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A request for the preview with the access that a browser has, and further lines.
fn with_access(method: &str, target: &str, lines: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nhost: {HOST_NAME}\r\ncookie: stagely-access={KEY}\r\n{lines}\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_sees_the_key_nowhere() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let referer = format!("referer: http://{HOST_NAME}/a?b=1&stagely-access={KEY}\r\n");
    let header = format!("x-stagely-access: {KEY}\r\nx_stagely_access: {KEY}\r\n");
    let in_query = format!("/a?x=1&stagely-access={KEY}&stagely%2daccess={KEY}");
    let cookies = format!(
        "cookie: __Host-stagely-access={KEY}; theirs=1\r\ncookie: =stagely-access={KEY}\r\n"
    );
    for request in [
        with_access("GET", "/a", &referer),
        with_access("GET", "/a", &header),
        with_access("GET", "/a", &cookies),
        with_access("GET", "/a", &format!("connection: cookie, x-stagely-access\r\n{cookies}")),
        with_access("POST", &in_query, "content-length: 0\r\n"),
    ] {
        let answer = send(&world, request.as_bytes()).await;
        assert_eq!(status(&answer), 200, "{request}\n{answer}");
        let got = app.take_only();
        assert!(!got.contains(KEY), "{got}");
        assert!(!got.to_ascii_lowercase().contains("stagely"), "{got}");
    }
    // A browser that comes with the key is sent on before the app gets anything.
    let answer = send(&world, with_access("GET", &in_query, "").as_bytes()).await;
    assert_eq!(status(&answer), 303, "{answer}");
    let location = format!("location: http://{HOST_NAME}/a?x=1\r\n");
    assert!(answer.contains(&location) && answer.contains("referrer-policy: no-referrer\r\n"));
    assert!(answer.contains("cache-control: no-store\r\n"), "{answer}");
    assert_eq!(app.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_decides_and_nothing_else() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let request = |target: &str, lines: &str| {
        format!(
            "GET {target} HTTP/1.1\r\nx-stagely-access: {KEY}\r\n{lines}connection: close\r\n\r\n"
        )
    };
    let own = format!("host: {HOST_NAME}\r\n");
    // The same preview in other words.
    for (target, lines) in [
        ("/", own.clone()),
        ("/", "HOST:pr-7-app.preview.test\r\n".to_owned()),
        ("/", "host: PR-7-APP.PREVIEW.TEST.\r\n".to_owned()),
        ("/", "host: pr-7-app.preview.test:8443\r\n".to_owned()),
        ("http://pr-7-app.preview.test/", own.clone()),
        ("http://PR-7-app.preview.test/", own.clone()),
        ("/", format!("{own}x-forwarded-host: other.test\r\nx-host: other.test\r\n")),
    ] {
        let answer = send(&world, request(target, &lines).as_bytes()).await;
        assert_eq!(status(&answer), 200, "{target} {lines}: {answer}");
        let got = app.take_only();
        assert!(got.starts_with("GET / HTTP/1.1\r\n"), "{got}");
        assert!(!got.contains("x-forwarded-host: other.test"), "{got}");
        assert_eq!(got.matches("\r\nhost: ").count(), 1, "{got}");
    }
    // Hosts that are none, or two.
    for (target, lines) in [
        ("/", format!("{own}{own}")),
        ("/", format!("{own}host: other.test\r\n")),
        ("/", format!("host: other.test\r\n{own}")),
        ("/", format!("host: {HOST_NAME}, other.test\r\n")),
        ("/", format!("host: {HOST_NAME} other.test\r\n")),
        ("/", format!("host: {HOST_NAME}@127.0.0.1\r\n")),
        ("/", format!("host: user:password@{HOST_NAME}\r\n")),
        ("/", format!("host: {HOST_NAME}/x\r\n")),
        ("/", format!("host: http://{HOST_NAME}\r\n")),
        ("/", "host: pr-7-app%2epreview.test\r\n".to_owned()),
        ("/", format!("host: {HOST_NAME}:80:80\r\n")),
        ("http://other.preview.test/", own.clone()),
        ("http://pr-7-app.preview.test:81/", own.clone()),
        ("http://user@pr-7-app.preview.test/", own.clone()),
        ("http://user@pr-7-app.preview.test/", String::new()),
        ("http://pr-7-app.preview.test./", own.clone()),
        ("pr-7-app.preview.test:80", own.clone()),
        ("*", own.clone()),
    ] {
        let answer = send(&world, request(target, &lines).as_bytes()).await;
        assert_eq!(status(&answer), 400, "{target} {lines}: {answer}");
    }
    // Core itself, whatever other headers say. It knows neither the path nor the key.
    for lines in [
        format!("host: {}\r\nx-forwarded-host: {HOST_NAME}\r\n", world.address()),
        format!(
            "host: 127.0.0.1\r\nx-original-host: {HOST_NAME}\r\nforwarded: host={HOST_NAME}\r\n"
        ),
        "host: [::1]\r\n".to_owned(),
        "host: preview.test\r\n".to_owned(),
    ] {
        let answer = send(&world, request("/of-the-app", &lines).as_bytes()).await;
        assert_eq!(status(&answer), 404, "{lines}: {answer}");
    }
    for host in [
        "a.pr-7-app.preview.test",
        "pr-8-app.preview.test",
        ".preview.test",
        "pr-7-app.localhost.preview.test",
    ] {
        let answer = send(&world, request("/", &format!("host: {host}\r\n")).as_bytes()).await;
        assert!(matches!(status(&answer), 404 | 400), "{host}: {answer}");
    }
    assert_eq!(app.requests(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_request_hides_in_the_first() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nhost: {HOST_NAME}\r\n\r\n");
    let chunked = format!("0\r\n\r\n{smuggled}");
    let of_length = |length: usize| format!("content-length: {length}\r\n");
    let both = [
        of_length(4) + "transfer-encoding: chunked\r\n",
        format!("transfer-encoding: chunked\r\n{}", of_length(chunked.len())),
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: identity, chunked\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
        "transfer-encoding: \"chunked\"\r\n".to_owned(),
        "transfer-encoding:\tchunked\r\n".to_owned(),
        "transfer-encoding:\x0bchunked\r\n".to_owned(),
        "transfer-encoding : chunked\r\n".to_owned(),
        " transfer-encoding: chunked\r\n".to_owned(),
        "x: 1\r\n transfer-encoding: chunked\r\n".to_owned(),
        format!("x: 1\n{}transfer-encoding: chunked\n", of_length(4)),
        format!("x: 1\rtransfer-encoding: chunked\r\n{}", of_length(4)),
        format!("x: \0\r\n{}", of_length(4)),
        of_length(4) + &of_length(5),
        "content-length: 4, 5\r\n".to_owned(),
        "content-length: +4\r\n".to_owned(),
        "content-length: 0x4\r\n".to_owned(),
        "content-length: -1\r\n".to_owned(),
        "content-length: 4 4\r\n".to_owned(),
        "content-length:\r\n".to_owned(),
        "content-length: 18446744073709551620\r\n".to_owned(),
        "content_length: 4\r\n".to_owned(),
        format!("connection: content-length\r\n{}", of_length(0)),
    ];
    let heads = both.iter().map(|lines| with_access("POST", "/outer", lines) + &chunked);
    let sizes = [
        "0x5\r\nabcde\r\n",
        "+5\r\nabcde\r\n",
        "-5\r\nabcde\r\n",
        "5 5\r\nabcde\r\n",
        "fffffffffffffffff5\r\nabcde\r\n",
        "5;x=\n\r\nabcde\r\n",
        "5\nabcde\r\n",
        "5\r\nabcdeX\r\n",
        "5\r\nabcde",
        ";\r\nabcde\r\n",
    ];
    let chunks = sizes.iter().map(|size| {
        with_access("POST", "/outer", "transfer-encoding: chunked\r\n") + size + &chunked
    });
    let old = [
        format!(
            "POST /outer HTTP/1.0\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"
        ),
        format!("GET /outer\r\n\r\n{smuggled}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{smuggled}"),
        format!("GET /outer HTTP/1.1 HTTP/1.1\r\nhost: {HOST_NAME}\r\n\r\n{smuggled}"),
        format!("GET /outer\tHTTP/1.1\r\nhost: {HOST_NAME}\r\n\r\n{smuggled}"),
    ];
    let requests: Vec<String> = heads.chain(chunks).chain(old).collect();
    let answers = join_all(requests.iter().map(|request| send(&world, request.as_bytes())));
    for (request, answer) in requests.iter().zip(answers.await) {
        // What follows the first request is refused like any request of a stranger.
        assert!(!answer.contains("HTTP/1.1 101 "), "{request}\n---\n{answer}");
        assert!(answer.matches("HTTP/1.1 200 OK").count() <= 1, "{request}\n---\n{answer}");
    }
    let got = app.requests();
    assert!(got.iter().all(|request| request.starts_with("POST /outer HTTP/1.1\r\n")), "{got:?}");
    // The app gets one length, whatever the client said.
    for request in &got {
        let head = request.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        let lengths = head.matches("\r\ncontent-length: ").count()
            + head.matches("\r\ntransfer-encoding: ").count();
        assert!(lengths <= 1, "{request}");
        assert!(!head.contains("smuggled"), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_extensions_and_trailers_do_not_reach_the_app() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let lines = "transfer-encoding: chunked\r\ntrailer: x-forwarded-for\r\n";
    let body =
        "5;a=b;c=\"d\"\r\nabcde\r\n0;last\r\nx-forwarded-for: 6.6.6.6\r\nx-role: admin\r\n\r\n";
    let request = with_access("POST", "/", lines) + body;
    let answer = send(&world, request.as_bytes()).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let got = app.take_only();
    assert!(got.ends_with("\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"), "{got}");
    assert!(
        !got.contains("6.6.6.6") && !got.contains("x-role") && !got.contains("trailer"),
        "{got}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_none_is_a_bad_request() {
    let world = World::start().await;
    Recorder::start(&world, OK).await;
    for body in ["5;x=\n\r\nabcde\r\n0\r\n\r\n", "5\r\nabcdeX\r\n", "zz\r\nabcde\r\n"] {
        let request = with_access("POST", "/", "transfer-encoding: chunked\r\n") + body;
        let answer = send(&world, request.as_bytes()).await;
        assert_eq!(status(&answer), 400, "{body:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_names_another_path() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let lines = [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-Uri",
        "X-Original-Path",
        "X-Envoy-Original-Path",
        "X-Forwarded-Path",
        "X-Forwarded-Prefix",
        "X-Forwarded-Uri",
        "X_Original_URL",
        "X-Script-Name",
        "SCRIPT_NAME",
    ]
    .map(|name| format!("{name}: /admin\r\n"))
    .concat();
    let stranger = format!("GET /webhooks/a HTTP/1.1\r\nhost: {HOST_NAME}\r\n{lines}\r\n");
    for request in [stranger, with_access("GET", "/", &lines)] {
        let answer = send(&world, request.as_bytes()).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let got = app.take_only();
        assert!(!got.contains("admin"), "{got}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_remove_what_core_says() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let names = "x-forwarded-for, X-Forwarded-Host, x-forwarded-proto, host, content-length, x-app";
    let lines = format!(
        "connection: {names}\r\nx-forwarded-for: 6.6.6.6, 127.0.0.1\r\nx-forwarded-proto: https\r\nx-app: 1\r\n\
         content-length: 2\r\nte: trailers\r\nkeep-alive: timeout=9\r\nproxy-connection: keep-alive\r\n"
    );
    let request = with_access("POST", "/", &lines) + "ab";
    let answer = send(&world, request.as_bytes()).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let got = app.take_only();
    for line in [
        format!("\r\nhost: {HOST_NAME}\r\n"),
        format!("\r\nx-forwarded-host: {HOST_NAME}\r\n"),
        "\r\nx-forwarded-for: 127.0.0.1\r\n".to_owned(),
        "\r\nx-forwarded-proto: http\r\n".to_owned(),
        "\r\ncontent-length: 2\r\n".to_owned(),
    ] {
        assert!(got.contains(&line), "{line} {got}");
    }
    for absent in ["x-app", "6.6.6.6", "keep-alive", "proxy-connection", "\r\nte:", "connection: x"]
    {
        assert!(!got.contains(absent), "{absent}: {got}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_long_are_refused() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let long = "x".repeat(70 * 1024);
    let many = "x-a: 1\r\n".repeat(120);
    for (request, expected) in [
        (with_access("GET", "/", &format!("x-long: {long}\r\n")), &[431][..]),
        (with_access("GET", "/", &format!("{long}: 1\r\n")), &[431, 400]),
        (with_access("GET", "/", &many), &[431]),
        (with_access("GET", &format!("/{long}"), ""), &[414, 431]),
        (with_access("GET", &format!("/?{long}"), ""), &[414, 431]),
        (with_access(&long, "/", ""), &[431, 400]),
        // It never ends.
        (format!("GET / HTTP/1.1\r\nhost: {HOST_NAME}\r\nx: {}", "x".repeat(400 * 1024)), &[431]),
    ] {
        let answer = send(&world, request.as_bytes()).await;
        let begin = &request[..80.min(request.len())];
        assert!(expected.contains(&status(&answer)), "{begin}: {answer}");
    }
    assert_eq!(app.requests(), [""; 0]);
    let fits = with_access("GET", "/", &format!("x-long: {}\r\n", "x".repeat(60 * 1024)));
    assert_eq!(status(&send(&world, fits.as_bytes()).await), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_paths_are_public() {
    let world = World::start().await;
    let app = Recorder::start(&world, OK).await;
    let get = |target: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: {HOST_NAME}\r\nconnection: close\r\n\r\n")
    };
    for target in [
        "/webhooks/../admin",
        "/webhooks/..",
        "/webhooks/.",
        "/webhooks/./admin",
        "/webhooks/%2e%2e/admin",
        "/webhooks/%2E%2E/admin",
        "/webhooks/.%2e/admin",
        "/webhooks/..%2fadmin",
        "/webhooks/%2e%2e%2fadmin",
        "/webhooks/%252e%252e/admin",
        "/webhooks/..%5cadmin",
        "/webhooks/..\\admin",
        "/webhooks/..;/admin",
        "/webhooks/..;x=1/admin",
        "/webhooks/%2e%2e;/admin",
        "/webhooks//admin",
        "//webhooks/a",
        "/webhooks",
        "/x/../webhooks/a",
        "/WEBHOOKS/a",
        "/Webhooks/a",
        "/webhooks%2fa",
        "/%77ebhooks%2fa",
        "/webhooks/%00",
        "/webhooks/a%00",
        "/webhooks/%0d%0ax:1",
        "/webhooks/%",
        "/webhooks/%2",
        "/webhooks/%zz",
        "/webhooks/%ff%2e",
        "/webhooks/%c0%ae%c0%ae/env",
        "/webhooks/%c0%af",
        "/webhooks/%ef%bc%8e%ef%bc%8e/env",
        "/webhooks/a%ef%bc%8fb",
        "/webhooks/%e2%80%a4%e2%80%a4/env",
        "/webhooks/a%e2%88%95b",
        "/admin?/webhooks/",
        "/admin#/webhooks/a",
        "/admin;/webhooks/a",
        "/?x=/webhooks/a",
        "http://pr-7-app.preview.test/admin?/webhooks/a",
        "http://pr-7-app.preview.test//webhooks/a",
    ] {
        let answer = send(&world, get(target).as_bytes()).await;
        assert!(matches!(status(&answer), 400 | 401), "{target}: {answer}");
    }
    assert_eq!(app.requests(), [""; 0]);
    for target in
        ["/webhooks/a", "/webhooks/%61", "/webhooks/a?x=/../admin", "/webhooks/a#/../admin"]
    {
        let answer = send(&world, get(target).as_bytes()).await;
        assert_eq!(status(&answer), 200, "{target}: {answer}");
        assert!(app.take_only().starts_with("GET /webhooks/"), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_does_not_get_in_by_the_cookie() {
    let mut world = World::start().await;
    world.add_route("pr-7-app-mail", |route| route.endpoint = "mail".to_owned());
    world.add_route("pr-8-app", |route| {
        route.preview = "prev_2".parse().unwrap();
        route.access_key = "key-of-pr-8".into();
    });
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let app = Recorder::start(&world, switched).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let from = |origin: &str| format!("{upgrade}origin: {origin}\r\n");
    for (origin, expected) in [
        ("http://pr-7-app.preview.test", 101),
        ("https://PR-7-APP.preview.test:8443", 101),
        ("http://pr-7-app-mail.preview.test", 101),
        ("http://pr-8-app.preview.test", 403),
        ("http://pr-9-app.preview.test", 403),
        ("http://a.b.preview.test", 403),
        ("http://preview.test", 403),
        ("http://127.0.0.1:7780", 403),
        ("https://pr-7-app.preview.test.evil.example", 403),
        ("null", 403),
        ("", 403),
    ] {
        let answer = send(&world, with_access("GET", "/", &from(origin)).as_bytes()).await;
        assert_eq!(status(&answer), expected, "{origin}: {answer}");
    }
    let twice = from("http://pr-7-app.preview.test") + "origin: http://pr-8-app.preview.test\r\n";
    assert_eq!(status(&send(&world, with_access("GET", "/", &twice).as_bytes()).await), 403);
    assert_eq!(app.requests().len(), 3);

    // Programs have no pages, and show the key themselves.
    assert_eq!(status(&send(&world, with_access("GET", "/", upgrade).as_bytes()).await), 101);
    let by_header = format!(
        "GET / HTTP/1.1\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\n{}\r\n",
        from("http://elsewhere.example")
    );
    assert_eq!(status(&send(&world, by_header.as_bytes()).await), 101);
    let foreign = with_access("GET", "/", &from("http://pr-8-app.preview.test"));
    let of_other_key = foreign.replace(KEY, "key-of-pr-8");
    assert_eq!(status(&send(&world, of_other_key.as_bytes()).await), 401);

    // Other requests: those of another preview's pages alone.
    let app = Recorder::start(&world, OK).await;
    for (origin, expected) in [
        ("http://pr-7-app.preview.test", 200),
        ("https://login.example", 200),
        // Of a page that hides its address.
        ("null", 403),
        ("null\r\nsec-fetch-site: same-site", 403),
        ("null\r\nsec-fetch-site: cross-site", 403),
        ("null\r\nsec-fetch-site: same-origin", 200),
        ("http://pr-8-app.preview.test", 403),
        ("http://pr-8-app.localhost:7780", 403),
    ] {
        for method in ["GET", "POST"] {
            let lines = format!("origin: {origin}\r\ncontent-length: 0\r\n");
            let answer = send(&world, with_access(method, "/", &lines).as_bytes()).await;
            assert_eq!(status(&answer), expected, "{method} {origin}: {answer}");
        }
    }
    // Images, scripts and links have no origin.
    for (lines, expected) in [
        ("sec-fetch-site: same-origin\r\nsec-fetch-mode: no-cors", 200),
        ("sec-fetch-site: none\r\nsec-fetch-mode: navigate", 200),
        ("sec-fetch-site: same-site\r\nsec-fetch-mode: navigate", 200),
        ("sec-fetch-site: same-site\r\nsec-fetch-mode: no-cors", 403),
        ("sec-fetch-site: same-site\r\nreferer: http://pr-8-app.preview.test/", 403),
        ("sec-fetch-site: same-site\r\nreferer: http://pr-7-app.preview.test/", 200),
    ] {
        let answer =
            send(&world, with_access("GET", "/", &format!("{lines}\r\n")).as_bytes()).await;
        assert_eq!(status(&answer), expected, "{lines}: {answer}");
    }
    let public = with_access(
        "POST",
        "/webhooks/a",
        "origin: http://pr-8-app.preview.test\r\ncontent-length: 0\r\n",
    );
    assert_eq!(status(&send(&world, public.as_bytes()).await), 200);
    assert_eq!(app.requests().len(), 11);
}

const INJECTED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-robots-tag, x-listed\r\nx-listed: 1\r\n\
    set-cookie: stagely-access=1\r\nset-cookie: __host-STAGELY-access =1; Path=/\r\nset-cookie: =stagely-access=1\r\n\
    set-cookie: stagely-access\r\nset-cookie: mine=stagely-access\r\nclear-site-data: \"cookies\", \"cache\"\r\n\
    service-worker-allowed: /\r\nalt-svc: h3=\":443\"\r\nstrict-transport-security: max-age=9\r\n\
    x-robots-tag: all\r\nkeep-alive: timeout=1\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\n\r\nok";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_neither_takes_the_access_away_nor_leads_past_core() {
    let mut world = World::start().await;
    let app = Recorder::start(&world, INJECTED).await;
    let answer = send(&world, with_access("GET", "/", "").as_bytes()).await;
    assert_eq!(status(&answer), 200, "{answer}");
    for there in [
        "\r\nset-cookie: mine=stagely-access\r\n",
        "\r\nclear-site-data: \"cache\"\r\n",
        // Both hold for this origin alone, which no other preview has.
        "\r\nservice-worker-allowed: /\r\n",
        "\r\nstrict-transport-security: max-age=9\r\n",
        "\r\nx-robots-tag: noindex\r\n",
    ] {
        assert_eq!(answer.matches(there).count(), 1, "{there}: {answer}");
    }
    assert_eq!(answer.matches("set-cookie").count(), 1, "{answer}");
    for absent in
        ["alt-svc", "x-listed", "upgrade", "proxy-authenticate", "timeout=1", ": all", "cookies\""]
    {
        assert!(!answer.contains(absent), "{absent}: {answer}");
    }
    app.take_only();

    // Where people type tokens of the API, no script sees the form.
    let script = with_access("GET", "/worker.js", "service-worker: script\r\n");
    assert_eq!(status(&send(&world, script.as_bytes()).await), 200);
    app.take_only();
    world.change_route(|route| route.access = Access::Token);
    let token = world.core.admin_token.expose_secret();
    let script = script
        .replace(&format!("cookie: stagely-access={KEY}"), &format!("x-stagely-access: {token}"));
    assert_eq!(status(&send(&world, script.as_bytes()).await), 403);
    assert_eq!(app.requests(), [""; 0]);
}
