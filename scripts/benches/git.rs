//! Generated repositories, and repositories on this machine.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use stagely_test_support::git::{GitServer, Repository, git};
use tempfile::TempDir;

use crate::text::Output;

/// Generates a repository with a history that `server` serves as `name`; returns its newest commit.
pub(crate) fn big_repository(server: &GitServer, name: &str, size: Size) -> anyhow::Result<String> {
    let path = server.folder().join(name);
    fs::create_dir_all(&path)?;
    git(&path, &["init", "--quiet", "--bare", "--initial-branch=main"]);
    git(&path, &["config", "uploadpack.allowReachableSHA1InWant", "true"]);
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
    git(&path, &["gc", "--quiet"]);
    Ok(git(&path, &["rev-parse", "HEAD"]))
}

/// The size of a generated repository.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) files: usize,
    pub(crate) commits: usize,
    pub(crate) lines_of_file: usize,
}

impl Size {
    /// The input of `git fast-import`: all files in the first commit, and a few changes in each further one.
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

/// Commits a `stagely.yaml` with that many builds, and its Dockerfile.
pub(crate) fn commit_builds(repository: &Repository, builds: usize) {
    let build = |number| format!("  b{number}: {{ context: . }}\n");
    let manifest = format!("builds:\n{}", (0..builds).map(build).collect::<String>());
    let dockerfile = "FROM scratch\nCOPY stagely.yaml /\n";
    repository.commit(&[("stagely.yaml", manifest.as_str()), ("Dockerfile", dockerfile)]);
}

/// A repository on this machine.
pub(crate) fn local_repository(files: &[(&str, &str)]) -> anyhow::Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(folder.path().join("service"));
    repository.commit(files);
    Ok((folder, repository.path))
}
