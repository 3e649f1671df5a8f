//! Git repositories, and a server for them: Git's own `http-backend`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stagely_protocol::CommitSha;
use tempfile::TempDir;

use crate::processes::ChildProcess;

/// The token that opens `/private/…`.
pub const TOKEN: &str = "clone-token-4711";

/// A server of the repositories in a folder. It ends with the value.
pub struct GitServer {
    _process: ChildProcess,
    scheme: &'static str,
    host: String,
    port: u16,
    folder: TempDir,
}

impl GitServer {
    /// Starts a server on loopback.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1", "127.0.0.1")
    }

    /// Starts a server that listens at `address` and has the name `host` in its URLs.
    pub fn start_at(address: &str, host: &str) -> Self {
        Self::start_with(address, host, None)
    }

    /// Starts a server on loopback with TLS and the name `host` in its URLs. `certificate` is a file with its key and its
    /// certificate.
    pub fn start_with_tls(host: &str, certificate: &Path) -> Self {
        Self::start_with("127.0.0.1", host, Some(certificate))
    }

    fn start_with(address: &str, host: &str, certificate: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("requests")).unwrap();
        let mut process = Command::new("python3")
            .args(["-c", include_str!("git_http.py")])
            .arg(folder.path())
            .env("TOKEN", TOKEN)
            .env("ADDRESS", address)
            .env("CERTIFICATE", certificate.unwrap_or(Path::new("")))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap();
        let scheme = if certificate.is_some() { "https" } else { "http" };
        Self { _process: ChildProcess::new(process), scheme, host: host.to_owned(), port, folder }
    }

    /// The URL of `repository` below `area` (see `git_http.py`).
    pub fn url(&self, area: &str, repository: &str) -> String {
        format!("{}://{}:{}/{area}/{repository}", self.scheme, self.host, self.port)
    }

    /// All requests so far, one a line.
    pub fn requests(&self) -> String {
        fs::read_to_string(self.folder.path().join("requests")).unwrap()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a repository, which is served as `name/.git`. `bare_commits`: whether clients may fetch any commit by
    /// its id.
    pub fn repository(&self, name: &str, bare_commits: bool) -> Repository {
        let repository = Repository::create(self.folder.path().join(name));
        let value = if bare_commits { "true" } else { "false" };
        repository.git(&["config", "uploadpack.allowReachableSHA1InWant", value]);
        repository
    }
}

/// Runs `git` in `folder`. Returns its output.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository with a working tree.
pub struct Repository {
    pub path: PathBuf,
}

impl Repository {
    /// Creates an empty repository in a new folder.
    pub fn create(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let repository = Self { path };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.git(&["config", "user.name", "Tester"]);
        repository.git(&["config", "user.email", "tester@example.org"]);
        repository
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        git(&self.path, arguments)
    }

    /// Writes files into the working tree.
    pub fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// Writes files and commits all changes of the working tree.
    pub fn commit(&self, files: &[(&str, &str)]) -> CommitSha {
        self.write(files);
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a commit"]);
        self.head()
    }

    pub fn head(&self) -> CommitSha {
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }
}
