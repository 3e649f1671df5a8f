//! One schedule: a core with its disk, a cloud, agents, GitHub, and everything that can go wrong between them, in an
//! order that the seed decides.

mod agents;
mod drain;
mod effects;
mod github;
mod lean;
mod machines;
mod money;
mod process;
mod requests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::ids::{MachineId, RunId, SessionId};
use stagely_state::{
    Attempt, Budget, CancelReason, Effect, Event, Limits, PreviewLimits, Priorities, ProviderName,
    Run, RunState, Snapshot, State, Timestamp,
};

use self::github::{GITHUB_ACTIONS, Listing};
use self::lean::LeanCore;
use self::machines::MachineList;
use crate::agents::{Agent, Order};
use crate::cloud::Cloud;
use crate::fairness::ServiceOrder;
use crate::github::Github;
use crate::invariants::Memory;
use crate::money::{beginning, budget, prices};
use crate::registry::{Expected, Fingerprints, Registry};
use crate::rng::Rng;
use crate::transitions::Strays;

/// Actions before the faults stop.
const ACTIONS_PER_SCHEDULE: u64 = 200;

/// One in so many schedules is mostly about previews, which otherwise seldom get far. It is longer.
const PREVIEW_SCHEDULES: u64 = 4;

/// How often such a schedule takes one of the [`PREVIEW_ACTIONS`], in percent.
const PREVIEW_ACTIONS_PERCENT: u64 = 85;

/// One in so many schedules has a second core without ended records.
const LEAN_SCHEDULES: u64 = 4;

/// One kind of action, and how often it is taken relative to the others.
struct Action {
    weight: u64,
    name: &'static str,
    act: fn(&mut World),
}

const fn action(weight: u64, name: &'static str, act: fn(&mut World)) -> Action {
    Action { weight, name, act }
}

/// What happens in a schedule. Many actions have faults of their own, such as a lost answer.
const ACTIONS: &[Action] = &[
    action(37, "an agent acts", World::let_an_agent_act),
    action(25, "GitHub acts", |world| world.act(GITHUB_ACTIONS)),
    action(20, "core performs an effect", World::perform_any),
    action(3, "the registry answers", World::answer),
    action(5, "GitHub shows a report", World::write),
    action(8, "time passes", World::let_time_pass),
    // Requests.
    action(8, "a run is requested", World::request_run),
    action(2, "a run is cancelled", World::cancel_any_run),
    action(2, "an environment is closed", World::close_an_environment),
    action(2, "a machine is registered", World::register_any_machine),
    action(1, "a machine is unregistered", World::unregister_machine),
    action(1, "records are forgotten", World::forget),
    action(4, "a preview is requested", World::request_preview),
    action(1, "a preview is sent to sleep", World::send_a_preview_to_sleep),
    action(1, "a preview is ended", World::end_a_preview),
    action(1, "a preview is reset", World::reset_a_preview),
    action(1, "a preview is extended", World::extend_a_preview),
    // Providers.
    action(7, "core requests a provider's list", World::request_list),
    action(8, "core compares a provider's list", World::compare_machines),
    action(2, "core sweeps all providers", World::sweep),
    action(2, "core asks what a provider has", World::describe),
    action(3, "a provider reports that a machine is gone", World::notice_gone),
    // Faults.
    action(2, "core is killed", World::crash),
    action(2, "an event is repeated", World::repeat_an_event),
    action(1, "a machine reports a job of another", World::report_for_another_machine),
    action(3, "a machine is lost", World::lose_a_machine),
    action(2, "core notices a broken session", World::notice_broken),
    action(1, "a late launch request arrives", World::arrive),
    action(4, "a machine is interrupted", World::interrupt_a_machine),
    action(4, "interrupted machines are taken back", World::take_machines_back),
];

/// What happens more often in a schedule that is mostly about previews.
const PREVIEW_ACTIONS: &[Action] = &[
    action(10, "an agent acts", World::let_an_agent_act),
    action(50, "an agent of a preview acts", World::let_a_preview_act),
    action(20, "core performs an effect", World::perform_any),
    action(10, "GitHub acts", |world| world.act(GITHUB_ACTIONS)),
    action(4, "a run is requested", World::request_run),
    action(4, "a preview is requested", World::request_preview),
    action(4, "a preview is sent to sleep", World::send_a_preview_to_sleep),
    action(1, "a preview is ended", World::end_a_preview),
    action(4, "a preview is reset", World::reset_a_preview),
    action(2, "time passes", World::let_time_pass),
];

