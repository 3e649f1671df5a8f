//! Follows runs and logs over a WebSocket.

use std::time::Duration;

use reqwest::Method;
use stagely_state::ids::{JobId, PreviewId, RunId};
use tokio::time::{sleep, timeout};

use super::connection::{Connection, REQUEST_LIMIT, Socket};
use super::error::ClientError;
use crate::api::{
    FollowMessage, FollowedLine, JobStatus, JobView, LogRange, PreviewLogRange, PreviewView,
    RunView,
};

/// The wait before a closed connection is opened again, in case each one is closed at once.
const REDIAL_WAIT: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub enum LogEvent {
    /// Lines of one attempt, in order, each once.
    Lines { attempt: u32, lines: Vec<FollowedLine<'static>> },
    /// The job has ended, and every line was sent.
    End(JobStatus),
}

/// Follows one run, also across restarts of core.
#[derive(Debug)]
pub struct RunFollower {
    connection: Connection,
    id: RunId,
    socket: Option<Socket>,
    is_over: bool,
}

impl RunFollower {
    pub(super) const fn new(connection: Connection, id: RunId) -> Self {
        Self { connection, id, socket: None, is_over: false }
    }

    /// Returns the run, at first immediately and then after each change; `None` once the run has ended
    /// and its machines are terminated.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<RunView>, ClientError> {
        while !self.is_over {
            let socket = if let Some(socket) = &mut self.socket {
                socket
            } else {
                let path = format!("runs/{}/follow", self.id);
                self.socket.insert(self.connection.dial(&path).await?)
            };
            if let Some(run) = self.connection.next::<RunView>(socket).await? {
                self.is_over = run.status.is_final() && run.live_machines == 0;
                return Ok(Some(run));
            }
            self.socket = None;
            sleep(REDIAL_WAIT).await;
        }
        Ok(None)
    }
}

/// Follows one job's log, also across restarts of core. Returns each line once.
#[derive(Debug)]
pub struct LogFollower {
    connection: Connection,
    id: JobId,
    /// The next line to return.
    range: LogRange,
    socket: Option<Socket>,
    is_over: bool,
    /// Where to end before the end of the job.
    until: Option<Position>,
}

/// An attempt and the number of a line.
type Position = (Option<u32>, u64);

impl LogFollower {
    pub(super) const fn new(connection: Connection, id: JobId, range: LogRange) -> Self {
        Self { connection, id, range, socket: None, is_over: false, until: None }
    }

    /// Returns the next lines; `None` after the job's end. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<LogEvent>, ClientError> {
        while !self.is_over && self.until.is_none_or(|until| self.position() < until) {
            let socket = if let Some(socket) = &mut self.socket {
                socket
            } else {
                let path = format!("jobs/{}/logs/follow{}", self.id, query_of(&self.range));
                self.socket.insert(self.connection.dial(&path).await?)
            };
            match self.connection.next(socket).await? {
                Some(FollowMessage::Lines { attempt, first, lines }) => {
                    let from = first + lines.len() as u64;
                    self.range = LogRange { attempt: Some(attempt), from: Some(from) };
                    return Ok(Some(LogEvent::Lines { attempt, lines }));
                }
                Some(FollowMessage::End { status, attempt: newest }) => {
                    if let Some(ended) = self.range.attempt.filter(|attempt| *attempt < newest) {
                        // Later attempts follow, even if the job has ended: their lines were not sent.
                        self.range = LogRange { attempt: Some(ended + 1), from: None };
                        self.socket = None;
                    } else if status.is_final() {
                        self.is_over = true;
                        return Ok(Some(LogEvent::End(status)));
                    } else {
                        self.wait_before_redial().await;
                    }
                }
                None => self.wait_before_redial().await,
            }
        }
        Ok(None)
    }

    async fn wait_before_redial(&mut self) {
        self.socket = None;
        sleep(REDIAL_WAIT).await;
    }

    /// Makes [`next`](Self::next) end after the lines that core has now. The agent of a completed job
    /// still sends lines while it exports the cache.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn end_with_stored(&mut self) -> Result<(), ClientError> {
        let until = self.connection.waits.retry(async || {
            let stored_until = timeout(REQUEST_LIMIT, self.stored_until()).await;
            stored_until.map_err(|elapsed| self.connection.unreachable(elapsed))?
        });
        self.until = Some(until.await?);
        Ok(())
    }

    /// The position after the last stored line of the newest attempt.
    async fn stored_until(&self) -> Result<Position, ClientError> {
        let attempt =
            Some(self.connection.get::<JobView>(&format!("jobs/{}", self.id)).await?.attempt);
        let (at, from) = self.position();
        let mut next = if at == attempt { from } else { 0 };
        let range = LogRange { attempt, from: Some(next) };
        let path = format!("jobs/{}/logs", self.id);
        let mut text =
            self.connection.send(self.connection.request(Method::GET, &path).query(&range)).await?;
        while let Some(part) =
            text.chunk().await.map_err(|error| self.connection.unreachable(error))?
        {
            next += part.split(|byte| *byte == b'\n').skip(1).count() as u64;
        }
        Ok((attempt, next))
    }

    fn position(&self) -> Position {
        (self.range.attempt, self.range.from.unwrap_or(0))
    }
}

