//! The `[core]` table.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

/// The `[core]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CoreConfig {
    /// The address to listen on. Put a TLS proxy in front of any other than loopback. Default:
    /// `127.0.0.1:7780`.
    pub listen: SocketAddr,
    /// The URL at which agents and people reach core. Default: `http://` and `listen`.
    pub public_url: Option<Url>,
    /// The folder of the databases, the key of stored secrets and the first admin token. Default:
    /// `/var/lib/stagely-core`.
    pub data_dir: PathBuf,
    /// The least free space on the file system of `data_dir`, in mebibytes. With less, new runs are
    /// refused; below half of it, logs are cut and runs are not planned either. Default: 512.
    pub disk_free_min_mib: u64,
    /// Whether pages of runs and jobs, and their logs, can be read without a token. Their addresses cannot
    /// be guessed, and are posted in comments. Default: true.
    pub open_logs: bool,
    /// The time limit of a shutdown. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub shutdown_limit: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7780)),
            public_url: None,
            data_dir: PathBuf::from("/var/lib/stagely-core"),
            disk_free_min_mib: 512,
            open_logs: true,
            shutdown_limit: Duration::from_secs(10),
        }
    }
}

impl CoreConfig {
    /// The URL at which agents and people reach core.
    pub fn url(&self) -> Url {
        self.public_url.clone().unwrap_or_else(|| {
            format!("http://{}", self.listen).parse().expect("a socket address makes a URL")
        })
    }
}
