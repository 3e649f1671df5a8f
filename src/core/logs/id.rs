//! What has a log.

use std::fmt;
use std::ops::Range;

use stagely_protocol::{WireId, service_log, service_log_id};
use stagely_state::Attempt;
use stagely_state::ids::{JobId, PreviewId};

use super::tables::LogKey;

/// Set in the second part of the keys of services' logs. No job has so many attempts.
const SERVICES_MARK: u32 = 1 << 31;

/// Names a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogId {
    Attempt(Attempt),
    /// The services of a preview, from the deployment of this number to the next one. The oldest lines are dropped
    /// beyond [`SERVICES_BYTES_MAX`](super::SERVICES_BYTES_MAX).
    Services {
        preview: PreviewId,
        generation: u64,
    },
}

impl LogId {
    /// The log that LOG names as `job_id`.
    pub(crate) fn from_wire(id: &WireId) -> Option<Self> {
        match service_log(id) {
            Some((preview, generation)) => {
                Some(Self::Services { preview: preview.parse().ok()?, generation })
            }
            None => id.as_str().parse().ok().map(Self::Attempt),
        }
    }

    /// The `job_id` of the log in LOG.
    pub(crate) fn wire(self) -> WireId {
        match self {
            Self::Attempt(attempt) => attempt.wire(),
            Self::Services { preview, generation } => {
                service_log_id(&preview.wire(), generation).expect("an id of core is short")
            }
        }
    }

    /// The number of the attempt or of the deployment.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Attempt(attempt) => attempt.number,
            Self::Services { generation, .. } => services_number(generation),
        }
    }

    /// The keys of the attempts of a job.
    pub(super) const fn of_job(job: JobId) -> Range<LogKey> {
        (job.bits(), 0)..(job.bits(), SERVICES_MARK)
    }

    /// The keys of the services of a preview before a deployment.
    pub(super) fn of_services_before(preview: PreviewId, generation: u64) -> Range<LogKey> {
        (preview.bits(), SERVICES_MARK)..Self::Services { preview, generation }.key()
    }

    /// The first two fields of its keys in the database.
    pub(super) fn key(self) -> LogKey {
        match self {
            Self::Attempt(attempt) => (attempt.job.bits(), attempt.number),
            Self::Services { preview, generation } => {
                (preview.bits(), SERVICES_MARK | services_number(generation))
            }
        }
    }

    /// The preview whose log has this key.
    pub(super) const fn preview_of((owner, number): LogKey) -> Option<PreviewId> {
        if number & SERVICES_MARK == 0 { None } else { Some(PreviewId::from_bits(owner)) }
    }
}

fn services_number(generation: u64) -> u32 {
    u32::try_from(generation).unwrap_or(u32::MAX) & !SERVICES_MARK
}

impl From<Attempt> for LogId {
    fn from(attempt: Attempt) -> Self {
        Self::Attempt(attempt)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wire().fmt(f)
    }
}
