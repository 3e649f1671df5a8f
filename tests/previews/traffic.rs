//! Bytes through tunnels: large bodies, many connections, slow readers, and ends of all kinds.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use reqwest::{Body, Method, StatusCode};
use stagely::core::previews::PreviewState;
use stagely_test_support::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::app::{Comparison, PIECE_BYTES, piece};
use crate::world::{HOST_NAME, KEY, World, echo};

/// 100 MB.
const PIECES: u64 = 3_200;

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_connections() {
    let world = World::start().await;
    for number in 0..20 {
        let got = echo(world.get(&format!("/a%20b/{number}?x=%2F")).send().await.unwrap()).await;
        assert_eq!(got.target(), format!("/a%20b/{number}?x=%2F"));
        assert_eq!(got.app(), "first");
    }
    let connections = world.app.connections.load(Ordering::Relaxed);
    assert!(connections <= 2, "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole_in_both_directions() {
    let world = World::start().await;
    let bytes = PIECES * PIECE_BYTES as u64;
    let response = world.get(&format!("/download/{PIECES}")).send().await.unwrap();
    let mut comparison = Comparison::default();
    let mut body = response.bytes_stream();
    while let Some(data) = body.next().await {
        comparison.add(data.unwrap());
    }
    assert_eq!(comparison.count, bytes);

    let pieces = stream::iter((0..PIECES).map(|number| Ok::<_, Infallible>(piece(number))));
    let request = world.request(Method::POST, "/upload").header("x-stagely-access", KEY);
    let response = request.body(Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), bytes.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_known_length_stays_one() {
    let world = World::start().await;
    let post = world.request(Method::POST, "/").header("x-stagely-access", KEY);
    let got = echo(post.body("some text").send().await.unwrap()).await;
    assert_eq!((got.body(), got.header("content-length")), ("some text", vec!["9"]));
    assert_eq!(got.header("transfer-encoding"), [""; 0]);
    let head = world.request(Method::HEAD, "/").header("x-stagely-access", KEY);
    let head = head.send().await.unwrap();
    assert!(head.headers()["content-length"].to_str().unwrap().parse::<u64>().unwrap() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_at_once() {
    let world = World::start().await;
    let response = world.get("/events").send().await.unwrap();
    let mut events = response.bytes_stream();
    for number in 0..3 {
        let event = timeout(Duration::from_secs(20), events.next()).await;
        let event = event.expect("an event does not wait for the next one").unwrap().unwrap();
        assert_eq!(event, format!("data: {number}\n\n"));
        // A quiet connection lives on.
        sleep(Duration::from_millis(1_500)).await;
        world.app.release.add_permits(1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_are_open_at_the_same_time() {
    const CONNECTIONS: usize = 256;
    let world = World::start().await;
    world.is_reached().await;
    let requests = (0..CONNECTIONS).map(|_| async {
        let response = world.get("/hold").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    });
    let release = async {
        eventually("all requests are at the app", async || {
            (world.app.held.load(Ordering::Relaxed) == CONNECTIONS).then_some(())
        })
        .await;
        world.app.release.add_permits(CONNECTIONS);
    };
    let (answers, ()) = tokio::join!(join_all(requests), release);
    for answer in answers {
        assert_eq!(answer, (StatusCode::OK, "released".to_owned()));
    }
    world.is_reached().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_neither_others_nor_memory() {
    let world = World::start().await;
    let mut slow = world.get("/endless").send().await.unwrap().bytes_stream();
    slow.next().await.unwrap().unwrap();
    let produced = || world.app.produced.load(Ordering::Relaxed);
    let settled = eventually("the app waits for the reader", async || {
        let before = produced();
        sleep(Duration::from_millis(500)).await;
        (before == produced()).then_some(before)
    })
    .await;
    // The buffers of the system, of five sockets.
    assert!(settled < 64 * 1024 * 1024, "{settled} bytes are somewhere");
    let begin = Instant::now();
    for _ in 0..20 {
        echo(world.get("/").send().await.unwrap()).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(produced(), settled);
    slow.next().await.unwrap().unwrap();
}

/// Starts an app that is a function of one connection.
async fn raw_app<F: Future<Output = ()> + Send>(
    world: &World,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.listen_at(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream).await;
        }
    });
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_closes_early_is_a_bad_gateway() {
    let world = World::start().await;
    raw_app(&world, async |mut stream| {
        read_head(&mut stream).await;
    })
    .await;
    let response = world.get("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.text().await.unwrap();
    assert!(text.contains("The app closed the connection before it had answered"), "{text}");

    raw_app(&world, async |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(b"this is not HTTP\r\n\r\n").await.unwrap();
    })
    .await;
    let response = world.get("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.text().await.unwrap();
    assert!(text.contains("no answer of HTTP/1.1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_answer_without_reading_the_request() {
    let world = World::start().await;
    raw_app(&world, async |mut stream| {
        read_head(&mut stream).await;
        let answer =
            b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno\n";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // What comes is thrown away.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let pieces = stream::iter((0..300).map(|number| Ok::<_, Infallible>(piece(number))));
    let request = world.request(Method::POST, "/").header("x-stagely-access", KEY);
    let response = request.body(Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.text().await.unwrap(), "no\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_closed_its_direction_gets_the_answer() {
    let mut world = World::start().await;
    for is_asleep in [false, true] {
        if is_asleep {
            world.set_state(PreviewState::Waking { progress: String::new() });
        }
        let mut client = TcpStream::connect(world.address()).await.unwrap();
        let request =
            format!("GET /page HTTP/1.1\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        if is_asleep {
            sleep(Duration::from_millis(500)).await;
            world.set_state(world.serving(2));
        }
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("/page"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_notices_that_a_client_has_disconnected() {
    let world = World::start().await;
    let (sender, gone) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    raw_app(&world, move |mut stream| {
        let sender = sender.lock().unwrap().take();
        async move {
            read_head(&mut stream).await;
            // Quiet until the connection ends.
            let _ = stream.read_u8().await;
            if let Some(sender) = sender {
                let _ = sender.send(());
            }
        }
    })
    .await;
    let mut client = TcpStream::connect(world.address()).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(client);
    timeout(Duration::from_secs(30), gone).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_listen_is_a_bad_gateway() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.listen_at(listener.local_addr().unwrap());
    drop(listener);
    let response = world.get("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.text().await.unwrap();
    assert!(text.contains("endpoint `web` does not accept connections"), "{text}");
    // Without the endpoint, too.
    world.endpoints.set(crate::world::preview_id(), std::iter::empty().collect());
    let text = world.get("/").send().await.unwrap().text().await.unwrap();
    assert!(text.contains("endpoint `web` has no container here that can be reached"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_goes_is_a_bad_gateway_until_it_is_back() {
    let mut world = World::start().await;
    let held = world.get("/hold").send();
    let go = async {
        eventually("the request is at the app", async || {
            (world.app.held.load(Ordering::Relaxed) == 1).then_some(())
        })
        .await;
    };
    let mut held = std::pin::pin!(held);
    tokio::select! {
        answer = &mut held => panic!("{answer:?}"),
        () = go => {}
    }
    world.kill_agent();
    let response = held.await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.text().await.unwrap();
    assert!(text.contains("connection to the preview's machine was lost"), "{text}");

    let begin = Instant::now();
    let response = world.get("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.text().await.unwrap();
    assert!(text.contains("the preview's machine is not connected"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(30));

    world.start_agent();
    world.is_reached().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_serves_nothing_any_more_loses_its_connections() {
    let mut world = World::start().await;
    let mut events = world.get("/events").send().await.unwrap().bytes_stream();
    events.next().await.unwrap().unwrap();
    world.remove_route();
    let end = timeout(Duration::from_secs(20), events.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    let response = world.get("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}
