//! Compares each provider's list with the records at intervals, and acts only on positive evidence. Each provider has
//! a task of its own, so that one that hangs delays no other.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use stagely_protocol::ErrorChain;
use stagely_provider::{LaunchError, Listing, Provider, ProviderError, Providers, TERMINATE_LIMIT};
use stagely_state::comparison::{Comparison, Listed, ListedState, is_lost};
use stagely_state::ids::MachineId;
use stagely_state::{Event, Fleet, Machine, MachineKind, ProviderName, Timestamp};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::clock::now;
use super::history::History;
use super::orchestrator::Events;
use super::records::{Records, SharedRecords};
use super::store::StoreError;

pub(super) use stagely_state::comparison::Verdict;

/// The wait before the first sweep after an agent has disconnected, but at most half of the provider's interval.
const RECHECK_DELAY: Duration = Duration::from_secs(5);

/// How long machines without an agent are looked for at short intervals after their launch.
const LAUNCH_WATCH: Duration = Duration::from_mins(1);

/// The time between two requests for a provider's offers.
const DESCRIBE_INTERVAL: Duration = Duration::from_hours(1);

/// The time limit of a provider's list, with all pages and its own retries, or of its offers.
const LIST_LIMIT: Duration = Duration::from_mins(1);

/// The most machines of a provider that are ended at once. After a long downtime of core there may be hundreds.
const ENDED_AT_ONCE: usize = 8;

/// The sweeps of all providers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Sweeps(Arc<[Arc<Sweep>]>);

impl Sweeps {
    pub(super) fn new(
        providers: &Providers,
        records: &SharedRecords,
        history: &History,
        events: &Events,
    ) -> Self {
        let started_at = now();
        let sweeps = providers.iter().map(|(name, provider)| {
            Arc::new(Sweep {
                name,
                provider: Arc::clone(provider),
                records: records.clone(),
                history: history.clone(),
                events: events.clone(),
                started_at,
                memory: Mutex::default(),
                list: tokio::sync::Mutex::default(),
            })
        });
        Self(sweeps.collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Sweep>> {
        self.0.iter()
    }

    /// Sweeps all providers concurrently. A `dry_run` only compares.
    pub(super) async fn sweep_all(
        &self,
        dry_run: bool,
    ) -> Vec<(ProviderName, Result<ListComparison, SweepError>)> {
        let comparisons = self.iter().map(async |sweep| {
            let compared = if dry_run { sweep.compare().await } else { sweep.sweep().await };
            (sweep.name, compared)
        });
        join_all(comparisons).await
    }
}

/// A provider's list cannot be compared with the records.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("core cannot read the machines that have ended")]
    Store(#[from] StoreError),
}

/// A provider's list, compared with the records.
#[derive(Debug)]
pub(super) struct ListComparison {
    /// The number of live machines in the provider's list.
    pub(super) listed: usize,
    /// The number of live machines that the provider has launched, by the records.
    pub(super) recorded: usize,
    pub(super) findings: Vec<Finding>,
    asked_at: Timestamp,
}

/// A difference between the list and the records.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) machine: MachineId,
    pub(super) verdict: Verdict,
    pub(super) outcome: EndOutcome,
}

/// The outcome of a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EndOutcome {
    /// No action was taken: it is too early, or this is a dry run.
    NoAction,
    /// The action was taken.
    Done,
    /// The action failed. The next sweep tries again.
    Failed(String),
}

/// The state between two sweeps.
#[derive(Debug, Default)]
struct Memory {
    /// The missing machines, with the time of the request for the first list without them.
    missing: BTreeMap<MachineId, Timestamp>,
    /// Machines that need a person's attention, and are in the log already.
    logged: BTreeSet<MachineId>,
}

/// A provider's list.
#[derive(Clone)]
struct List {
    /// The time of the request.
    begun: Instant,
    /// The same time in the form of records.
    asked_at: Timestamp,
    machines: Arc<[Listed]>,
}

pub(super) struct Sweep {
    name: ProviderName,
    provider: Arc<dyn Provider>,
    records: SharedRecords,
    history: History,
    events: Events,
    started_at: Timestamp,
    memory: Mutex<Memory>,
    /// The last list. Locked during a request for a new one.
    list: tokio::sync::Mutex<Option<List>>,
}