pub(crate) fn action_names() -> impl Iterator<Item = &'static str> {
    ACTIONS.iter().chain(PREVIEW_ACTIONS).chain(GITHUB_ACTIONS).map(|action| action.name)
}

/// What has happened in a schedule, and how often. A fault that never happens proves nothing.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

pub(crate) struct World {
    pub(crate) core: State,
    /// In a part of the schedules, because it takes as long as the core itself.
    lean: Option<LeanCore>,
    /// The committed records. Only they survive a crash.
    pub(crate) disk: Snapshot,
    pub(crate) volatile: Volatile,
    pub(crate) now: Timestamp,
    /// When the current core was started.
    pub(crate) started_at: Timestamp,
    /// How many cores have been started.
    cores: u32,
    pub(crate) cloud: Cloud,
    pub(crate) registry: Registry,
    pub(crate) github: Github,
    agents: BTreeMap<MachineId, Agent>,
    /// What the newest images and the fingerprints should be, by the events so far, and by those that are committed.
    pub(crate) model: Model,
    committed_model: Model,
    memory: Memory,
    service_order: ServiceOrder,
    strays: Strays,
    /// Machines that core had recorded as terminated when a provider's list still had them.
    pub(crate) swept: BTreeSet<MachineId>,
    /// The runs in the order of their requests, each with the run that it repeats, or itself.
    requested: Vec<(RunId, RunId)>,
    /// The machine that was assigned an attempt.
    pub(crate) given: BTreeMap<Attempt, MachineId>,
    /// Outcomes and reports that may arrive a second time.
    repeatable: Vec<Event>,
    rng: Rng,
    has_faults: bool,
    is_about_previews: bool,
    runs: u64,
    registered_machines: u64,
    pub(crate) counts: Counts,
    is_traced: bool,
}

/// What core's process has in memory beside its state. A crash loses it.
#[derive(Default)]
pub(crate) struct Volatile {
    /// Effects of steps that are not committed yet.
    uncommitted: Vec<Effect>,
    /// Acknowledgements of reports that are not committed yet.
    acknowledgements: Vec<(MachineId, Order)>,
    /// Effects that run.
    in_flight: Vec<Effect>,
    /// Answers of the registry that core has not received yet.
    answers: Vec<Event>,
    /// Lists of providers that core has not received yet.
    lists: VecDeque<MachineList>,
    /// How many lists in a row lacked a machine.
    missing: BTreeMap<MachineId, u32>,
    /// The arches that each provider has offered since core started.
    pub(crate) described: BTreeMap<ProviderName, BTreeSet<Arch>>,
    /// Comparisons with GitHub that go on.
    listings: VecDeque<Listing>,
    /// Sessions that have broken without core having noticed. It may notice after the agent has reconnected.
    broken: BTreeSet<(MachineId, SessionId)>,
    /// The session that was opened last, of any machine.
    last_session: SessionId,
    /// The newest session of each machine that core knows.
    pub(crate) newest: BTreeMap<MachineId, SessionId>,
}

/// What the records and stores outside of the state should be, computed from the events alone.
#[derive(Clone, Default)]
pub(crate) struct Model {
    expected: Expected,
    pub(crate) fingerprints: Fingerprints,
    /// Attempts that core had marked lost before their agents reconnected. Core does not track the caches that such
    /// an attempt writes.
    lost_attempts: BTreeSet<(MachineId, Attempt)>,
}

/// Plays one schedule from its beginning until everything has ended.
///
/// # Panics
/// When an invariant is broken.
pub(crate) fn play(seed: u64, is_traced: bool) -> (Snapshot, Counts) {
    let mut world = World::new(seed, is_traced);
    let factor = if world.is_about_previews { 2 } else { 1 };
    for _ in 0..ACTIONS_PER_SCHEDULE * factor {
        let is_of_preview = world.is_about_previews && world.rng.chance(PREVIEW_ACTIONS_PERCENT);
        world.act(if is_of_preview { PREVIEW_ACTIONS } else { ACTIONS });
    }
    world.drain();
    if let Some(lean) = &world.lean {
        lean.check(&world.core);
    }
    (world.disk, world.counts)
}

