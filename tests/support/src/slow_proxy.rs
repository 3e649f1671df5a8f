//! A TCP proxy in front of a server, for networks that are slow and stall.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

const PIECE_BYTES: usize = 64 * 1024;

/// Pieces on their way in one direction of a connection: a network of this delay that carries some 100 MB/s has a few
/// megabytes on its way.
const PIECES_MAX: usize = 128;

/// A proxy that ends with the value.
pub struct SlowProxy {
    pub address: SocketAddr,
    /// Nothing arrives before.
    stalled_until: watch::Sender<Instant>,
    _task: AbortOnDropHandle<()>,
}

impl SlowProxy {
    /// Forwards connections to `to`. Each byte arrives after `delay`, in both directions.
    pub async fn start(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stalled_until = watch::Sender::new(Instant::now());
        let stalls = stalled_until.subscribe();
        let task = tokio::spawn(async move {
            // Dropped with the task, which closes all connections.
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let stalls = stalls.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(to).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(
                        relay(from_client, to_server, delay, stalls.clone()),
                        relay(from_server, to_client, delay, stalls),
                    );
                });
            }
        });
        Self { address, stalled_until, _task: AbortOnDropHandle::new(task) }
    }

    /// For so long nothing arrives on any connection.
    pub fn stall(&self, time: Duration) {
        self.stalled_until.send_replace(Instant::now() + time);
    }
}

/// Forwards one direction to its end.
async fn relay(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    stalls: watch::Receiver<Instant>,
) {
    let (sent, mut waiting) = mpsc::channel(PIECES_MAX);
    let read = async move {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let length = from.read(&mut piece).await.unwrap_or(0);
            piece.truncate(length);
            if sent.send((Instant::now() + delay, piece)).await.is_err() || length == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = waiting.recv().await {
            sleep_until(due).await;
            while Instant::now() < *stalls.borrow() {
                let until = *stalls.borrow();
                sleep_until(until).await;
            }
            if piece.is_empty() || to.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
