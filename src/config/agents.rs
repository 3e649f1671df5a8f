//! The `[agents]` table.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use stagely_provider::{AgentEnvironment, CertificateAuthorities};

use super::error::ConfigError;

const AUTHORITIES: &str = "agents.certificate-authorities";

/// The most of that file that is read. All authorities of a system take 250 KiB.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

/// The `[agents]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentsConfig {
    /// The interval of heartbeats, in whole seconds. A session is closed after three missing heartbeats.
    /// Default: 15s.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// The time without contact after which a machine's job moves to another machine. Default: 2m.
    #[serde(with = "humantime_serde")]
    pub reconnect_grace: Duration,
    /// The time without contact after which an agent stops its work and exits. Default: 15m.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// The time between SIGTERM and SIGKILL for an agent's child processes. Default: 5s.
    #[serde(with = "humantime_serde")]
    pub kill_grace: Duration,
    /// A folder with `stagely-linux-amd64` and `stagely-linux-arm64` of a release, for stock images with
    /// another processor than core's. Default: none.
    pub binaries: Option<PathBuf>,
    /// Variables of the agents of launched machines, and of the Docker engines there: proxies, and where certificate
    /// authorities are. Default: none.
    pub environment: AgentEnvironment,
    /// A file with certificates (PEM) of authorities that launched machines trust besides those of their system.
    /// Default: none.
    pub certificate_authorities: Option<PathBuf>,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_secs(15),
            reconnect_grace: Duration::from_mins(2),
            give_up_after: Duration::from_mins(15),
            kill_grace: Duration::from_secs(5),
            binaries: None,
            environment: AgentEnvironment::default(),
            certificate_authorities: None,
        }
    }
}

impl AgentsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let heartbeat = self.heartbeat_interval;
        if heartbeat.as_secs() == 0 || heartbeat.subsec_nanos() != 0 {
            return Err(ConfigError::Value {
                key: "agents.heartbeat-interval",
                problem: "must be whole seconds, at least 1s".to_owned(),
            });
        }
        if self.certificate_authorities.is_some() && self.environment.has_certificates() {
            let problem = "cannot be used together with SSL_CERT_FILE or SSL_CERT_DIR of \
                           agents.environment, which replace the authorities of a machine";
            return Err(ConfigError::Value { key: AUTHORITIES, problem: problem.to_owned() });
        }
        Ok(self.environment.check()?)
    }

    /// Reads the file of `certificate-authorities`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file: it cannot be read, or holds no certificates.
    pub fn read_authorities(&self) -> Result<CertificateAuthorities, ConfigError> {
        let Some(path) = &self.certificate_authorities else {
            return Ok(CertificateAuthorities::default());
        };
        let mut content = Vec::new();
        let read = File::open(path)
            .and_then(|file| file.take(AUTHORITIES_BYTES_MAX).read_to_end(&mut content));
        read.map_err(|source| ConfigError::SecretFile {
            key: AUTHORITIES,
            path: path.clone(),
            source,
        })?;
        CertificateAuthorities::parse(&String::from_utf8_lossy(&content)).map_err(|error| {
            let problem = format!("{} {error}", path.display());
            ConfigError::Value { key: AUTHORITIES, problem }
        })
    }
}
