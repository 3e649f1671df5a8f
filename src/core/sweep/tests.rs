//! The sweep with a provider that does what a test says, and a real orchestrator.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use stagely_protocol::{Arch, SystemInfo};
use stagely_provider::{LaunchError, LaunchRequest, Offer};
use stagely_state::comparison::{Listed, ListedState};
use stagely_state::{Machine, MachineState, Placement, Snapshot, State};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Config;
use crate::core::fixtures::{self, RunningOrchestrator};
use crate::core::store::Store;

/// A provider whose list a test writes.
#[derive(Debug, Default)]
struct Cloud {
    listed: Mutex<Vec<Listed>>,
    /// Machines that it refuses to end.
    stubborn: Mutex<BTreeSet<MachineId>>,
    hangs: AtomicBool,
    asked: AtomicUsize,
    ending: AtomicUsize,
    most_ending: AtomicUsize,
}

impl Cloud {
    fn lists(&self, machines: &[(u128, ListedState)]) {
        let listed = machines
            .iter()
            .map(|(id, state)| Listed { machine: MachineId::from_bits(*id), state: *state });
        *self.listed.lock().unwrap() = listed.collect();
    }

    fn has(&self) -> Vec<u128> {
        let listed = self.listed.lock().unwrap();
        (0..100)
            .filter(|id| listed.iter().any(|listed| listed.machine == MachineId::from_bits(*id)))
            .collect()
    }
}

#[async_trait]
impl Provider for Cloud {
    async fn launch(&self, _: &LaunchRequest) -> Result<Placement, LaunchError> {
        Err(LaunchError::NoCapacity("nothing is launched here".into()))
    }

    async fn terminate(&self, machine: MachineId) -> Result<(), ProviderError> {
        let ending = self.ending.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_ending.fetch_max(ending, Ordering::SeqCst);
        sleep(Duration::from_secs(1)).await;
        self.ending.fetch_sub(1, Ordering::SeqCst);
        if self.stubborn.lock().unwrap().contains(&machine) {
            return Err(ProviderError::Failed("not today".into()));
        }
        self.listed.lock().unwrap().retain(|listed| listed.machine != machine);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, ProviderError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(self.listed.lock().unwrap().clone())
    }

    fn listing(&self) -> Listing {
        Listing { interval: Duration::from_mins(1), grace: Duration::from_mins(2) }
    }

    async fn describe(&self) -> Result<Vec<Offer>, ProviderError> {
        Ok(Vec::new())
    }
}

