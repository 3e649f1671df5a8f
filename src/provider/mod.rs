//! Starts, ends and lists machines. A provider's quirks stay in its own file.

mod local;

use async_trait::async_trait;
use stagely_agent::config::AgentConfig;
use stagely_agent::protocol::Arch;
use thiserror::Error;

use crate::core::state::MachineSize;
use crate::ids::MachineId;

pub use local::LocalProvider;

/// A machine to be started.
#[derive(Debug)]
pub struct LaunchRequest {
    /// Our name for it, chosen before the provider is asked.
    pub machine: MachineId,
    /// Its processor.
    pub arch: Arch,
    /// How big it is to be.
    pub size: MachineSize,
    /// What its agent is told.
    pub agent: AgentConfig,
}

/// A launch that came to nothing.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Nothing free at the moment.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// The provider will refuse again until its owner changes something.
    #[error("{0}")]
    Permanent(String),
    /// No clear answer: the machine may or may not have been started. Asking again is harmless.
    #[error("{0}")]
    Unclear(String),
}

/// The provider did not do what it was asked. Asking again is harmless.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ProviderError(pub String);

/// Where machines come from.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Starts a machine. A machine that is there already is success, and is not started again.
    async fn launch(&self, request: &LaunchRequest) -> Result<(), LaunchError>;

    /// Ends a machine and all that runs on it. A machine that is gone is success.
    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError>;

    /// Every machine of this core that is there, also those of an earlier process of this core.
    async fn list(&self) -> Result<Vec<MachineId>, ProviderError>;
}
