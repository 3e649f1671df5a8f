//! Reads a job's log while it grows.

use futures_util::StreamExt as _;
use stagely::api::{FollowMessage, FollowedLine, JobStatus};
use stagely_test_support::core_process::Socket;
use stagely_test_support::wait::LIMIT;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// A viewer of a job's log.
pub struct Follower(pub Socket);

impl Follower {
    /// The next message; `None` when core has closed the connection.
    pub async fn next(&mut self) -> Option<FollowMessage<'static>> {
        loop {
            match timeout(LIMIT, self.0.next()).await.unwrap() {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Reads until `is_last` is true of a line. Returns all lines so far.
    pub async fn lines_until(&mut self, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        while !all.iter().any(|line: &String| line.contains(text)) {
            match self.next().await {
                Some(FollowMessage::Lines { lines, .. }) => all.extend(texts(lines)),
                other => panic!("no {text:?} in {all:#?}, but {other:?}"),
            }
        }
        all
    }

    /// Reads to the end. Returns all lines and the job's end.
    pub async fn rest(&mut self) -> (Vec<String>, JobStatus) {
        let mut all = Vec::new();
        loop {
            match self.next().await {
                Some(FollowMessage::Lines { lines, .. }) => all.extend(texts(lines)),
                Some(FollowMessage::End { status, .. }) => {
                    assert!(self.next().await.is_none(), "a message after the end");
                    return (all, status);
                }
                None => panic!("no end after {all:#?}"),
            }
        }
    }
}

fn texts(lines: Vec<FollowedLine<'static>>) -> impl Iterator<Item = String> {
    lines.into_iter().map(|line| line.data.into_owned())
}