/// Follows the log of a preview's services, also across restarts of core and new deployments. Returns each line once.
#[derive(Debug)]
pub struct ServiceLogFollower {
    connection: Connection,
    id: PreviewId,
    /// The next lines to return.
    range: PreviewLogRange,
    /// Whether it ends with one deployment.
    is_one: bool,
    socket: Option<Socket>,
    is_over: bool,
}

impl ServiceLogFollower {
    pub(super) const fn new(connection: Connection, id: PreviewId, range: PreviewLogRange) -> Self {
        let is_one = range.generation.is_some();
        Self { connection, id, range, is_one, socket: None, is_over: false }
    }

    /// Returns the next lines; `None` after the end of the preview or of the wanted deployment. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn next(&mut self) -> Result<Option<Vec<FollowedLine<'static>>>, ClientError> {
        while !self.is_over {
            let socket = if let Some(socket) = &mut self.socket {
                socket
            } else {
                let query = query_of_services(&self.range);
                let path = format!("previews/{}/logs/follow{query}", self.id);
                self.socket.insert(self.connection.dial(&path).await?)
            };
            match self.connection.next(socket).await? {
                Some(FollowMessage::Lines { attempt, first, lines }) => {
                    let from = Some(first + lines.len() as u64);
                    let generation = Some(attempt.into());
                    self.range = PreviewLogRange { generation, from, tail: None };
                    return Ok(Some(lines));
                }
                Some(FollowMessage::End { .. }) => self.is_over = true,
                None => self.find_next().await?,
            }
        }
        Ok(None)
    }

    /// The connection has ended: finds out where to go on.
    async fn find_next(&mut self) -> Result<(), ClientError> {
        self.socket = None;
        sleep(REDIAL_WAIT).await;
        let path = format!("previews/{}", self.id);
        let get = || self.connection.get::<PreviewView>(&path);
        let preview = self.connection.waits.retry(get).await?;
        let followed = self.range.generation;
        if preview.generation > followed && followed.is_some() {
            self.is_over = self.is_one;
            self.range = PreviewLogRange { generation: preview.generation, ..Default::default() };
        }
        self.is_over |= !preview.status.is_open();
        Ok(())
    }
}

fn query_of_services(range: &PreviewLogRange) -> String {
    let parameters = [("generation", range.generation), ("from", range.from), ("tail", range.tail)];
    let parameters = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let query: Vec<String> = parameters.map(|(name, value)| format!("{name}={value}")).collect();
    if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
}

fn query_of(range: &LogRange) -> String {
    let from = range.from.map(|from| format!("from={from}"));
    let attempt = range.attempt.map(|attempt| format!("attempt={attempt}"));
    let parameters: Vec<String> = from.into_iter().chain(attempt).collect();
    if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) }
}
