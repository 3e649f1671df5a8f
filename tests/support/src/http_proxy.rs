//! A forward proxy with a login.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::processes::ChildProcess;

/// The password of the proxy's user.
pub const PASSWORD: &str = "proxy-pass-1147";

/// A proxy on loopback (see `http_proxy.py`). It ends with the value.
pub struct HttpProxy {
    _process: ChildProcess,
    port: u16,
    folder: TempDir,
}

impl HttpProxy {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("requests")).unwrap();
        let mut process = Command::new("python3")
            .args(["-c", include_str!("http_proxy.py")])
            .env("LOGIN", format!("proxy-user:{PASSWORD}"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        Self { _process: ChildProcess::new(process), port, folder }
    }

    /// The address with this password.
    pub fn url(&self, password: &str) -> String {
        format!("http://proxy-user:{password}@127.0.0.1:{}", self.port)
    }

    /// All requests with the right password so far, one a line: method and target.
    pub fn requests(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("requests")).unwrap()
    }
}