fn limits(rng: &mut Rng) -> Limits {
    let launchable = match rng.below(4) {
        0 => BTreeMap::new(),
        1 => BTreeMap::from([(Arch::Amd64, ProviderName::Local)]),
        2 => BTreeMap::from(Arch::ALL.map(|arch| (arch, ProviderName::Aws))),
        _ => BTreeMap::from([
            (Arch::Amd64, ProviderName::DigitalOcean),
            (Arch::Arm64, ProviderName::Aws),
        ]),
    };
    let limits = Limits {
        max_concurrent: u32::try_from(1 + rng.below(4)).expect("small"),
        max_attempts: u32::try_from(1 + rng.below(3)).expect("small"),
        boot: Duration::from_mins(5),
        reconnect_grace: Duration::from_mins(2),
        job_grace: Duration::from_mins(1),
        lease: Duration::from_mins(rng.below(90)),
        cache_export: Duration::from_secs(60 + rng.below(900)),
        planned_at_once: usize::try_from(1 + rng.below(3)).expect("small"),
        planning: Duration::from_mins(10),
        priorities: Priorities::default(),
        max_testers: u32::try_from(1 + rng.below(3)).expect("small"),
        launchable_previews: launchable.clone(),
        launchable_testers: if rng.chance(85) { launchable.clone() } else { BTreeMap::new() },
        launchable,
        capacity_wait: Duration::from_secs(rng.below(120)),
        capacity_limit: Duration::ZERO,
        previews: PreviewLimits {
            max_concurrent: u32::try_from(1 + rng.below(3)).expect("small"),
            max_of_project: u32::try_from(1 + rng.below(2)).expect("small"),
            lease: Duration::from_mins(30 + rng.below(600)),
            archive: Duration::from_mins(15),
            reconnect: Duration::from_mins(15),
        },
        prices: prices(),
        budget: Budget::default(),
    };
    // Three to five launches.
    Limits { capacity_limit: limits.capacity_wait * 8, ..limits }
}

impl World {
    fn new(seed: u64, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let limits = Limits { budget: budget(seed), ..limits(&mut rng) };
        let mut world = Self {
            lean: seed
                .is_multiple_of(LEAN_SCHEDULES)
                .then(|| LeanCore::load(&limits, Snapshot::default())),
            core: State::new(limits),
            disk: Snapshot::default(),
            volatile: Volatile::default(),
            now: beginning(seed),
            started_at: Timestamp::default(),
            cores: 0,
            cloud: Cloud::default(),
            registry: Registry::default(),
            github: Github::default(),
            agents: BTreeMap::new(),
            model: Model::default(),
            committed_model: Model::default(),
            memory: Memory::default(),
            service_order: ServiceOrder::default(),
            strays: Strays::default(),
            swept: BTreeSet::new(),
            requested: Vec::new(),
            given: BTreeMap::new(),
            repeatable: Vec::new(),
            rng,
            has_faults: true,
            is_about_previews: seed % PREVIEW_SCHEDULES == 1,
            runs: 0,
            registered_machines: 0,
            counts: Counts::new(),
            is_traced,
        };
        world.trace(|world| format!("{:?}", world.core.limits));
        world.restart();
        world.link_projects();
        world
    }

    /// Takes one of `actions`.
    fn act(&mut self, actions: &[Action]) {
        let mut number = self.rng.below(actions.iter().map(|action| action.weight).sum());
        for action in actions {
            if number < action.weight {
                self.count(action.name);
                return (action.act)(self);
            }
            number -= action.weight;
        }
    }

    fn let_time_pass(&mut self) {
        let next = self.core.next_deadline();
        let then = match self.rng.below(20) {
            0 => self.now.after(Duration::from_secs(self.rng.below(3_000))),
            1 => self.now.after(Duration::from_hours(self.rng.below(50))),
            // Clocks are set, also back.
            2 => Timestamp(self.now.0 - self.rng.below(600_000)),
            3..6 => next.map_or(self.now, |next| next.max(self.now)),
            _ => self.now.after(Duration::from_millis(self.rng.below(60_000))),
        };
        self.pass(then.since(self.now));
        self.now = then;
        self.move_money();
        if next.is_some_and(|next| next <= self.now) || self.rng.chance(10) {
            self.deliver(Event::Tick);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.cloud.pass(time);
        self.now = self.now.after(time);
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            println!("{}", line(self));
        }
    }
}

/// Whether a newer run took the place of `run`.
pub(crate) fn is_superseded(run: &Run) -> bool {
    run.state == RunState::Cancelled { reason: CancelReason::Superseded }
}
