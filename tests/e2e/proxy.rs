//! Stands in front of a server and can fail as networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Passes connections on.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// Notified when a client begins to upload a layer to a registry.
    upload: Arc<Notify>,
    /// Notified to go away.
    cut: Arc<Notify>,
    /// Counts the freezes; connections that are older than the last one are frozen.
    freezes: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Passes connections on to `to`. Gone, it comes back after `away`.
    pub(crate) async fn start(to: String, away: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (upload, cut) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let freezes = watch::Sender::new(0);
        let route = Route { to, upload: Arc::clone(&upload), freezes: freezes.clone() };
        let cutting = Arc::clone(&cut);
        let task = tokio::spawn(async move {
            let mut listener = listener;
            loop {
                tokio::select! {
                    () = route.forward(listener) => unreachable!("it forwards for ever"),
                    () = cutting.notified() => {}
                }
                tokio::time::sleep(away).await;
                listener = TcpListener::bind(address).await.unwrap();
            }
        });
        Self { address, upload, cut, freezes, task }
    }

    /// Waits until a client uploads.
    pub(crate) async fn is_pushed_to(&self) {
        self.upload.notified().await;
    }

    /// Breaks every connection and takes no other for a while.
    pub(crate) fn go_away(&self) {
        self.cut.notify_one();
    }

    /// Passes nothing on any more on the connections that there are, and leaves them open.
    pub(crate) fn freeze(&self) {
        self.freezes.send_modify(|freezes| *freezes += 1);
    }
}

struct Route {
    to: String,
    upload: Arc<Notify>,
    freezes: watch::Sender<u64>,
}

impl Route {
    async fn forward(&self, listener: TcpListener) {
        // Dropped with this future, and every connection with it.
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let mut freeze = self.freezes.subscribe();
            let (to, upload) = (self.to.clone(), Arc::clone(&self.upload));
            connections.spawn(async move {
                // A server that is down is a client that is hung up on.
                let Ok(server) = TcpStream::connect(to).await else { return };
                let (mut client, mut server) = (client, server);
                tokio::select! {
                    _ = pass(&mut client, &mut server, &upload) => {}
                    _ = freeze.changed() => std::future::pending().await,
                }
            });
        }
    }
}

async fn pass(
    client: &mut TcpStream,
    server: &mut TcpStream,
    upload: &Notify,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    let up = async {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut bytes).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            if bytes[..count].starts_with(b"PATCH ") || bytes[..count].starts_with(b"PUT ") {
                upload.notify_one();
            }
            to_server.write_all(&bytes[..count]).await?;
        }
    };
    tokio::try_join!(down, up)?;
    Ok(())
}
