//! A TCP proxy in front of a server, for connections that break and networks that are down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A proxy that ends with the value.
pub struct Proxy {
    pub address: SocketAddr,
    /// Notified when a client begins to upload a layer to a registry.
    upload: Arc<Notify>,
    /// Notified to break all connections and to stop listening for a while.
    cut: Arc<Notify>,
    /// The number of freezes. Connections that are older than the last one are frozen.
    freezes: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Forwards connections to `to`. After [`go_away`](Self::go_away) it listens again when `away` has passed.
    pub async fn start(to: String, away: Duration) -> Self {
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
                    () = route.forward(listener) => unreachable!("a route forwards for ever"),
                    () = cutting.notified() => {}
                }
                tokio::time::sleep(away).await;
                listener = TcpListener::bind(address).await.unwrap();
            }
        });
        Self { address, upload, cut, freezes, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits until a client uploads a layer to the registry behind the proxy.
    pub async fn is_pushed_to(&self) {
        self.upload.notified().await;
    }

    /// Breaks all connections and accepts none for a while.
    pub fn go_away(&self) {
        self.cut.notify_one();
    }

    /// Stops forwarding on the present connections, and leaves them open.
    pub fn freeze(&self) {
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
        // Dropped with this future, which closes all connections.
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let mut freeze = self.freezes.subscribe();
            let (to, upload) = (self.to.clone(), Arc::clone(&self.upload));
            connections.spawn(async move {
                // The client's connection ends if the server is down.
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
