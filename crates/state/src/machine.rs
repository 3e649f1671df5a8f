//! A machine: launched for one job and terminated after it, or registered by its owner.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use stagely_protocol::{Arch, SystemInfo};

use super::{
    Attempt, Bill, Fleet, IllegalTransition, Interruption, Placement, ProviderName, Timestamp,
};
use crate::ids::{JobId, MachineId, PreviewId};

/// The size of machine that a job needs. Each provider chooses its instance types.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum MachineSize {
    /// 2 processors.
    Small,
    /// 4 processors.
    #[default]
    Medium,
    /// 8 processors.
    Large,
    /// 16 processors.
    Xlarge,
}

impl MachineSize {
    /// The smallest first.
    pub const ALL: [Self; 4] = [Self::Small, Self::Medium, Self::Large, Self::Xlarge];
}

impl fmt::Display for MachineSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::Xlarge => "xlarge",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineKind {
    /// A provider launches it for one job and terminates it after the job.
    Launched,
    /// Its owner registered it. It is never terminated. The store and the API name it `static`.
    #[serde(rename = "static")]
    Registered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum MachineState {
    /// The provider has not confirmed the launch.
    Requested,
    /// The provider has launched it. Its agent has not connected.
    Booting,
    /// It has no job.
    Ready,
    /// It has an attempt of a job. The attempt may have ended already, while the agent has yet to stop it.
    Busy {
        #[serde(flatten, with = "stored_attempt")]
        attempt: Attempt,
    },
    Terminating,
    Terminated,
}

/// The attempt of a busy machine as it is stored.
mod stored_attempt {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::Attempt;
    use crate::ids::JobId;

    #[derive(Serialize, Deserialize)]
    struct StoredAttempt {
        job: JobId,
        attempt: u32,
    }

