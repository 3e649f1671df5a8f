//! Finds out whether files of `reset_when` that were deployed before were edited: a deployment deletes the data then.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use secrecy::SecretString;
use stagely_agent::git::{self, FetchRequest};
use stagely_manifest::Globs;
use stagely_protocol::{CommitSha, ErrorChain, Submodules};
use stagely_state::ids::JobId;
use stagely_state::{JobKind, Run, Trigger};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::interrupted::{GIVEN_UP, InterruptedWork};
use super::plan::RepositoryReader;
use crate::core::records::Records;
use crate::core::store::Work;

/// The time limit of all comparisons of a deployment. Without them the data stays.
const COMPARISON_LIMIT: Duration = Duration::from_mins(1);

/// The commits that decide whether a deployment deletes the data.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    run: Run,
    head: CommitSha,
    /// The commits that the data may depend on.
    deployed: Vec<CommitSha>,
    patterns: Vec<String>,
}

impl Comparison {
    /// The comparison for `job`, which is about to be assigned: no other deployment changes the data meanwhile. `None` if
    /// there is nothing to decide.
    pub(super) fn of(records: &Records, job: JobId) -> Option<Self> {
        let job = records.jobs.get(&job)?;
        let JobKind::Deploy { deployment, .. } = &job.kind else { return None };
        if deployment.fresh || deployment.reset_when.is_empty() {
            return None;
        }
        let run = records.runs.get(&job.run).filter(|run| run.trigger.builds())?;
        let (head, preview) = (run.commit.clone()?, records.preview_of(run.environment)?);
        // A preview that only gets its images back keeps its data, as in a wake.
        let is_shown = preview.shown.as_ref().is_some_and(|shown| shown.commit == head);
        if run.trigger == Trigger::ImagesGone && is_shown {
            return None;
        }
        let deployed = preview.commits_of_data().filter(|commit| **commit != head);
        let deployed: Vec<CommitSha> = deployed.cloned().collect();
        let patterns = deployment.reset_when.clone();
        (!deployed.is_empty()).then(|| Self { run: run.clone(), head, deployed, patterns })
    }
}

/// Compares commits in their repository.
#[derive(Clone, Debug)]
pub(crate) struct EditedFiles {
    pub(crate) reader: Arc<RepositoryReader>,
    pub(crate) interrupted: InterruptedWork,
}

impl EditedFiles {
    /// Whether a file that was deployed before was edited or removed. The data stays if that cannot be found out.
    pub(super) async fn need_reset(
        &self,
        comparison: &Comparison,
        token: Option<SecretString>,
    ) -> bool {
        let run = comparison.run.id;
        match self.find(comparison, token).await {
            Ok(found) => {
                if let Some(path) = &found {
                    info!(%run, path, "a deployed file of reset_when was edited; the preview gets fresh data");
                }
                found.is_some()
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(%run, error, "the deployed commits cannot be compared; the preview keeps its data");
                false
            }
        }
    }

    /// The first file that was edited or removed.
    async fn find(
        &self,
        comparison: &Comparison,
        token: Option<SecretString>,
    ) -> anyhow::Result<Option<String>> {
        let Comparison { run, head, deployed, patterns } = comparison;
        let Some(globs) = Globs::of_known_paths(patterns) else { return Ok(None) };
        let bytes_max = self.reader.bytes_max().await;
        let request = |commit: &CommitSha| FetchRequest {
            url: run.repository.clone(),
            commit: commit.clone(),
            branch: run.branch.clone(),
            token: token.clone(),
            submodules: Submodules::None,
            large_files: false,
            bytes_max,
        };
        let find = async {
            let cancel = CancellationToken::new();
            let _stopped = cancel.clone().drop_guard();
            let checkout = self.reader.check_out(request(head), &cancel).await?;
            for commit in deployed {
                let changed =
                    git::changed_paths(request(commit), head, &checkout.objects(), &cancel).await;
                let changed = match changed {
                    Ok(changed) => changed,
                    // A force push may have removed it.
                    Err(error) => {
                        warn!(run = %run.id, %commit, error = %ErrorChain(&error), "a deployed commit cannot be compared");
                        continue;
                    }
                };
                let mut edited = changed.into_iter().filter(|changed| !changed.is_added);
                if let Some(edited) = edited.find(|changed| globs.is_match(&changed.path)) {
                    return Ok(Some(edited.path));
                }
            }
            anyhow::Ok(None)
        };
        // A comparison that takes too long is not under way any more, and a later kill is not counted for it.
        let find = Box::pin(timeout(COMPARISON_LIMIT, find));
        let found = self.interrupted.recorded(Work::Comparison(run.id), find).await;
        let too_slow = |_| anyhow!("it took longer than {COMPARISON_LIMIT:?}");
        found.ok_or_else(|| anyhow!(GIVEN_UP))?.map_err(too_slow)?
    }
}
