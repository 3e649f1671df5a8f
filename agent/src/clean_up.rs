//! Removes what the previews of an agent that is gone for good have left on the engine.

use std::sync::Arc;

use stagely_protocol::agent_config::AgentConfig;

use crate::endpoints::Endpoints;
use crate::preview::{PreviewSettings, Previews};
use crate::process::kill_leftovers;
use crate::session::lock;

/// Removes the containers, networks and volumes of all previews of the agent that had `config`, and their files.
///
/// # Errors
/// The agent still runs, or the engine does not remove them. Then their files stay, and it can be tried again.
pub async fn clean_up(config: AgentConfig) -> anyhow::Result<()> {
    let _lock = lock(&config.work_dir)?;
    // A `docker compose` that the agent has started could go on creating containers.
    kill_leftovers(&config.agent_id);
    let previews = PreviewSettings {
        machine: config.agent_id,
        work_dir: config.work_dir,
        docker_host: config.docker_host,
        grace: config.kill_grace,
        core: None,
        endpoints: Endpoints::default(),
    };
    Previews::new(previews, Arc::default()).remove_everything().await
}
