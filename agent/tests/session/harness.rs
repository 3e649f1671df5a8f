//! A listener in place of core, and the agent that connects to it.

use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use stagely_agent::endpoints::Endpoints;
use stagely_agent::spot::SpotWatch;
use stagely_agent::{AgentExit, run, run_with};
use stagely_protocol::agent_config::AgentConfig;
use stagely_protocol::{AgentMessage, Hello, Interrupted, Status, Stream};
use stagely_test_support::wait::eventually;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};
use tokio_util::sync::CancellationToken;

pub(crate) const WAIT_LIMIT: Duration = Duration::from_mins(1);

/// A listener in place of core, and the agent that connects to it.
pub(crate) struct Setup {
    pub(crate) listener: TcpListener,
    pub(crate) work_dir: TempDir,
    pub(crate) stop: CancellationToken,
    pub(crate) agent: JoinHandle<AgentExit>,
}

pub(crate) struct Peer(pub(crate) WebSocketStream<TcpStream>);

pub(crate) fn config(port: u16, work_dir: &Path) -> AgentConfig {
    let config = serde_json::json!({
        "core_url": format!("http://127.0.0.1:{port}"),
        "agent_id": "vm_test",
        "token": "machine-token",
        "work_dir": work_dir,
        "docker_host": "unix:///nowhere/docker.sock",
        "give_up_after": "20s",
        "kill_grace": "2s",
    });
    serde_json::from_value(config).unwrap()
}

pub(crate) fn spawn_watching(
    config: AgentConfig,
    spot: SpotWatch,
    stop: &CancellationToken,
) -> JoinHandle<AgentExit> {
    let stop = stop.clone();
    tokio::spawn(async move { run_with(config, spot, Endpoints::default(), stop).await.unwrap() })
}

pub(crate) fn spawn(config: AgentConfig, stop: &CancellationToken) -> JoinHandle<AgentExit> {
    let stop = stop.clone();
    tokio::spawn(async move { run(config, stop).await.unwrap() })
}

impl Setup {
    pub(crate) async fn start() -> Self {
        Self::start_with(|config| config).await
    }

    pub(crate) async fn start_with(change: impl Fn(AgentConfig) -> AgentConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (work_dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let port = listener.local_addr().unwrap().port();
        let agent = spawn(change(config(port, work_dir.path())), &stop);
        Self { listener, work_dir, stop, agent }
    }

    /// Waits for the agent and its HELLO.
    pub(crate) async fn hello(&self) -> (Peer, Hello) {
        let (socket, _) = timeout(WAIT_LIMIT, self.listener.accept()).await.unwrap().unwrap();
        let mut peer = Peer(accept_async(socket).await.unwrap());
        let text = peer.text().await;
        let AgentMessage::Hello(hello) = AgentMessage::parse(&text).unwrap() else {
            panic!("{text}")
        };
        (peer, hello)
    }

    /// Opens a session, and resumes each of `jobs` at a line.
    pub(crate) async fn session(&self, jobs: &[(&str, u64)]) -> Peer {
        let (mut peer, _) = self.hello().await;
        let jobs: Vec<_> = jobs
            .iter()
            .map(|(job, line)| serde_json::json!({"job_id": job, "next_line": line}))
            .collect();
        let ack = serde_json::json!({"type": "HELLO_ACK", "heartbeat_interval": 1, "jobs": jobs});
        peer.send(&ack.to_string()).await;
        peer
    }

    pub(crate) async fn exit(self) -> (AgentExit, TempDir) {
        (timeout(WAIT_LIMIT, self.agent).await.unwrap().unwrap(), self.work_dir)
    }

    /// Waits until `check` holds for the work folder.
    pub(crate) async fn disk_shows(&self, check: impl Fn(&Path) -> bool) {
        let what = "the work folder is as expected";
        eventually(what, async || check(self.work_dir.path()).then_some(())).await;
    }

    pub(crate) fn is_spooled(&self, job: &str) -> bool {
        self.work_dir.path().join("spool").join(job).exists()
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn text(&mut self) -> String {
        loop {
            let message = timeout(WAIT_LIMIT, self.0.next()).await.unwrap().unwrap().unwrap();
            if let Message::Text(text) = message {
                return text.to_string();
            }
        }
    }

    /// The next message other than HEARTBEAT. The limit is for the whole wait, since heartbeats never end.
    pub(crate) async fn message(&mut self) -> String {
        let wait = async {
            loop {
                let text = self.text().await;
                if !text.contains("\"HEARTBEAT\"") {
                    return text;
                }
            }
        };
        timeout(WAIT_LIMIT, wait).await.expect("the agent sends no message but heartbeats")
    }

    pub(crate) async fn status(&mut self) -> Status {
        let text = self.message().await;
        match AgentMessage::parse(&text).unwrap() {
            AgentMessage::Status(status) => status,
            _ => panic!("{text}"),
        }
    }

    pub(crate) async fn interrupted(&mut self) -> Interrupted {
        let text = self.message().await;
        match AgentMessage::parse(&text).unwrap() {
            AgentMessage::Interrupted(interrupted) => interrupted,
            _ => panic!("{text}"),
        }
    }

    /// Reads LOG messages until a line holds `mark`, and returns the lines from `first` on.
    pub(crate) async fn lines_until(&mut self, first: u64, mark: &str) -> Vec<String> {
        // Each LOG restarts the limit for one message.
        let lines = timeout(2 * WAIT_LIMIT, self.read_lines_until(first, mark)).await;
        lines.unwrap_or_else(|_| panic!("no line holds `{mark}`"))
    }

    pub(crate) async fn read_lines_until(&mut self, first: u64, mark: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let text = self.message().await;
            let AgentMessage::Log(log) = AgentMessage::parse(&text).unwrap() else {
                panic!("{text}")
            };
            assert_eq!(log.first, Some(first + lines.len() as u64));
            assert!(log.lines.iter().all(|line| line.t > 0 && line.stream == Stream::Stdout));
            lines.extend(log.lines.iter().map(|line| line.data.to_string()));
            if lines.iter().any(|line| line.contains(mark)) {
                return lines;
            }
            assert!(!lines.iter().any(|line| line.contains("was not exported")), "{lines:?}");
            let count = usize::try_from(first).unwrap() + lines.len();
            self.acknowledge(log.job_id.as_str(), count).await;
        }
    }

    pub(crate) async fn acknowledge(&mut self, job: &str, lines: usize) {
        self.send(&format!(r#"{{"type":"LOG_ACK","job_id":"{job}","lines":{lines}}}"#)).await;
    }

    /// Checks that only heartbeats arrive for a while.
    pub(crate) async fn stays_silent(&mut self) {
        let message = timeout(Duration::from_millis(300), self.message()).await;
        assert!(message.is_err(), "{message:?}");
    }
}

pub(crate) fn build(job: &str, url: &str) -> String {
    serde_json::json!({
        "type": "BUILD",
        "job_id": job,
        "context": {
            "repo_url": url,
            "commit_hash": "0123456789abcdef0123456789abcdef01234567",
            "clone_token": "very-secret-token",
        },
        "build_config": {
            "context_path": ".",
            "target_image": "127.0.0.1:5000/p/e:b",
            "platform": "linux/amd64",
        },
    })
    .to_string()
}

/// A build that fails at once, because nothing listens at the address. Its log would show the token if it were not
/// masked.
pub(crate) fn failing_build(job: &str) -> String {
    build(job, "http://127.0.0.1:1/very-secret-token")
}
