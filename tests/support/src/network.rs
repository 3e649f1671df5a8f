//! A network of one machine that drops what others begin to send to it: only what it begins itself passes.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A network namespace with a link to the host's. Its processes and its link end with the value.
pub struct IsolatedNetwork {
    name: String,
    /// The host's address on the link.
    pub host: Ipv4Addr,
    /// The machine's address on the link.
    pub machine: Ipv4Addr,
}

impl Default for IsolatedNetwork {
    fn default() -> Self {
        assert!(geteuid().is_root(), "only root may make networks");
        let name = format!("test{:x}", rand::random_range(0x1000_0000..u32::MAX));
        // Four addresses of 10.213.0.0/16.
        let [high, low] = (rand::random_range(0..=0x3fff_u16) << 2).to_be_bytes();
        let (host, machine) =
            (Ipv4Addr::new(10, 213, high, low | 1), Ipv4Addr::new(10, 213, high, low | 2));
        let network = Self { name, host, machine };
        network.set_up();
        network
    }
}

impl IsolatedNetwork {
    pub fn new() -> Self {
        Self::default()
    }

    fn set_up(&self) {
        let Self { name, host, machine } = self;
        let (outside, inside) = self.links();
        for line in [
            format!("ip netns add {name}"),
            format!("ip link add {outside} type veth peer name {inside}"),
            format!("ip link set {inside} netns {name}"),
            format!("ip address add {host}/30 dev {outside}"),
            format!("ip link set {outside} up"),
            format!("ip -n {name} address add {machine}/30 dev {inside}"),
            format!("ip -n {name} link set {inside} up"),
            format!("ip -n {name} link set lo up"),
            format!("ip netns exec {name} iptables -A INPUT -i lo -j ACCEPT"),
            format!(
                "ip netns exec {name} iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
            ),
            format!("ip netns exec {name} iptables -P INPUT DROP"),
        ] {
            run(&line);
        }
    }

    /// The names of both ends of the link.
    fn links(&self) -> (String, String) {
        (format!("{}o", self.name), format!("{}i", self.name))
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command for `program` inside.
    pub fn command(&self, program: &str) -> Command {
        // `ip netns exec` would hide the control groups, which engines need.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// Listens inside. The listener may be used outside.
    pub fn listen(&self, address: Ipv4Addr, port: u16) -> StdTcpListener {
        let namespace = File::open(self.path()).unwrap();
        // A namespace is that of a thread, and of the sockets that it makes.
        let listen = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            StdTcpListener::bind((address, port)).unwrap()
        };
        thread::spawn(listen).join().unwrap()
    }

    /// Makes a server at `port` of the host's loopback one of the machine's loopback. It stands for a server elsewhere.
    pub fn forward(&self, port: u16) -> AbortOnDropHandle<()> {
        let listener = self.listen(Ipv4Addr::LOCALHOST, port);
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        }))
    }
}

impl Drop for IsolatedNetwork {
    fn drop(&mut self) {
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap();
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|pid| pid.parse().ok())
        {
            // It may have just ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        run(&format!("ip link delete {}", self.links().0));
        run(&format!("ip netns delete {}", self.name));
    }
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}
