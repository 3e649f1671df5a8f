//! Fetches the commit of a job, and says in the log what was fetched.

use std::path::Path;
use std::time::Instant;

use stagely_protocol::CloneContext;
use tokio_util::sync::CancellationToken;

use super::error::JobError;
use crate::git::{self, CloneError, FetchWait};
use crate::job_log::JobLog;

pub(super) async fn clone(
    context: &CloneContext,
    checkout: &Path,
    log: &JobLog,
    stop: &CancellationToken,
) -> Result<(), JobError> {
    let url = git::without_credentials(&context.repo_url);
    log.info(&format!("Cloning {url} at {}", context.commit_hash));
    let started = Instant::now();
    let log_wait = |wait: FetchWait| {
        let limit = humantime::format_duration(wait.limit());
        log.info(&match wait {
            FetchWait::Silence => format!("Waiting for the server, which may send nothing for {limit} at most"),
            FetchWait::LargeFiles(count) => format!(
                "Fetching files of Git LFS: {count}; their server may send nothing for {limit} at most"
            ),
        });
    };
    let request = context.clone().into();
    let fetched = git::fetch_commit_and_report(request, checkout, log_wait, stop).await;
    let fetched = fetched.map_err(CloneError::or_ended_server)?;
    let submodules = match fetched.submodules {
        0 => String::new(),
        1 => " with 1 submodule".to_owned(),
        count => format!(" with {count} submodules"),
    };
    let (kib, seconds) = (fetched.bytes.div_ceil(1024), started.elapsed().as_secs_f64());
    let large_files = match fetched.large_files {
        0 => String::new(),
        1 => " and 1 file of Git LFS".to_owned(),
        count => format!(" and {count} files of Git LFS"),
    };
    log.info(&format!("Cloned{submodules}{large_files}: {kib} KiB in {seconds:.1}s"));
    for path in &fetched.without_address {
        log.warn(&format!("the submodule `{path}` is not in .gitmodules: its folder is empty"));
    }
    for git::UnappliedFilter { filter, path } in &fetched.unapplied_filters {
        log.warn(&format!(
            "the filter `{filter}` of .gitattributes is not applied: `{path}` is as it is in Git"
        ));
    }
    Ok(())
}
