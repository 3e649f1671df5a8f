//! The registry that images go to, and a way to take it away for a while.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run these tests through scripts/test"))
}

/// The registry and who may push.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) url: String,
    pub(crate) username: String,
    pub(crate) password_file: String,
}

impl Registry {
    pub(crate) fn real() -> Self {
        Self {
            url: setting("STAGELY_REGISTRY"),
            username: setting("STAGELY_REGISTRY_USERNAME"),
            password_file: setting("STAGELY_REGISTRY_PASSWORD_FILE"),
        }
    }

    pub(crate) fn password(&self) -> String {
        fs::read_to_string(&self.password_file).unwrap().trim().to_owned()
    }

    /// What `docker buildx imagetools inspect --raw` says about `image`; logs in below `folder`.
    pub(crate) fn manifest(&self, image: &str, folder: &Path) -> Value {
        let docker = |arguments: &[&str]| {
            let mut command = Command::new("docker");
            command.args(arguments).env("DOCKER_CONFIG", folder).stdin(Stdio::piped());
            command.stdout(Stdio::piped()).spawn().unwrap()
        };
        let user = ["login", "--username", &self.username, "--password-stdin", &self.url];
        let mut login = docker(&user);
        std::io::Write::write_all(&mut login.stdin.take().unwrap(), self.password().as_bytes())
            .unwrap();
        assert!(login.wait().unwrap().success());
        let inspect = docker(&["buildx", "imagetools", "inspect", "--raw", image]);
        let output = inspect.wait_with_output().unwrap();
        assert!(output.status.success(), "{image} is not there");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Stands in front of a registry and can go away as a whole: no listener, no connection.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// Notified when a client begins to upload a layer.
    upload: Arc<Notify>,
    /// Notified to go away.
    cut: Arc<Notify>,
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
        let (uploading, cutting) = (Arc::clone(&upload), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            let mut listener = listener;
            loop {
                tokio::select! {
                    () = forward(listener, &to, &uploading) => unreachable!("it forwards for ever"),
                    () = cutting.notified() => {}
                }
                tokio::time::sleep(away).await;
                listener = TcpListener::bind(address).await.unwrap();
            }
        });
        Self { address, upload, cut, task }
    }

    /// Waits until a client uploads.
    pub(crate) async fn is_pushed_to(&self) {
        self.upload.notified().await;
    }

    pub(crate) fn go_away(&self) {
        self.cut.notify_one();
    }
}

async fn forward(listener: TcpListener, to: &str, upload: &Arc<Notify>) {
    // Dropped with this future, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(to).await.unwrap();
        connections.spawn(pass(client, server, Arc::clone(upload)));
    }
}

async fn pass(client: TcpStream, server: TcpStream, upload: Arc<Notify>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = async { tokio::io::copy(&mut from_server, &mut to_client).await };
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
    let _ = tokio::join!(down, up);
}
