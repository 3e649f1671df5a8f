//! Upgraded connections of apps, and connections that end in one direction.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::world::{HOST_NAME, KEY, World, preview_id};

async fn socket(world: &World, target: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let mut request = format!("ws://{HOST_NAME}{target}").into_client_request().unwrap();
    request.headers_mut().insert("x-stagely-access", KEY.parse().unwrap());
    client_async(request, stream).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_in_both_directions() {
    let world = World::start().await;
    let mut socket = socket(&world, "/socket").await;
    let large = vec![7; 1024 * 1024];
    for message in [Message::text("hello"), Message::binary(large), Message::text("be quiet")] {
        socket.send(message.clone()).await.unwrap();
        let got = timeout(Duration::from_secs(30), socket.next()).await.unwrap().unwrap().unwrap();
        let quiet = Message::text("quiet");
        assert!(got == message || got == quiet, "{}", got.len());
    }
    assert!(world.core.preview_activity.last_use(&preview_id()).is_some());
    socket.close(None).await.unwrap();
}

/// Starts an app that takes over the connection of any request.
async fn upgrading_app(world: &World) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.listen_at(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(SWITCH.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        // Until the client has ended its direction.
        stream.read_to_end(&mut received).await.unwrap();
        received.reverse();
        stream.write_all(&received).await.unwrap();
        stream.shutdown().await.unwrap();
    });
}

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

fn upgrade_request(upgrade: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nhost: {HOST_NAME}\r\nx-stagely-access: {KEY}\r\nconnection: upgrade\r\n\
         upgrade: {upgrade}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_direction_may_end_before_the_other() {
    let world = World::start().await;
    upgrading_app(&world).await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(upgrade_request("websocket").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"abcdef").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "fedcba");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_protocol_takes_a_connection_over() {
    let world = World::start().await;
    upgrading_app(&world).await;
    let answer =
        world.send_raw(&upgrade_request("h2c").replace("upgrade\r\n", "upgrade, close\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}
