//! Waits until a change of a preview is done.

use std::time::Duration;

use tokio::time::sleep;

use crate::api::PreviewView;
use crate::client::{Client, ClientError};

/// The time between two looks at a preview.
const POLL: Duration = Duration::from_millis(500);

/// Waits until the preview is as `is_wanted` says, or stays as it is. Returns the preview.
pub(super) async fn wait_for(
    client: &Client,
    mut preview: PreviewView,
    is_wanted: impl Fn(&PreviewView) -> bool,
) -> Result<PreviewView, ClientError> {
    while !is_wanted(&preview) && changes(&preview) {
        sleep(POLL).await;
        preview = client.preview(preview.id).await?;
    }
    Ok(preview)
}

/// Whether the preview changes without a further request.
pub(super) const fn changes(preview: &PreviewView) -> bool {
    preview.status.is_passing() || preview.deployment.is_some() || preview.rebuild_id.is_some()
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::{JobId, RunId};

    use super::super::find::tests::preview;
    use super::*;
    use crate::api::{DeploymentView, PreviewStatus};

    #[test]
    fn a_preview_changes_while_it_is_deployed_or_its_deployment_waits() {
        let mut preview = preview("app", "pr-7");
        assert!(!changes(&preview));
        preview.status = PreviewStatus::Waking;
        assert!(changes(&preview));
        // The deployment could not wake it.
        preview.status = PreviewStatus::Asleep;
        assert!(!changes(&preview));
        // It waits for a machine.
        let job_id = JobId::from_bits(1);
        preview.deployment =
            Some(DeploymentView { job_id, run_id: None, commit: None, waits: None });
        assert!(changes(&preview));
        // Its images are built again first.
        preview.deployment = None;
        preview.rebuild_id = Some(RunId::from_bits(1));
        assert!(changes(&preview));
    }
}