    pub(super) fn serialize<S: Serializer>(attempt: &Attempt, to: S) -> Result<S::Ok, S::Error> {
        StoredAttempt { job: attempt.job, attempt: attempt.number }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Attempt, D::Error> {
        let StoredAttempt { job, attempt: number } = StoredAttempt::deserialize(from)?;
        Ok(Attempt { job, number })
    }
}

impl MachineState {
    /// Returns the state that follows `event`. Nothing else moves a machine from state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(
        self,
        event: MachineEvent,
    ) -> Result<Self, IllegalTransition<Self, MachineEvent>> {
        use {MachineEvent as E, MachineState as S};
        Ok(match (self, event) {
            (S::Requested, E::Launched) => S::Booting,
            // An agent may connect before the provider has confirmed its machine.
            (S::Requested | S::Booting | S::Ready | S::Busy { .. }, E::Assigned { attempt })
            | (S::Ready | S::Busy { .. }, E::Released { stopping: Some(attempt) }) => {
                S::Busy { attempt }
            }
            (S::Ready | S::Busy { .. }, E::Released { stopping: None }) => S::Ready,
            // A terminated machine that a provider's list still has is terminated again.
            (
                S::Requested
                | S::Booting
                | S::Ready
                | S::Busy { .. }
                | S::Terminating
                | S::Terminated,
                E::TerminationRequested,
            ) => S::Terminating,
            (
                S::Requested
                | S::Booting
                | S::Ready
                | S::Busy { .. }
                | S::Terminating
                | S::Terminated,
                E::Gone,
            ) => S::Terminated,
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }

    pub const fn is_terminated(&self) -> bool {
        matches!(self, Self::Terminated)
    }
}

/// What moves a machine to its next state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    Launched,
    Assigned {
        attempt: Attempt,
    },
    /// It has no job any more. Its agent may still have to stop an attempt, or to end an export.
    Released {
        stopping: Option<Attempt>,
    },
    TerminationRequested,
    Gone,
}

/// An export of a layer cache that goes on after its job has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredExport", into = "StoredExport")]
pub struct CacheExport {
    /// The attempt that built the cache.
    pub attempt: Attempt,
    pub state: ExportState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportState {
    /// Core ends the export after `deadline`.
    Running { deadline: Timestamp },
    /// The agent was asked to stop the export, and has not confirmed it.
    Stopping { since: Timestamp },
}

impl ExportState {
    /// Returns the state that follows `event`; `None` after the end of the export. Nothing else moves an export from
    /// state to state.
    ///
    /// # Errors
    /// [`IllegalTransition`], holding both, when the event does not apply.
    pub fn transition(
        self,
        event: ExportEvent,
    ) -> Result<Option<Self>, IllegalTransition<Self, ExportEvent>> {
        use {ExportEvent as E, ExportState as S};
        Ok(match (self, event) {
            (S::Running { deadline }, E::MachineReclaimed { at }) => {
                Some(S::Running { deadline: deadline.min(at) })
            }
            (S::Running { .. }, E::StopRequested { at }) => Some(S::Stopping { since: at }),
            // It has no deadline any more that could move.
            (S::Stopping { since }, E::MachineReclaimed { .. }) => Some(S::Stopping { since }),
            (S::Running { .. } | S::Stopping { .. }, E::Ended | E::Abandoned) => None,
            (state, event) => return Err(IllegalTransition::new(state, event)),
        })
    }
}

/// What moves an export to its next state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportEvent {
    /// The cloud takes the machine back at this moment.
    MachineReclaimed { at: Timestamp },
    /// Core asks the agent to stop.
    StopRequested { at: Timestamp },
    /// The agent reports the end.
    Ended,
    /// Core does not wait for the end any more: the export has overrun, or its agent or machine is gone.
    Abandoned,
}

/// An export as it is stored. Of a stopping export, `until` is the moment of the request, and the stored machine has
/// the attempt in `stopping`.
#[derive(Serialize, Deserialize)]
struct StoredExport {
    attempt: Attempt,
    until: Timestamp,
}

impl From<StoredExport> for CacheExport {
    fn from(StoredExport { attempt, until }: StoredExport) -> Self {
        Self { attempt, state: ExportState::Running { deadline: until } }
    }
}

impl From<CacheExport> for StoredExport {
    fn from(CacheExport { attempt, state }: CacheExport) -> Self {
        let (ExportState::Running { deadline: until } | ExportState::Stopping { since: until }) =
            state;
        Self { attempt, until }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Machine {
    pub id: MachineId,
    pub kind: MachineKind,
    /// The name that the owner gave a registered machine; empty for a launched one.
    pub name: String,
    pub arch: Arch,
    pub size: MachineSize,
    #[serde(default)]
    pub fleet: Fleet,
    /// The provider of a launched machine.
    #[serde(default)]
    pub provider: ProviderName,
    /// Whether it is launched on demand, whatever the market of its fleet, because its job has no further attempt.
    #[serde(default)]
    pub on_demand: bool,
    /// `None` before the provider's answer.
    #[serde(default)]
    pub placement: Option<Placement>,
    #[serde(default)]
    pub interruption: Option<Interruption>,
    pub state: MachineState,
    /// Attempts that the agent named in its last HELLO although they are not its work, and has not stopped yet. The
    /// machine gets no further job before.
    pub stopping: BTreeSet<Attempt>,
    /// When core last asked the agent to stop the attempt that the machine was busy with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_requested_at: Option<Timestamp>,
    /// The export of a layer cache, beside other work. A launched machine is not terminated before it ends.
    pub exporting: Option<CacheExport>,
    /// The preview that it serves. It is not terminated before the preview sleeps or ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves: Option<PreviewId>,
    /// The preview that a launched machine served until it was to be terminated. The preview has not ended before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<PreviewId>,
    /// The job that a launched machine was requested for.
    pub requested_for: Option<JobId>,
    pub requested_at: Timestamp,
    /// It is terminated after this moment, whatever it does. `None` for a registered machine.
    pub lease_until: Option<Timestamp>,
    pub connected: bool,
    /// When the machine was requested, or its agent last connected or disconnected.
    pub contact_at: Timestamp,
    /// From the agent's HELLO.
    pub system_info: Option<SystemInfo>,
    pub terminated_at: Option<Timestamp>,
    /// `None` if it costs nothing, or its price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bill: Option<Bill>,
}

impl Serialize for Machine {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let stopping = self.exporting.filter(CacheExport::is_stopping);
        if let Some(export) = stopping {
            let mut stored = self.clone();
            stored.stopping.insert(export.attempt);
            return Self::serialize(&stored, to);
        }
        Self::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for Machine {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut machine = Self::deserialize(from)?;
        if let Some(CacheExport { attempt, state }) = &mut machine.exporting
            && let ExportState::Running { deadline: until } = *state
            && machine.stopping.remove(attempt)
        {
            *state = ExportState::Stopping { since: until };
        }
        Ok(machine)
    }
}

impl CacheExport {
    pub const fn is_stopping(&self) -> bool {
        matches!(self.state, ExportState::Stopping { .. })
    }
}

impl Machine {
    /// A machine that was just requested.
    pub const fn new(id: MachineId, kind: MachineKind, arch: Arch, now: Timestamp) -> Self {
        Self {
            id,
            kind,
            name: String::new(),
            arch,
            size: MachineSize::Medium,
            fleet: Fleet::Builder,
            provider: ProviderName::Local,
            on_demand: false,
            placement: None,
            interruption: None,
            state: MachineState::Requested,
            stopping: BTreeSet::new(),
            stop_requested_at: None,
            exporting: None,
            serves: None,
            served: None,
            requested_for: None,
            requested_at: now,
            lease_until: None,
            connected: false,
            contact_at: now,
            system_info: None,
            terminated_at: None,
            bill: None,
        }
    }
}
