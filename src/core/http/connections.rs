//! How many connections are open at the same time, in all and from one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tracing::{debug, warn};

/// The most open connections. Each takes 10 to 100 KB.
const CONNECTIONS_MAX: usize = 4_096;

/// The open files that core needs beside connections: databases, children, requests to other servers.
const OTHER_FILES: usize = 128;

/// The delay before a further attempt if a connection cannot be accepted, for example because no file can be opened.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    all: Arc<Semaphore>,
    each_max: usize,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The right to one connection.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    address: IpAddr,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _one_of_all: OwnedSemaphorePermit,
}

impl ConnectionLimits {
    /// As many connections as this process may open files, which is raised to what the system allows.
    pub(super) fn of_this_process() -> Self {
        let files = raised_file_limit();
        Self::new(files.saturating_sub(OTHER_FILES).clamp(16, CONNECTIONS_MAX))
    }

    fn new(max: usize) -> Self {
        let all = Arc::new(Semaphore::new(max));
        Self { all, each_max: (max / 4).max(1), by_address: Arc::default() }
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
            let one_of_all = Arc::clone(&self.all).acquire_owned().await;
            let one_of_all = one_of_all.map_err(io::Error::other)?;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_of_one_connection(&error) => continue,
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_DELAY).await;
                    continue;
                }
            };
            if let Some(permit) = self.admit(client_address(peer.ip()), one_of_all) {
                return Ok((stream, permit));
            }
            debug!(%peer, "too many connections from one address");
        }
    }

    /// A proxy on this host has the connections of everybody, so only the common limit counts for loopback.
    fn admit(&self, address: IpAddr, one_of_all: OwnedSemaphorePermit) -> Option<ConnectionPermit> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_default();
        if *count >= self.each_max && !address.is_loopback() {
            return None;
        }
        *count += 1;
        let by_address = Arc::clone(&self.by_address);
        Some(ConnectionPermit { address, by_address, _one_of_all: one_of_all })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
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
mod tests {
    use super::*;

    fn admitted(limits: &ConnectionLimits, address: &str) -> Option<ConnectionPermit> {
        let one_of_all = Arc::clone(&limits.all).try_acquire_owned().ok()?;
        limits.admit(address.parse().unwrap(), one_of_all)
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
        let local: Vec<_> = (0..12).map(|_| admitted(&limits, "127.0.0.1").unwrap()).collect();
        assert!(admitted(&limits, "127.0.0.1").is_none(), "16 are open");
        drop((open, local));
        assert_eq!(limits.all.available_permits(), 16);
        assert!(limits.by_address.lock().unwrap().is_empty());
    }
}
