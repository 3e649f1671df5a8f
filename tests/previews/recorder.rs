//! An app that notes every byte that it gets, and raw requests to it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::world::World;

/// A connection without a byte for so long has said all.
const SILENCE: Duration = Duration::from_secs(1);

/// What the app has got on all its connections. Each request is answered with `answer`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    /// Makes the app of `world` one that answers every request with `answer`.
    pub(crate) async fn start(world: &World, answer: &'static str) -> Self {
        let recorder = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.listen_at(listener.local_addr().unwrap());
        let accepted = recorder.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let recorder = accepted.clone();
                tokio::spawn(async move { recorder.serve(stream, answer).await });
            }
        });
        recorder
    }

    async fn serve(&self, mut stream: TcpStream, answer: &str) {
        while let Some(request) = read_request(&mut stream).await {
            self.0.lock().unwrap().push(request);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// All requests with their bodies, as they came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// The only request since the last call.
    pub(crate) fn take_only(&self) -> String {
        let mut requests = std::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

/// One request as an app reads it: core writes bodies with their length, or in chunks.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if let Some(length) = length {
        for _ in 0..length.parse::<usize>().unwrap() {
            request.push(stream.read_u8().await.ok()?);
        }
    } else if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        let begin = request.len();
        while !request[begin..].ends_with(b"0\r\n\r\n") {
            request.push(stream.read_u8().await.ok()?);
        }
    }
    Some(String::from_utf8_lossy(&request).into_owned())
}

/// Sends bytes, and returns what comes until core closes the connection or is silent.
pub(crate) async fn send(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    // Core may close the connection early.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(length @ 1..)) = timeout(SILENCE, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status of an answer; 0 if there is none.
pub(crate) fn status(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_default()
}
