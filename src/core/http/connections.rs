//! How many connections are open at the same time, in all and from one address.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The most open connections. Each takes 10 to 100 KB.
const CONNECTIONS_MAX: usize = 4_096;

/// The open files that core needs beside connections: databases, children, requests to other servers.
const OTHER_FILES: usize = 128;

/// The delay before a further attempt if a connection cannot be accepted, for example because no file can be opened.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// The delay before a further connection is closed to make room.
const ROOM_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    all: Arc<Semaphore>,
    each_max: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    waiting: Arc<Mutex<WaitingConnections>>,
}

/// The right to one connection.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    activity: Activity,
    _share: AddressShare,
    _one_of_all: OwnedSemaphorePermit,
}

impl ConnectionPermit {
    pub(super) const fn activity(&self) -> &Activity {
        &self.activity
    }
}

/// One of the connections of an address.
#[derive(Debug)]
struct AddressShare {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl ConnectionLimits {
    /// As many connections as this process may open files, which is raised to what the system allows.
    pub(super) fn of_this_process() -> Self {
        let files = raised_file_limit();
        Self::new(files.saturating_sub(OTHER_FILES).clamp(16, CONNECTIONS_MAX))
    }

    fn new(max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max)),
            each_max: (max / 4).max(1),
            by_address: Arc::default(),
            waiting: Arc::default(),
        }
    }

    /// Accepts the next connection. Connections above the limit of their address are closed at once.
    ///
    /// # Errors
    /// Those of the listener that do not pass.
    pub(super) async fn accept(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, ConnectionPermit)> {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_DELAY).await;
                    continue;
                }
            };
            let Some(share) = self.admit(client_address(peer.ip())) else {
                debug!(%peer, "too many connections from one address");
                continue;
            };
            let one_of_all = self.room().await?;
            let activity = Activity::new(Arc::clone(&self.waiting));
            let permit = ConnectionPermit { activity, _share: share, _one_of_all: one_of_all };
            return Ok((stream, permit));
        }
    }

    /// Waits for room for one more connection. If there is none, the connections that have waited longest for a request
    /// are closed.
    async fn room(&self) -> io::Result<OwnedSemaphorePermit> {
        loop {
            if self.all.available_permits() == 0 {
                lock(&self.waiting).close_oldest();
            }
            let acquired = timeout(ROOM_DELAY, Arc::clone(&self.all).acquire_owned()).await;
            if let Ok(acquired) = acquired {
                return acquired.map_err(io::Error::other);
            }
        }
    }

    /// A proxy on this host has the connections of everybody, so only the common limit counts for loopback.
    fn admit(&self, address: IpAddr) -> Option<AddressShare> {
        let mut by_address = lock(&self.by_address);
        let count = by_address.entry(address).or_default();
        if *count >= self.each_max && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(AddressShare { address, by_address: Arc::clone(&self.by_address) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections that wait for the head of a request.
#[derive(Debug, Default)]
struct WaitingConnections {
    last: u64,
    /// In the order in which the waits began.
    by_age: BTreeMap<u64, CancellationToken>,
}

impl WaitingConnections {
    fn close_oldest(&mut self) {
        if let Some((_, close)) = self.by_age.pop_first() {
            close.cancel();
        }
    }
}

/// Whether a connection waits for a request or has one. A connection that waits may be closed.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    waiting: Arc<Mutex<WaitingConnections>>,
    /// The number of the present wait.
    wait: Arc<Mutex<Option<u64>>>,
    close: CancellationToken,
    first_request: CancellationToken,
}

impl Activity {
    fn new(waiting: Arc<Mutex<WaitingConnections>>) -> Self {
        let activity = Self {
            waiting,
            wait: Arc::default(),
            close: CancellationToken::new(),
            first_request: CancellationToken::new(),
        };
        activity.begin_wait();
        activity
    }

    fn begin_wait(&self) {
        if self.close.is_cancelled() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        waiting.last += 1;
        let number = waiting.last;
        waiting.by_age.insert(number, self.close.clone());
        *lock(&self.wait) = Some(number);
    }

    fn end_wait(&self) {
        if let Some(number) = lock(&self.wait).take() {
            lock(&self.waiting).by_age.remove(&number);
        }
    }

    /// The head of a request is complete.
    pub(super) fn begin_request(&self) -> OpenRequest {
        self.first_request.cancel();
        self.end_wait();
        OpenRequest(Some(self.clone()))
    }

    /// Returns when the connection must make room. Cancel safe.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Returns if no request has begun within `limit`. Cancel safe.
    pub(super) async fn no_request_within(&self, limit: Duration) {
        if timeout(limit, self.first_request.cancelled()).await.is_ok() {
            pending::<()>().await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.activity.close.cancel();
        self.activity.end_wait();
    }
}

/// A request whose response is not yet sent. Afterwards the connection waits for the next one.
#[derive(Debug)]
pub(super) struct OpenRequest(Option<Activity>);

impl OpenRequest {
    /// The connection gets no further request.
    pub(super) fn forever(mut self) {
        self.0 = None;
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if let Some(activity) = self.0.take() {
            activity.begin_wait();
        }
    }
}

impl Drop for AddressShare {
    fn drop(&mut self) {
        let mut by_address = lock(&self.by_address);
        if let Entry::Occupied(mut count) = by_address.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The address, or network, that counts as one client: everybody with IPv6 has a network of 64 bits.
fn client_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

/// Whether only the connection that was to be accepted is lost.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused)
}

/// The number of files that this process may open.
fn raised_file_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return CONNECTIONS_MAX };
    let wanted = hard.min((CONNECTIONS_MAX + OTHER_FILES) as u64).max(soft);
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
impl Default for Activity {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(limits: &ConnectionLimits, address: &str) -> Option<AddressShare> {
        limits.admit(address.parse().unwrap())
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let client = |address: &str| client_address(address.parse().unwrap()).to_string();
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(client("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(client("::1"), "::1");
    }

    #[test]
    fn an_address_gets_a_quarter_and_loopback_all() {
        let limits = ConnectionLimits::new(16);
        let mut open: Vec<_> = (0..4).map(|_| admitted(&limits, "192.0.2.1").unwrap()).collect();
        assert!(admitted(&limits, "192.0.2.1").is_none());
        assert!(admitted(&limits, "192.0.2.2").is_some());
        open.pop();
        open.push(admitted(&limits, "192.0.2.1").unwrap());
        let local: Vec<_> = (0..16).map(|_| admitted(&limits, "127.0.0.1").unwrap()).collect();
        drop((open, local));
        assert!(limits.by_address.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn connections_without_a_request_make_room_for_others() {
        let limits = ConnectionLimits::new(3);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async || {
            let client = TcpStream::connect(address).await.unwrap();
            (client, limits.accept(&listener).await.unwrap().1)
        };
        let is_closed = |permit: &ConnectionPermit| permit.activity.close.is_cancelled();
        let (_client, busy) = accept().await;
        let request = busy.activity().begin_request();
        let (_client, first) = accept().await;
        let (_client, second) = accept().await;

        let _client = TcpStream::connect(address).await.unwrap();
        let accepting = limits.accept(&listener);
        let closing = async {
            first.activity().closed().await;
            drop(first);
        };
        let (accepted, ()) = tokio::join!(accepting, closing);

        assert!(accepted.is_ok() && !is_closed(&second) && !is_closed(&busy));
        // After its response a connection waits like the others, as the youngest.
        drop(request);
        assert_eq!(lock(&limits.waiting).by_age.len(), 3);
        lock(&limits.waiting).close_oldest();
        assert!(is_closed(&second) && !is_closed(&busy));
        drop((accepted, second, busy));
        assert!(lock(&limits.waiting).by_age.is_empty());
        assert_eq!(limits.all.available_permits(), 3);
    }
}