impl fmt::Debug for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweep").field("provider", &self.name).finish_non_exhaustive()
    }
}

impl Sweep {
    /// Sweeps until `stop` fires. The next core repeats what was under way.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let both = async { tokio::join!(self.sweep_repeatedly(), self.describe_repeatedly()) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = both => {}
        }
    }

    async fn sweep_repeatedly(&self) {
        let mut changes = self.records.changes();
        loop {
            let asked_at = now();
            if let Err(error) = self.sweep().await {
                warn!(provider = %self.name, error = %ErrorChain(&error), "the provider's list cannot be compared with the records");
            }
            self.wait(asked_at, &mut changes).await;
        }
    }

    /// Waits until the next sweep is due.
    async fn wait(&self, last: Timestamp, changes: &mut watch::Receiver<u64>) {
        let is_slow = self.recheck_delay() == RECHECK_DELAY;
        loop {
            // Also if the clock is set meanwhile.
            let interval = self.provider.listing().interval;
            let wait = self.next_sweep_at(last).since(now()).min(interval);
            tokio::select! {
                () = sleep(wait) => return,
                // An agent may have disconnected.
                Ok(()) = changes.changed(), if is_slow => {}
            }
        }
    }

    /// The time of the sweep after one at `last`: after the provider's interval, or earlier if a machine without an
    /// agent may be gone.
    fn next_sweep_at(&self, last: Timestamp) -> Timestamp {
        let Listing { interval, grace } = self.provider.listing();
        let (soonest, regular) = (last.after(self.recheck_delay()), last.after(interval));
        let records = self.records.read();
        let absent = records.live_machines().filter(|machine| {
            // A booting machine was launched too recently to be lost.
            is_lost(machine, self.name) && machine.system_info.is_some()
        });
        // A provider may end a machine seconds after its launch, and say why.
        let mut booting = records
            .live_machines()
            .filter(|machine| is_lost(machine, self.name) && machine.system_info.is_none());
        if booting.any(|machine| machine.contact_at.after(LAUNCH_WATCH) > last) {
            return soonest;
        }
        let news = absent.flat_map(|machine| {
            let in_list_at = machine.contact_at.max(self.started_at).after(grace);
            [machine.contact_at.after(RECHECK_DELAY), Timestamp(in_list_at.0.saturating_add(1))]
        });
        let news = news.filter(|at| *at > last).min();
        news.map_or(regular, |at| at.clamp(soonest, regular))
    }

    fn recheck_delay(&self) -> Duration {
        RECHECK_DELAY.min(self.provider.listing().interval / 2)
    }

    async fn describe_repeatedly(&self) {
        loop {
            let is_described = self.describe().await;
            let wait =
                if is_described { DESCRIBE_INTERVAL } else { self.provider.listing().interval };
            sleep(wait).await;
        }
    }

    /// Requests the arches that the provider offers. Returns false if that fails.
    async fn describe(&self) -> bool {
        let offers = match within(LIST_LIMIT, self.provider.describe()).await {
            Ok(offers) => offers,
            Err(error) => {
                warn!(provider = %self.name, error = %ErrorChain(&error), "the provider's instance types and images cannot be read");
                return false;
            }
        };
        for offer in &offers {
            if let Some(problem) = &offer.problem {
                let (fleet, arch, size) = (offer.fleet, offer.arch, offer.size);
                warn!(provider = %self.name, %fleet, %arch, %size, %problem, "cannot be launched");
            }
        }
        // Offers with a problem count too: a launch is tried, and its refusal explains what to change.
        let arches = offers.iter().filter(|offer| offer.fleet == Fleet::Builder && offer.exists);
        let arches = arches.map(|offer| offer.arch).collect();
        let described = Event::ProviderDescribed { provider: self.name, arches };
        self.events.store(described).await.is_ok()
    }

    /// The provider's list. Callers that wait during a request share the result of the next one, so there is one
    /// request at a time.
    async fn list(&self) -> Result<List, ProviderError> {
        let since = Instant::now();
        let mut last = self.list.lock().await;
        if let Some(known) = &*last
            && known.begun > since
        {
            return Ok(known.clone());
        }
        let (begun, asked_at) = (Instant::now(), now());
        let machines = within(LIST_LIMIT, self.provider.list()).await?;
        let fresh = List { begun, asked_at, machines: machines.into() };
        *last = Some(fresh.clone());
        Ok(fresh)
    }

    /// Compares the provider's list with the records.
    pub(super) async fn compare(&self) -> Result<ListComparison, SweepError> {
        let list = self.list().await?;
        let listed: BTreeSet<MachineId> = list.machines.iter().map(|found| found.machine).collect();
        let (mut asked, mut ended) = (BTreeSet::new(), BTreeMap::new());
        loop {
            let unknown = {
                let records = self.records.read();
                let is_unknown =
                    |id: &&MachineId| !records.machines.contains_key(id) && !asked.contains(*id);
                let unknown: BTreeSet<MachineId> =
                    listed.iter().filter(is_unknown).copied().collect();
                if unknown.is_empty() {
                    return Ok(self.compare_with(&records, ended, &list));
                }
                unknown
            };
            asked.extend(unknown.iter().copied());
            let found = self.history.ended_machines(unknown).await?;
            ended.extend(found.into_iter().map(|machine| (machine.id, machine)));
        }
    }

    /// Compares the list with the records in memory and with those `ended` ones that it names.
    fn compare_with(
        &self,
        records: &Records,
        ended: BTreeMap<MachineId, Machine>,
        list: &List,
    ) -> ListComparison {
        let List { asked_at, machines, .. } = list;
        let asked_at = *asked_at;
        let mut known = ended;
        known.extend(records.machines.iter().map(|(id, machine)| (*id, machine.clone())));
        let comparison = Comparison {
            provider: self.name,
            grace: self.provider.listing().grace,
            listed: machines,
            machines: &known,
            live: records.live_machines().collect(),
            started_at: self.started_at,
            asked_at,
            compared_at: now(),
        };
        let verdicts = comparison.verdicts();
        self.warn(&comparison, &verdicts);
        let findings = verdicts.into_iter().map(|(machine, verdict)| Finding {
            machine,
            verdict,
            outcome: EndOutcome::NoAction,
        });
        let findings = findings.collect();
        let own = records.live_machines().filter(|machine| {
            machine.kind == MachineKind::Launched && machine.provider == self.name
        });
        let live = machines.iter().filter(|listed| listed.state == ListedState::Live);
        ListComparison { listed: live.count(), recorded: own.count(), findings, asked_at }
    }

    /// Compares, and takes the actions. A failure of one machine does not delay the others.
    pub(super) async fn sweep(&self) -> Result<ListComparison, SweepError> {
        let mut comparison = self.compare().await?;
        let asked_at = comparison.asked_at;
        let missing: BTreeSet<MachineId> = comparison
            .findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Missing)
            .map(|finding| finding.machine)
            .collect();
        self.memory().missing.retain(|machine, _| missing.contains(machine));
        let done = stream::iter(std::mem::take(&mut comparison.findings))
            .map(|finding| self.settle(finding, asked_at))
            .buffer_unordered(ENDED_AT_ONCE);
        comparison.findings = done.collect().await;
        comparison.findings.sort_by_key(|finding| finding.machine);
        self.log(&comparison);
        Ok(comparison)
    }

    /// Takes the action for one machine.
    async fn settle(&self, finding: Finding, asked_at: Timestamp) -> Finding {
        let machine = finding.machine;
        let outcome = match finding.verdict {
            Verdict::EndUnknown => self.end(machine).await,
            Verdict::Returned => {
                self.store(Event::MachineLaunched { machine, placement: None }).await
            }
            Verdict::Gone { taken_back } => self.forget(machine, taken_back).await,
            Verdict::Missing if self.is_missing_again(machine, asked_at) => {
                self.forget(machine, false).await
            }
            Verdict::Elsewhere | Verdict::Missing => EndOutcome::NoAction,
        };
        Finding { outcome, ..finding }
    }

    async fn end(&self, machine: MachineId) -> EndOutcome {
        match within(TERMINATE_LIMIT, self.provider.terminate(machine)).await {
            Ok(()) => EndOutcome::Done,
            Err(error) => EndOutcome::Failed(error.to_string()),
        }
    }

    /// Reports to the state that a machine is gone.
    async fn forget(&self, machine: MachineId, taken_back: bool) -> EndOutcome {
        // Its agent may have connected again meanwhile.
        let is_lost = |record| is_lost(record, self.name);
        if !self.records.read().machines.get(&machine).is_some_and(is_lost) {
            return EndOutcome::NoAction;
        }
        let problem = match self.launch_problem(machine, taken_back).await {
            Ok(problem) => problem,
            Err(error) => return EndOutcome::Failed(error.to_string()),
        };
        let gone = match problem {
            Some(problem) => Event::EndedAtLaunch { machine, failure: problem.into() },
            None => Event::MachineGone { machine, taken_back },
        };
        // Its remains, processes or a folder, are removed too.
        match self.end(machine).await {
            EndOutcome::Done => self.store(gone).await,
            other => other,
        }
    }

    /// Why the provider ended a machine whose agent never connected.
    async fn launch_problem(
        &self,
        machine: MachineId,
        taken_back: bool,
    ) -> Result<Option<LaunchError>, ProviderError> {
        let has_agent = |machine: &Machine| machine.system_info.is_some();
        if taken_back || self.records.read().machines.get(&machine).is_none_or(has_agent) {
            return Ok(None);
        }
        within(LIST_LIMIT, self.provider.launch_problem(machine)).await
    }

    async fn store(&self, event: Event) -> EndOutcome {
        match self.events.store(event).await {
            Ok(()) => EndOutcome::Done,
            // The next core repeats it.
            Err(error) => EndOutcome::Failed(error.to_string()),
        }
    }

    /// Whether a machine was also missing from a list at least an interval ago. One list may have a gap, and an
    /// immediate second request may return the same list.
    fn is_missing_again(&self, machine: MachineId, asked_at: Timestamp) -> bool {
        let first = *self.memory().missing.entry(machine).or_insert(asked_at);
        asked_at > first && asked_at.since(first) >= self.provider.listing().interval
    }

    fn log(&self, comparison: &ListComparison) {
        let provider = self.name;
        for Finding { machine, verdict, outcome } in &comparison.findings {
            match (verdict, outcome) {
                (_, EndOutcome::Failed(error)) => {
                    warn!(%provider, %machine, ?verdict, error, "could not be done; trying again");
                }
                (Verdict::EndUnknown, EndOutcome::Done) => {
                    info!(%provider, %machine, "a machine without a record is terminated");
                }
                (Verdict::Returned, EndOutcome::Done) => {
                    info!(%provider, %machine, "a machine that counted as gone is listed again and terminated");
                }
                (Verdict::Gone { .. } | Verdict::Missing, EndOutcome::Done) => {
                    let taken_back = *verdict == Verdict::Gone { taken_back: true };
                    info!(%provider, %machine, taken_back, "a machine has vanished");
                }
                (Verdict::Elsewhere, EndOutcome::Done) | (_, EndOutcome::NoAction) => {}
            }
        }
        let is_ended = |found: &&Finding| {
            found.verdict == Verdict::EndUnknown && found.outcome == EndOutcome::Done
        };
        let ended = comparison.findings.iter().filter(is_ended).count();
        if ended > 1 {
            info!(%provider, ended, "machines that nobody knows are ended");
        }
    }

    /// Logs once for each machine what needs a person's attention.
    fn warn(&self, comparison: &Comparison<'_>, verdicts: &BTreeMap<MachineId, Verdict>) {
        let overdue =
            comparison.overdue().map(|id| (id, "is there long after the end of its lease"));
        let elsewhere = verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Elsewhere);
        let elsewhere =
            elsewhere.map(|(id, _)| (*id, "is there, and its record is another provider's"));
        let odd: BTreeMap<MachineId, &str> = overdue.chain(elsewhere).collect();
        let mut memory = self.memory();
        for (machine, what) in odd.iter().filter(|(machine, _)| !memory.logged.contains(machine)) {
            warn!(provider = %self.name, %machine, "{what}");
        }
        memory.logged = odd.into_keys().collect();
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    timeout(limit, answer).await.unwrap_or(Err(ProviderError::TimedOut(limit)))
}
