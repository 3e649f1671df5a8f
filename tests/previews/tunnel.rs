//! Tunnels over a network that is slow and stalls, and more connections than there are tunnels.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use reqwest::{Body, Method, StatusCode};
use stagely_protocol::TUNNELS_MAX;
use stagely_test_support::slow_proxy::SlowProxy;
use stagely_test_support::wait::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::app::{Comparison, PIECE_BYTES, piece};
use crate::world::{HOST_NAME, KEY, World, echo};

/// Of each direction between core and the agent.
const DELAY: Duration = Duration::from_millis(100);

const STALL: Duration = Duration::from_secs(5);

/// 50 MB.
const PIECES: u64 = 1_600;

async fn download(world: &World) {
    let response = world.get(&format!("/download/{PIECES}")).send().await.unwrap();
    let mut comparison = Comparison::default();
    let mut body = response.bytes_stream();
    while let Some(data) = body.next().await {
        comparison.add(data.unwrap());
    }
    assert_eq!(comparison.count, PIECES * PIECE_BYTES as u64);
}

async fn upload(world: &World) {
    let pieces = stream::iter((0..PIECES).map(|number| Ok::<_, Infallible>(piece(number))));
    let request = world.request(Method::POST, "/upload").header("x-stagely-access", KEY);
    let response = request.body(Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), (PIECES * PIECE_BYTES as u64).to_string());
}

/// Sends messages and gets each back, until `stop`, and a few in any case.
async fn chat(world: &World, stop: impl Fn() -> bool) {
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let mut request = format!("ws://{HOST_NAME}/socket").into_client_request().unwrap();
    request.headers_mut().insert("x-stagely-access", KEY.parse().unwrap());
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let mut number = 0;
    while !stop() || number < 4 {
        let message = Message::text(format!("message {number}"));
        socket.send(message.clone()).await.unwrap();
        let answer = timeout(Duration::from_mins(1), socket.next()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap(), message);
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_slow_and_stalls_breaks_no_connection() {
    let mut world = World::start().await;
    let proxy = SlowProxy::start(world.address(), DELAY).await;
    world.reach_core_at(proxy.address).await;
    world.is_reached().await;
    for number in 0..5 {
        let begin = Instant::now();
        let got = echo(world.get(&format!("/{number}")).send().await.unwrap()).await;
        assert_eq!(got.target(), format!("/{number}"));
        let took = begin.elapsed();
        assert!(took >= 2 * DELAY && took < Duration::from_secs(5), "{took:?}");
    }
    let others_end = AtomicUsize::new(0);
    let transfers = async {
        tokio::join!(download(&world), upload(&world));
        others_end.fetch_add(1, Ordering::Relaxed);
    };
    let stalls = async {
        for _ in 0..2 {
            sleep(Duration::from_millis(300)).await;
            proxy.stall(STALL);
            sleep(STALL).await;
        }
        others_end.fetch_add(1, Ordering::Relaxed);
    };
    let chat = chat(&world, || others_end.load(Ordering::Relaxed) == 2);
    tokio::join!(transfers, stalls, chat);
    // New connections, too.
    echo(world.get("/last").send().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_beyond_the_last_tunnel_waits_for_one() {
    let world = World::start().await;
    world.is_reached().await;
    let held = || world.app.held.load(Ordering::Relaxed);
    let requests = (0..=TUNNELS_MAX).map(|_| async {
        let response = world.get("/hold").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    });
    let release = async {
        eventually("all tunnels are used", async || (held() == TUNNELS_MAX).then_some(())).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(held(), TUNNELS_MAX);
        world.app.release.add_permits(1);
        eventually("the last request is at the app", async || {
            (held() == TUNNELS_MAX + 1).then_some(())
        })
        .await;
        world.app.release.add_permits(TUNNELS_MAX);
    };
    let (answers, ()) = tokio::join!(join_all(requests), release);
    for answer in answers {
        assert_eq!(answer, (StatusCode::OK, "released".to_owned()));
    }
    world.is_reached().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_key_take_at_most_half_of_the_tunnels() {
    const SHARE: usize = TUNNELS_MAX / 2;
    let mut world = World::start().await;
    world.change_route(|route| route.public_paths = vec!["/hold".to_owned()]);
    world.is_reached().await;
    let held = || world.app.held.load(Ordering::Relaxed);
    let strangers = (0..TUNNELS_MAX).map(|_| async {
        let response = world.request(Method::GET, "/hold").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    });
    let owners = async {
        eventually("strangers use their share", async || (held() == SHARE).then_some(())).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(held(), SHARE);
        let begin = Instant::now();
        join_all((0..20).map(|_| async { echo(world.get("/").send().await.unwrap()).await })).await;
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        world.app.release.add_permits(TUNNELS_MAX);
    };
    let (answers, ()) = tokio::join!(join_all(strangers), owners);
    // The others have waited for a place.
    for answer in answers {
        assert_eq!(answer, (StatusCode::OK, "released".to_owned()));
    }
}

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// An app for one connection.
async fn app<F: Future<Output = ()> + Send + 'static>(
    world: &World,
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.listen_at(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_may_end_its_direction_first() {
    let world = World::start().await;
    let (sender, received) = tokio::sync::oneshot::channel();
    app(&world, async move |mut stream| {
        read_head(&mut stream).await;
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        stream.write_all(b"all").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        sender.send(text).unwrap();
    })
    .await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    let mut text = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "all");

    // The other direction goes on.
    for word in ["one ", "two ", "three"] {
        sleep(Duration::from_millis(200)).await;
        stream.write_all(word.as_bytes()).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(Duration::from_secs(20), received).await.unwrap().unwrap(), "one two three");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_reads_slowly_slows_the_upload_down() {
    let world = World::start().await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    app(&world, async move |mut stream| {
        read_head(&mut stream).await;
        gone.await.unwrap();
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            stream.read_buf(&mut rest).await.unwrap();
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}",
            u8::from(rest.len() > 50_000_000)
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let pieces = stream::iter((0..PIECES * 4).map(move |number| {
        counted.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
        Ok::<_, Infallible>(piece(number))
    }));
    let request = world.request(Method::POST, "/").header("x-stagely-access", KEY);
    let upload = request.body(Body::wrap_stream(pieces)).send();
    let watch = async {
        let settled = eventually("the client waits for the app", async || {
            let before = sent.load(Ordering::Relaxed);
            sleep(Duration::from_millis(500)).await;
            (before > 0 && before == sent.load(Ordering::Relaxed)).then_some(before)
        })
        .await;
        // The buffers of the system, of five sockets.
        assert!(settled < 64 * 1024 * 1024, "{settled} bytes are somewhere");
        go.send(()).unwrap();
    };
    let (response, ()) = tokio::join!(upload, watch);
    assert_eq!(response.unwrap().text().await.unwrap(), "1");
}
