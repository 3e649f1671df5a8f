//! EC2's instance metadata service, version 2, as far as spot notices go.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// What the service says, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    /// At `spot/instance-action`.
    pub(crate) action: Option<String>,
    /// At `events/recommendations/rebalance`.
    pub(crate) rebalance: Option<String>,
    /// Every question is answered with 500.
    pub(crate) is_broken: bool,
    /// How long a token is good for, as the service says.
    pub(crate) token_seconds: Option<u64>,
    /// The tokens that are good.
    pub(crate) tokens: HashSet<String>,
    /// Method, path and status of every question.
    pub(crate) asked: Vec<String>,
}

pub(crate) struct Imds {
    script: Arc<Mutex<Script>>,
    pub(crate) url: Url,
    _task: AbortOnDropHandle<()>,
}

impl Imds {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, Arc::clone(&shared)));
            }
        });
        Self { script, url, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// How often a question ended so.
    pub(crate) fn count(&self, asked: &str) -> usize {
        self.script().asked.iter().filter(|it| *it == asked).count()
    }

    /// Waits until `check` holds.
    pub(crate) async fn shows(&self, check: impl Fn(&Self) -> bool) {
        let wait = async {
            while !check(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let shown = tokio::time::timeout(Duration::from_mins(1), wait).await;
        assert!(shown.is_ok(), "{:?}", self.script().asked);
    }
}

async fn answer(mut socket: TcpStream, script: Arc<Mutex<Script>>) {
    let (reader, mut writer) = socket.split();
    let mut lines = BufReader::new(reader).lines();
    let first = lines.next_line().await.unwrap().unwrap_or_default();
    let mut headers = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let header = |name: &str| headers.iter().find(|it| it.0 == name).map(|it| it.1.clone());
    let question = first.rsplit_once(' ').unwrap_or_default().0;
    let (status, body) = {
        let mut script = script.lock().unwrap();
        let (status, body) = script.answer(question, &header);
        script.asked.push(format!("{question} {status}"));
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
    // Whoever has read enough may be gone.
    let _ = writer.write_all(response.as_bytes()).await;
}

impl Script {
    fn answer(
        &mut self,
        question: &str,
        header: &impl Fn(&str) -> Option<String>,
    ) -> (u16, String) {
        if self.is_broken {
            return (500, String::new());
        }
        if question == "PUT /latest/api/token" {
            if header("x-aws-ec2-metadata-token-ttl-seconds").is_none() {
                return (400, String::new());
            }
            let token = format!("token-{}==", self.asked.len());
            self.tokens.insert(token.clone());
            return (200, token);
        }
        let is_known =
            header("x-aws-ec2-metadata-token").is_some_and(|it| self.tokens.contains(&it));
        if !is_known {
            return (401, String::new());
        }
        let body = match question {
            "GET /latest/meta-data/spot/instance-action" => self.action.clone(),
            "GET /latest/meta-data/events/recommendations/rebalance" => self.rebalance.clone(),
            _ => None,
        };
        body.map_or((404, "<html>Not Found</html>".to_owned()), |body| (200, body))
    }
}