/// A core of nothing but its orchestrator and the sweep of AWS.
struct Core {
    _folder: TempDir,
    cloud: Arc<Cloud>,
    records: SharedRecords,
    sweeps: Sweeps,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Core {
    fn start(machines: Vec<Machine>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let mut config = Config::default();
        config.builders.provider = None;
        let machines = machines.into_iter().map(|machine| (machine.id, machine)).collect();
        let state = State::load(config.limits(), Snapshot { machines, ..Snapshot::default() });
        let RunningOrchestrator { records, events, stop, task, .. } =
            fixtures::start_orchestrator(folder.path(), config, store.clone(), state);
        let cloud = Arc::new(Cloud::default());
        let provider: Arc<dyn Provider> = Arc::clone(&cloud) as _;
        let sweep = Sweep {
            name: ProviderName::Aws,
            provider,
            records: records.clone(),
            history: History::new(records.clone(), store.clone()),
            events,
            started_at: Timestamp(0),
            memory: Mutex::default(),
            list: tokio::sync::Mutex::default(),
        };
        let sweeps = Sweeps(Arc::from([Arc::new(sweep)]));
        Self { _folder: folder, cloud, records, sweeps, stop, task }
    }

    fn sweep(&self) -> &Arc<Sweep> {
        self.sweeps.iter().next().unwrap()
    }

    async fn sweep_now(&self) -> Vec<(MachineId, Verdict, EndOutcome)> {
        let comparison = self.sweep().sweep().await.unwrap();
        comparison
            .findings
            .into_iter()
            .map(|found| (found.machine, found.verdict, found.outcome))
            .collect()
    }

    /// A terminated machine is not in memory any more.
    async fn state_of(&self, id: u128) -> MachineState {
        let id = MachineId::from_bits(id);
        let machines = self.sweep().history.machines(usize::MAX).await.unwrap();
        machines.iter().find(|machine| machine.id == id).unwrap().state
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A machine that AWS has confirmed, whose agent left `ago`.
fn lost(id: u128, ago: Duration) -> Machine {
    let system_info = SystemInfo {
        hostname: String::new(),
        architecture: Arch::Amd64,
        docker_version: String::new(),
        emulated: Vec::new(),
    };
    let contact_at = Timestamp(now().0 - u64::try_from(ago.as_millis()).unwrap());
    Machine {
        kind: MachineKind::Launched,
        provider: ProviderName::Aws,
        state: MachineState::Ready,
        contact_at,
        requested_at: contact_at,
        system_info: Some(system_info),
        ..fixtures::machine(id)
    }
}

const LONG: Duration = Duration::from_mins(10);

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_ended_delays_no_other_and_few_are_ended_at_once() {
    let core = Core::start(vec![lost(50, LONG)]);
    let gone = ListedState::Gone { taken_back: true };
    let unknown: Vec<(u128, ListedState)> = (1..=20).map(|id| (id, ListedState::Live)).collect();
    core.cloud.lists(&[&unknown[..], &[(50, gone)]].concat());
    core.cloud.stubborn.lock().unwrap().insert(MachineId::from_bits(1));

    let planned = core.sweep().compare().await.unwrap();
    assert_eq!((planned.listed, planned.recorded, planned.findings.len()), (20, 1, 21));
    assert!(planned.findings.iter().all(|finding| finding.outcome == EndOutcome::NoAction));
    assert_eq!(core.cloud.has().len(), 21, "a dry run changes nothing");

    let found = core.sweep_now().await;

    let failed: Vec<_> =
        found.iter().filter(|(_, _, outcome)| matches!(outcome, EndOutcome::Failed(_))).collect();
    assert_eq!(failed.len(), 1, "{found:?}");
    assert_eq!(failed[0].0, MachineId::from_bits(1));
    assert_eq!(core.cloud.has(), [1]);
    assert_eq!(core.state_of(50).await, MachineState::Terminated);
    assert_eq!(core.cloud.most_ending.load(Ordering::SeqCst), ENDED_AT_ONCE);
    core.stop().await;
}

#[tokio::test]
async fn a_machine_counts_as_gone_when_it_is_missing_from_two_lists_of_different_moments() {
    let core = Core::start(vec![lost(1, LONG), lost(2, LONG)]);
    core.cloud.lists(&[]);
    let id = MachineId::from_bits(1);
    // Two lists of the same moment are one piece of evidence.
    for _ in 0..2 {
        let found = core.sweep_now().await;
        assert_eq!(found[0], (id, Verdict::Missing, EndOutcome::NoAction));
    }
    // It was there after all, so what was missing before counts no more.
    core.cloud.lists(&[(2, ListedState::Live)]);
    core.sweep_now().await;
    let seconds_ago = |seconds: u64| Timestamp(now().0 - seconds * 1_000);
    core.sweep().memory().missing.values_mut().for_each(|first| *first = seconds_ago(61));
    core.cloud.lists(&[]);

    let found = core.sweep_now().await;

    assert_eq!(found[0], (id, Verdict::Missing, EndOutcome::Done));
    assert_eq!(found[1], (MachineId::from_bits(2), Verdict::Missing, EndOutcome::NoAction));
    assert_eq!(core.state_of(1).await, MachineState::Terminated);
    assert_eq!(core.state_of(2).await, MachineState::Ready);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_times_out_is_requested_again() {
    let core = Core::start(Vec::new());
    core.cloud.hangs.store(true, Ordering::SeqCst);
    let comparisons = core.sweeps.sweep_all(true).await;
    let (name, compared) = &comparisons[0];
    assert_eq!(*name, ProviderName::Aws);
    assert_eq!(compared.as_ref().unwrap_err().to_string(), "no answer within 60s");

    core.cloud.hangs.store(false, Ordering::SeqCst);
    core.cloud.lists(&[(1, ListedState::Live)]);
    assert_eq!(core.sweep_now().await.len(), 1);
    assert_eq!(core.cloud.has(), []);
    core.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_waits_for_its_provider_ends_with_core() {
    let core = Core::start(Vec::new());
    core.cloud.hangs.store(true, Ordering::SeqCst);
    let sweep = tokio::spawn(Arc::clone(core.sweep()).run(core.stop.clone()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(core.cloud.asked.load(Ordering::SeqCst), 1);
    core.stop.cancel();
    timeout(Duration::from_secs(1), sweep).await.unwrap().unwrap();
    core.stop().await;
}

/// How long after a sweep at `last` the next one is due.
fn next_after(core: &Core, last: Timestamp) -> Duration {
    core.sweep().next_sweep_at(last).since(last)
}

#[tokio::test]
async fn the_next_sweep_comes_sooner_where_more_may_be_known() {
    let minute = Duration::from_mins(1);
    let quiet = Core::start(Vec::new());
    assert_eq!(next_after(&quiet, now()), minute);
    quiet.stop().await;

    // Its agent has just left, and the last sweep was before that.
    let core = Core::start(vec![lost(1, Duration::ZERO)]);
    let left_at = core.records.read().machines[&MachineId::from_bits(1)].contact_at;
    let earlier = Timestamp(left_at.0 - 30_000);
    assert_eq!(next_after(&core, earlier), Duration::from_secs(30) + RECHECK_DELAY);
    assert_eq!(next_after(&core, left_at.after(RECHECK_DELAY)), minute, "it has been swept since");
    // When it would be in the list if it were there.
    let before_grace = left_at.after(minute + Duration::from_secs(30));
    let wait = Duration::from_secs(30) + Duration::from_millis(1);
    assert_eq!(next_after(&core, before_grace), wait);
    let after_grace = left_at.after(Duration::from_mins(3));
    assert_eq!(next_after(&core, after_grace), minute);
    core.stop().await;
}

#[tokio::test]
async fn an_agent_that_connects_during_a_sweep_saves_its_machine() {
    let core = Core::start(vec![lost(1, LONG)]);
    core.cloud.lists(&[(1, ListedState::Gone { taken_back: false })]);
    let mut comparison = core.sweep().compare().await.unwrap();
    core.records.write(|records| {
        records.machines.get_mut(&MachineId::from_bits(1)).unwrap().connected = true;
    });
    let finding = comparison.findings.remove(0);
    let settled = core.sweep().settle(finding, comparison.asked_at).await;
    assert_eq!(settled.outcome, EndOutcome::NoAction);
    assert_eq!(core.cloud.has(), [1], "it is not ended");
    core.stop().await;
}
