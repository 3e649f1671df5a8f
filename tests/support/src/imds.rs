//! A fake of EC2's instance metadata service, version 2, with its notices for spot machines.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use crate::wait::eventually;

/// The answers of the service, and its requests so far.
#[derive(Default)]
pub struct Script {
    /// The answer at `spot/instance-action`.
    pub action: Option<String>,
    /// The answer at `events/recommendations/rebalance`.
    pub rebalance: Option<String>,
    /// Every response is 500.
    pub is_broken: bool,
    /// The life of tokens, if it is not the requested one.
    pub token_seconds: Option<u64>,
    pub tokens: HashSet<String>,
    /// The method, path and status of every request.
    pub asked: Vec<String>,
}

/// A service on loopback. It ends with the value.
pub struct Imds {
    script: Arc<Mutex<Script>>,
    pub url: Url,
    _task: AbortOnDropHandle<()>,
}

impl Imds {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        Self { script, url, _task: AbortOnDropHandle::new(task) }
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// The number of requests with this method, path and status.
    pub fn count(&self, request: &str) -> usize {
        self.script().asked.iter().filter(|asked| *asked == request).count()
    }

    /// Waits until `check` is true.
    pub async fn shows(&self, check: impl Fn(&Self) -> bool) {
        eventually("the metadata service has had the requests", async || check(self).then_some(()))
            .await;
    }
}

async fn serve(mut socket: TcpStream, script: Arc<Mutex<Script>>) {
    let (reader, mut writer) = socket.split();
    let mut lines = BufReader::new(reader).lines();
    let first = lines.next_line().await.unwrap().unwrap_or_default();
    let mut headers = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let header =
        |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let request = first.rsplit_once(' ').unwrap_or_default().0;
    let (status, body) = {
        let mut script = script.lock().unwrap();
        let (status, body) = script.answer(request, &header);
        script.asked.push(format!("{request} {status}"));
        (status, body)
    };
    let life = header("x-aws-ec2-metadata-token-ttl-seconds");
    let life = script.lock().unwrap().token_seconds.map(|life| life.to_string()).or(life);
    let life = life.map(|life| format!("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {life}\r\n"));
    let response = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n{body}",
        body.len(),
        life.unwrap_or_default(),
    );
    // The client may have closed the connection.
    let _ = writer.write_all(response.as_bytes()).await;
}

impl Script {
    fn answer(&mut self, request: &str, header: &impl Fn(&str) -> Option<String>) -> (u16, String) {
        if self.is_broken {
            return (500, String::new());
        }
        if request == "PUT /latest/api/token" {
            if header("x-aws-ec2-metadata-token-ttl-seconds").is_none() {
                return (400, String::new());
            }
            let token = format!("token-{}==", self.asked.len());
            self.tokens.insert(token.clone());
            return (200, token);
        }
        let is_known =
            header("x-aws-ec2-metadata-token").is_some_and(|token| self.tokens.contains(&token));
        if !is_known {
            return (401, String::new());
        }
        let body = match request {
            "GET /latest/meta-data/spot/instance-action" => self.action.clone(),
            "GET /latest/meta-data/events/recommendations/rebalance" => self.rebalance.clone(),
            _ => None,
        };
        body.map_or((404, "<html>Not Found</html>".to_owned()), |body| (200, body))
    }
}
