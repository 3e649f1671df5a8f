//! Asks the provider for a machine.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::Effects;
use crate::core::state::{Event, LaunchRefusal};
use crate::ids::MachineId;
use crate::provider::{LaunchError, LaunchRequest};

/// How often an unclear answer is asked about again, and how long to wait before.
const UNCLEAR_TRIES: u32 = 5;
const UNCLEAR_WAIT: Duration = Duration::from_secs(1);

impl Effects {
    /// Launches `machine` and says what came of it.
    pub(super) async fn launch(&self, machine: MachineId) -> Event {
        match self.try_launch(machine).await {
            Ok(()) => {
                info!(%machine, "launched");
                Event::MachineLaunched { machine }
            }
            Err(refusal) => {
                warn!(%machine, ?refusal, "not launched");
                Event::LaunchRefused { machine, refusal }
            }
        }
    }

    async fn try_launch(&self, machine: MachineId) -> Result<(), LaunchRefusal> {
        let provider = self.provider.as_ref().ok_or_else(|| {
            LaunchRefusal::Permanent("no provider is configured (builders.provider)".to_owned())
        })?;
        let request = self
            .launch_request(machine)
            .await
            .map_err(|error| LaunchRefusal::NoCapacity(format!("{error:#}")))?;
        let mut last = String::new();
        for attempt in 1..=UNCLEAR_TRIES {
            match provider.launch(&request).await {
                Ok(()) => return Ok(()),
                Err(LaunchError::NoCapacity(message)) => {
                    return Err(LaunchRefusal::NoCapacity(message));
                }
                Err(LaunchError::Permanent(message)) => {
                    return Err(LaunchRefusal::Permanent(message));
                }
                Err(LaunchError::Unclear(message)) => last = message,
            }
            tokio::time::sleep(UNCLEAR_WAIT * attempt).await;
        }
        Err(LaunchRefusal::Unclear(last))
    }

    async fn launch_request(&self, machine: MachineId) -> anyhow::Result<LaunchRequest> {
        let (arch, size) = {
            let records = self.records.read();
            let record = records.machines.get(&machine).context("the machine has no record")?;
            (record.arch, record.size)
        };
        let secrets = self.secrets.clone();
        let token = spawn_blocking(move || secrets.add_machine_token(machine)).await??;
        Ok(LaunchRequest { machine, arch, size, agent: self.config.agent_config(machine, token) })
    }
}
