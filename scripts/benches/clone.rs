//! Fetching one commit: by the agent, compared with `git fetch --depth 1`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use stagely_agent::git::{BYTES_MAX, FetchRequest, fetch_commit};
use stagely_protocol::Submodules;
use stagely_test_support::git::{GitServer, git};
use tokio_util::sync::CancellationToken;

use crate::git::{Size, big_repository};
use crate::report::{Pairs, Row, print};

const BIG: Size = Size { files: 6_000, commits: 500, lines_of_file: 60 };
const SMALL: Size = Size { files: 20, commits: 20, lines_of_file: 30 };
const PAIRS_BIG: usize = 11;
const PAIRS_SMALL: usize = 31;

pub(crate) async fn measure() -> anyhow::Result<()> {
    let server = GitServer::start();
    let mut rows = Vec::new();
    for (name, size, pairs) in [("big", BIG, PAIRS_BIG), ("small", SMALL, PAIRS_SMALL)] {
        let commit = big_repository(&server, name, size)?;
        let url = server.url("open", name);
        let mut measured = Pairs::default();
        // The first pair warms the page cache.
        for pair in 0..=pairs {
            let folder = tempfile::tempdir_in(repositories_folder())?;
            let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
            // The order alternates, because the second finds warm caches.
            let (stagely, raw) = if pair.is_multiple_of(2) {
                let stagely = by_stagely(&url, &commit, &ours).await?;
                (stagely, by_git(&url, &commit, &theirs)?)
            } else {
                let raw = by_git(&url, &commit, &theirs)?;
                (by_stagely(&url, &commit, &ours).await?, raw)
            };
            if pair > 0 {
                eprintln!(
                    "clone, {} files, pair {pair}: {stagely:.3} s, raw {raw:.3} s",
                    size.files
                );
                measured.0.push((stagely, raw));
            }
        }
        rows.push(row(size, &measured));
    }
    print(rows);
    Ok(())
}

/// A folder in memory, if there is one: otherwise writing thousands of files would measure the disk.
fn repositories_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn row(size: Size, pairs: &Pairs) -> Row {
    let (stagely, raw) = pairs.medians();
    let ratio = pairs.ratio();
    Row {
        what: format!(
            "clone: {} files, {} commits, one commit checked out (raw: git fetch --depth 1)",
            size.files, size.commits
        ),
        stagely: format!("{stagely:.3} s"),
        raw: format!("{raw:.3} s"),
        ratio: format!("{ratio:.2}"),
        aim: "≤ 1.15".to_owned(),
        is_met: Some(ratio <= 1.15),
    }
}

async fn by_stagely(url: &str, commit: &str, folder: &Path) -> anyhow::Result<f64> {
    let request = FetchRequest {
        url: url.to_owned(),
        commit: commit.parse()?,
        branch: Some("main".to_owned()),
        token: None,
        submodules: Submodules::All,
        large_files: true,
        bytes_max: BYTES_MAX,
    };
    let begin = Instant::now();
    fetch_commit(request, folder, &CancellationToken::new()).await?;
    Ok(begin.elapsed().as_secs_f64())
}

fn by_git(url: &str, commit: &str, folder: &Path) -> anyhow::Result<f64> {
    let begin = Instant::now();
    fs::create_dir(folder)?;
    git(folder, &["init", "--quiet"]);
    git(folder, &["fetch", "--quiet", "--depth=1", url, commit]);
    git(folder, &["checkout", "--quiet", "--detach", "FETCH_HEAD"]);
    Ok(begin.elapsed().as_secs_f64())
}
