//! Repositories, and a server for them: Git's own `http-backend`.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::text::Output;

/// Serves the repositories of a folder on loopback. Ends with the value.
pub(crate) struct GitServer {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl Drop for GitServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl GitServer {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/tests/support/git_http.py");
        let log = File::create(folder.path().join("requests"))?;
        let mut process = Command::new("python3")
            .arg(script)
            .arg(folder.path())
            .env("TOKEN", "unused")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let output = process.stdout.take().context("the server has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(Self { process, port: line.trim().parse()?, folder })
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/open/{name}", self.port)
    }

    /// A repository with `files` in one commit.
    pub(crate) fn repository(&self, name: &str, files: &[(String, String)]) -> anyhow::Result<()> {
        let path = self.folder.path().join(name);
        for (file, content) in files {
            let file = path.join(file);
            fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            fs::write(file, content)?;
        }
        git(&path, &["init", "--quiet", "--initial-branch=main"])?;
        git(&path, &["add", "--all"])?;
        let as_somebody = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
        git(&path, &[&as_somebody[..], &["commit", "--quiet", "--message=all"]].concat())?;
        fs::rename(path.join(".git"), self.folder.path().join(format!("{name}.git")))?;
        Ok(())
    }

    /// A repository with a history, and the commit at its head.
    pub(crate) fn big_repository(&self, name: &str, size: Size) -> anyhow::Result<String> {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path)?;
        git(&path, &["init", "--quiet", "--bare", "--initial-branch=main"])?;
        git(&path, &["config", "uploadpack.allowReachableSHA1InWant", "true"])?;
        let mut import = Command::new("git")
            .arg("-C")
            .arg(&path)
            .args(["fast-import", "--quiet"])
            .stdin(Stdio::piped())
            .spawn()?;
        let mut input = import.stdin.take().context("git has no input")?;
        input.write_all(&size.history())?;
        drop(input);
        ensure!(import.wait()?.success(), "git fast-import failed");
        git(&path, &["gc", "--quiet"])?;
        git(&path, &["rev-parse", "HEAD"])
    }
}

/// How big a made-up repository is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) files: usize,
    pub(crate) commits: usize,
    pub(crate) lines_of_file: usize,
}

impl Size {
    /// The input of `git fast-import`: all files in the first commit, a few changed in each other.
    fn history(self) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut stream = Vec::new();
        for commit in 0..self.commits {
            let time = 1_700_000_000 + commit * 3_600;
            stream.extend(format!("commit refs/heads/main\ncommitter bench <bench@localhost> {time} +0000\ndata 6\nchange\n").into_bytes());
            let changed: Vec<usize> = match commit {
                0 => (0..self.files).collect(),
                _ => (0..3).map(|_| rng.random_range(0..self.files)).collect(),
            };
            for file in changed {
                let content = self.content(&mut rng);
                let name = format!("src/part{}/module{}/file{file}.txt", file % 40, file % 400);
                let head = format!("M 100644 inline {name}\ndata {}\n", content.len());
                stream.extend(head.into_bytes());
                stream.extend(content.into_bytes());
                stream.push(b'\n');
            }
        }
        stream
    }

    fn content(self, rng: &mut StdRng) -> String {
        let lines = rng.random_range(self.lines_of_file / 2..self.lines_of_file * 2);
        let mut output = Output::new(StdRng::seed_from_u64(rng.random()));
        (0..lines).map(|_| output.line() + "\n").collect()
    }
}

/// Runs `git` in a folder and returns its output.
pub(crate) fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "git {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A `stagely.yaml` of so many builds, with the Dockerfile that it names.
pub(crate) fn manifest(builds: usize) -> Vec<(String, String)> {
    let build = |number| format!("  b{number}: {{ context: . }}\n");
    let manifest = format!("builds:\n{}", (0..builds).map(build).collect::<String>());
    vec![
        ("stagely.yaml".to_owned(), manifest),
        ("Dockerfile".to_owned(), "FROM scratch\nCOPY stagely.yaml /\n".to_owned()),
    ]
}

/// The folder of a repository that lies on this machine.
pub(crate) fn local_repository(files: &[(&str, &str)]) -> anyhow::Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("service");
    fs::create_dir(&path)?;
    for (name, content) in files {
        fs::write(path.join(name), content)?;
    }
    git(&path, &["init", "--quiet", "--initial-branch=main"])?;
    git(&path, &["add", "--all"])?;
    let as_somebody = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
    git(&path, &[&as_somebody[..], &["commit", "--quiet", "--message=all"]].concat())?;
    Ok((folder, path))
}
