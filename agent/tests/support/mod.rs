//! What the tests of this crate share: repositories that are served over HTTP.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod imds;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use stagely_protocol::CommitSha;
use tempfile::TempDir;

/// The token that opens `/private/…`.
pub(crate) const TOKEN: &str = "clone-token-4711";

/// `git http-backend`. Ends with the value.
pub(crate) struct GitServer {
    process: Child,
    host: String,
    port: u16,
    folder: TempDir,
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl GitServer {
    /// One on loopback.
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1", "127.0.0.1")
    }

    /// One that listens at `address` and is reached as `host`.
    pub(crate) fn start_at(address: &str, host: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("requests")).unwrap();
        let mut process = Command::new("python3")
            .args(["-c", include_str!("git_http.py")])
            .arg(folder.path())
            .env("TOKEN", TOKEN)
            .env("ADDRESS", address)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        Self { process, host: host.to_owned(), port, folder }
    }

    /// The address of `repository` below `area` (see `git_http.py`).
    pub(crate) fn url(&self, area: &str, repository: &str) -> String {
        format!("http://{}:{}/{area}/{repository}", self.host, self.port)
    }

    /// Every request so far, one a line.
    pub(crate) fn requests(&self) -> String {
        fs::read_to_string(self.folder.path().join("requests")).unwrap()
    }

    /// Makes a repository. `bare_commits`: whether it serves any commit that is asked for.
    pub(crate) fn repository(&self, name: &str, bare_commits: bool) -> Repository {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        let repository = Repository { path };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.git(&["config", "user.name", "Tester"]);
        repository.git(&["config", "user.email", "tester@example.org"]);
        let value = if bare_commits { "true" } else { "false" };
        repository.git(&["config", "uploadpack.allowReachableSHA1InWant", value]);
        repository
    }
}

/// A repository with a working tree, served by a [`GitServer`] as `name/.git`.
pub(crate) struct Repository {
    pub(crate) path: PathBuf,
}

impl Repository {
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("git").arg("-C").arg(&self.path).args(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes files and commits them.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> CommitSha {
        for (name, text) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a commit"]);
        self.head()
    }

    pub(crate) fn head(&self) -> CommitSha {
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }
}
