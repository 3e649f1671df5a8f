//! TCP ports for servers that a test starts.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// The ports are below those of outgoing connections, so that no connection takes the port of a server that is
/// restarted.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Concurrent test processes have ids close to each other. Each begins at ports of its own.
const PORTS_OF_PROCESS: u32 = 16;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port without a listener, which no other call in this process returns.
pub fn free_port() -> u16 {
    let process = std::process::id() % (u32::from(COUNT) / PORTS_OF_PROCESS);
    let start = u16::try_from(process * PORTS_OF_PROCESS).unwrap();
    loop {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}
