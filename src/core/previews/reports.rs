//! What the agents reported last about the services of previews. Kept in memory: an agent repeats it in each session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stagely_protocol::{EndpointAddress, ServiceState};
use stagely_state::ids::{MachineId, PreviewId};

/// The last report of each preview, and where it listens. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct PreviewReports(Arc<Mutex<Reports>>);

#[derive(Debug, Default)]
struct Reports {
    last: BTreeMap<PreviewId, PreviewReport>,
    addresses: BTreeMap<PreviewId, (MachineId, Vec<EndpointAddress>)>,
}

/// The state of a preview's services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewReport {
    pub machine: MachineId,
    pub generation: u64,
    pub services: Vec<ServiceState>,
    pub disk_free_bytes: Option<u64>,
    /// Sentences for people.
    pub messages: Vec<String>,
}

impl PreviewReports {
    /// Replaces the report of `preview`. Returns the former one.
    pub fn set(&self, preview: PreviewId, report: PreviewReport) -> Option<PreviewReport> {
        self.lock().last.insert(preview, report)
    }

    /// The last report of `preview`, if it came from `machine`.
    pub fn of(&self, preview: PreviewId, machine: MachineId) -> Option<PreviewReport> {
        self.lock().last.get(&preview).filter(|report| report.machine == machine).cloned()
    }

    /// Notes where the endpoints of `preview` listen on `machine`.
    pub fn set_addresses(
        &self,
        preview: PreviewId,
        machine: MachineId,
        addresses: Vec<EndpointAddress>,
    ) {
        self.lock().addresses.insert(preview, (machine, addresses));
    }

    /// Where the endpoints of `preview` listen on `machine`, if it is there.
    pub fn addresses(&self, preview: PreviewId, machine: MachineId) -> Vec<EndpointAddress> {
        let reports = self.lock();
        let found = reports.addresses.get(&preview).filter(|(other, _)| *other == machine);
        found.map(|(_, addresses)| addresses.clone()).unwrap_or_default()
    }

    /// Forgets the reports of previews for which `is_known` returns false.
    pub fn retain(&self, is_known: impl Fn(PreviewId) -> bool) {
        let mut reports = self.lock();
        reports.last.retain(|preview, _| is_known(*preview));
        reports.addresses.retain(|preview, _| is_known(*preview));
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
