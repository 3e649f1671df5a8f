//! One schedule: a core with its disk, a cloud, agents, and everything that can go wrong between
//! them, in an order that the seed decides.

mod effects;
mod github;
mod machines;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::time::Duration;

use stagely_protocol::Arch;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, RunId, SessionId};
use stagely_state::{
    Attempt, CancelReason, Changes, Effect, Event, JobKind, Limits, Machine, MachineKind, Outcome,
    Priorities, ProviderName, Run, RunState, Snapshot, State, Table, Timestamp,
};

use self::github::Listing;
use self::machines::MachineList;
use crate::agents::{self, Agent, Order};
use crate::cloud::Cloud;
use crate::fairness::Turns;
use crate::github::Github;
use crate::invariants::{self, Memory};
use crate::plans;
use crate::registry::{self, Expected, Fingerprints, Registry};
use crate::rng::Rng;
use crate::transitions::{Before, Strays};

/// Actions before the faults stop.
const ACTIONS: u64 = 200;
const RUNS_MAX: u64 = 7;
const REGISTERED_MACHINES_MAX: u64 = 3;
/// Rounds in which everything must end once the faults have stopped. Far more than any needs.
const ROUNDS_MAX: u32 = 2_000;

/// What has happened in a schedule, and how often: one that never meets a fault proves nothing about it.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

pub(crate) struct World {
    pub(crate) core: State,
    /// What a crash leaves: it gets nothing but the changed records.
    pub(crate) disk: Snapshot,
    pub(crate) now: Timestamp,
    /// When the core that runs now was started.
    pub(crate) started_at: Timestamp,
    pub(crate) cloud: Cloud,
    pub(crate) registry: Registry,
    /// What the newest images should be, and what of it a crash leaves.
    expected: Expected,
    expected_on_disk: Expected,
    /// Whose fingerprint each cache has, and what of it a crash leaves.
    pub(crate) fingerprints: Fingerprints,
    fingerprints_on_disk: Fingerprints,
    /// Attempts that core had marked lost before their agents reconnected. Core does not track the caches that such
    /// an attempt writes.
    lost_attempts: BTreeSet<(MachineId, Attempt)>,
    /// The runs in the order in which they were requested, each with the one that it repeats or is.
    requested: Vec<(RunId, RunId)>,
    /// Machines that core had recorded as terminated when a provider's list still had them.
    pub(crate) swept: BTreeSet<MachineId>,
    /// The lists of providers that are on their way to core, and in how many in a row each machine was missing.
    lists: VecDeque<MachineList>,
    missing: BTreeMap<MachineId, u32>,
    /// What each provider has said since core started.
    pub(crate) described: BTreeMap<ProviderName, BTreeSet<Arch>>,
    pub(crate) github: Github,
    /// Comparisons with GitHub that go on. A crash forgets them.
    listings: VecDeque<Listing>,
    memory: Memory,
    turns: Turns,
    strays: Strays,
    /// Which machine was given an attempt.
    pub(crate) given: BTreeMap<Attempt, MachineId>,
    rng: Rng,
    agents: BTreeMap<MachineId, Agent>,
    /// Sessions that have broken without core having noticed. It may notice after the agent has dialled
    /// anew.
    broken: BTreeSet<(MachineId, SessionId)>,
    /// The last session that an agent has opened, and the newest that core has heard of for each machine.
    last_session: SessionId,
    pub(crate) newest: BTreeMap<MachineId, SessionId>,
    /// Effects of steps that are not stored yet, and what agents are to be thanked for.
    uncommitted: Vec<Effect>,
    acknowledgements: Vec<(MachineId, Order)>,
    /// Effects that run. A crash forgets them.
    in_flight: Vec<Effect>,
    /// What the registry has done and not yet said. A crash forgets it, too.
    answers: Vec<Event>,
    /// Outcomes and reports that may arrive a second time.
    repeatable: Vec<Event>,
    has_faults: bool,
    /// Cores that have run so far.
    cores: u32,
    /// What has happened, and how often.
    counts: Counts,
    runs: u64,
    registered_machines: u64,
    is_traced: bool,
}

/// Plays one schedule from its beginning until everything has ended.
///
/// # Panics
/// When an invariant is broken.
pub(crate) fn play(seed: u64, is_traced: bool) -> (Snapshot, Counts) {
    let mut world = World::new(seed, is_traced);
    for _ in 0..ACTIONS {
        world.act();
    }
    world.drain();
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
    Limits {
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
        launchable,
        capacity_wait: Duration::from_secs(rng.below(120)),
    }
}

impl World {
    fn new(seed: u64, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let core = State::new(limits(&mut rng));
        let mut world = Self {
            core,
            disk: Snapshot::default(),
            now: Timestamp(1_700_000_000_000),
            started_at: Timestamp::default(),
            cloud: Cloud::default(),
            registry: Registry::default(),
            expected: Expected::default(),
            expected_on_disk: Expected::default(),
            fingerprints: Fingerprints::default(),
            fingerprints_on_disk: Fingerprints::default(),
            lost_attempts: BTreeSet::new(),
            requested: Vec::new(),
            swept: BTreeSet::new(),
            lists: VecDeque::new(),
            missing: BTreeMap::new(),
            described: BTreeMap::new(),
            github: Github::default(),
            listings: VecDeque::new(),
            memory: Memory::default(),
            turns: Turns::default(),
            strays: Strays::default(),
            given: BTreeMap::new(),
            rng,
            agents: BTreeMap::new(),
            broken: BTreeSet::new(),
            last_session: SessionId::default(),
            newest: BTreeMap::new(),
            uncommitted: Vec::new(),
            acknowledgements: Vec::new(),
            in_flight: Vec::new(),
            answers: Vec::new(),
            repeatable: Vec::new(),
            has_faults: true,
            cores: 0,
            counts: Counts::new(),
            runs: 0,
            registered_machines: 0,
            is_traced,
        };
        world.trace(|world| format!("{:?}", world.core.limits));
        world.restart();
        world.link_projects();
        world
    }

    fn act(&mut self) {
        match self.rng.below(155) {
            100..125 => self.github_acts(),
            125..130 => self.write(),
            130..134 => self.interrupt_a_machine(),
            134..138 => self.take_machines_back(),
            138..140 => self.describe(),
            140..147 => self.request_list(),
            147..155 => self.compare_machines(),
            0..20 => self.perform_any(),
            20..23 => self.answer(),
            23..60 => self.let_an_agent_act(),
            60..68 => self.let_time_pass(),
            68..76 => self.request_run(),
            76..78 => self.cancel_any_run(),
            78..80 => self.close_an_environment(),
            80..82 => self.register_machine(None),
            82..83 => self.unregister_machine(),
            83..85 => self.repeat_an_event(),
            85 => self.report_for_another_machine(),
            86..89 => self.lose_a_machine(),
            89..92 => self.notice_gone(),
            92..94 => self.notice_broken(),
            94..96 => self.sweep(),
            96..97 => self.forget(),
            97..98 => self.arrive(),
            _ => self.crash(),
        }
    }

    // Core.

    /// Steps `event`, checks the invariants, and stores what changed, at once or with a later step.
    fn deliver(&mut self, event: Event) {
        if let Event::MachineLaunched { machine, .. } = event
            && self.core.machines.get(&machine).is_some_and(|machine| machine.state.is_terminated())
        {
            self.swept.insert(machine);
        }
        if let Event::AgentConnected { machine, session, .. } = event {
            self.newest.insert(machine, session);
        }
        if let Event::ProviderDescribed { provider, arches } = &event {
            self.described.insert(*provider, arches.clone());
        }
        self.step(&event);
        if let Event::JobReported { machine, attempt, report } = &event {
            let acknowledgements =
                Order::Acknowledge { attempt: *attempt, is_early: report.exporting_cache };
            self.acknowledgements.push((*machine, acknowledgements));
        }
        // Most notices come when there is nothing to decide any more: some right when something has begun.
        if let Event::JobStarted { machine, attempt } = event
            && let Some(job) = self.core.jobs.get(&attempt.job)
            && let percent = if matches!(job.kind, JobKind::Merge { .. }) { 40 } else { 5 }
            && self.fault(percent)
        {
            self.interrupt(machine);
        }
        if self.may_come_again(&event) {
            self.repeatable.push(event);
        }
        if !self.has_faults || self.rng.chance(80) {
            self.commit();
        }
        if self.has_faults && self.rng.chance(1) {
            self.crash();
        }
    }

    fn step(&mut self, event: &Event) {
        let mut memory = mem::take(&mut self.memory);
        memory.note(self, event);
        let repeated = self.repeated(event);
        let is_cleaned = self.is_cleaned(event);
        let before = Before::of(&self.core, event);
        let were_completed = registry::completed(&self.core);
        if let Event::AgentConnected { machine, holds, .. } = event {
            let strays = holds.iter().filter(|held| !self.knows(*machine, held.job));
            let strays: Vec<_> = strays.map(|held| (*machine, *held)).collect();
            self.lost_attempts.extend(strays);
        }
        let rng = &mut self.rng;
        let mut new_machine = || MachineId::from_bits(rng.id());
        let Outcome { effects, fingerprints, anomalies } =
            self.core.step(event.clone(), self.now, &mut new_machine);
        assert_eq!(anomalies, [], "{event:?}");
        self.trace(|world| format!("{} {event:?} -> {effects:?}", world.now.0));
        if let Some(run) = before.started(&self.core) {
            self.requested.push((run.id, run.original()));
            self.expected.note_request(&self.core, run);
        }
        if let Some(environment) = is_cleaned {
            self.expected.forget(environment);
        }
        if let Some(records) = repeated {
            assert!(effects.is_empty() && self.records() == records, "{event:?} is taken twice");
        }
        invariants::check(self, event);
        memory.check(self);
        self.memory = memory;
        before.check(self, event, &effects);
        before.check_fingerprints(event, &fingerprints);
        self.fingerprints.change(event, &fingerprints);
        before.note(self, event);
        self.turns.check(&self.core, &before, &effects);
        self.strays.check(&self.core, event);
        self.expected.check(&self.core, &were_completed);
        self.uncommitted.extend(effects);
    }

    /// The records, where the event is a delivery that came before.
    fn repeated(&self, event: &Event) -> Option<Snapshot> {
        let Event::Delivered { delivery, .. } = event else { return None };
        self.core.deliveries.contains_key(delivery).then(|| self.records())
    }

    fn records(&self) -> Snapshot {
        Snapshot {
            projects: self.core.projects.clone(),
            environments: self.core.environments.clone(),
            runs: self.core.runs.clone(),
            jobs: self.core.jobs.clone(),
            machines: self.core.machines.clone(),
            deliveries: self.core.deliveries.clone(),
            outbox: self.core.outbox.clone(),
        }
    }

    /// The pull request's environment whose images are gone with this answer: nobody has opened it since.
    fn is_cleaned(&self, event: &Event) -> Option<EnvironmentId> {
        let Event::CleanedUp { environment, .. } = event else { return None };
        let is_awaited = self
            .core
            .outbox
            .values()
            .any(|effect| *effect == Effect::CleanUp { environment: *environment });
        let record = self.core.environments.get(environment);
        let is_gone = record.is_some_and(|environment| {
            environment.has_images && !environment.state.has_outdated_cleanup()
        });
        (is_awaited && is_gone).then_some(*environment)
    }

    /// Reports come twice when their thanks are lost; that outcomes do so, too, must do no harm.
    fn may_come_again(&self, event: &Event) -> bool {
        match event {
            Event::JobStarted { .. }
            | Event::JobReported { .. }
            | Event::MachineLaunched { .. }
            | Event::LaunchFailed { .. }
            | Event::RunApproved { .. }
            | Event::RunPlanned { .. } => true,
            // ReportContent of a machine that is yet to be launched, it would not be true later.
            Event::MachineGone { machine, .. } => {
                self.cloud.has_launched(*machine) && !self.cloud.is_alive(*machine)
            }
            _ => false,
        }
    }

    /// One transaction; only then do effects run and are agents thanked.
    fn commit(&mut self) {
        self.send_off();
        let changes = self.core.take_changes();
        invariants::check_history(&self.disk, &self.core, &changes);
        store(&mut self.disk, &self.core, &changes);
        invariants::check_disk(&self.disk, &self.core);
        self.expected_on_disk = self.expected.clone();
        self.fingerprints_on_disk = self.fingerprints.clone();
        self.in_flight.append(&mut self.uncommitted);
        self.check_tags_in_flight();
        for (machine, acknowledgements) in mem::take(&mut self.acknowledgements) {
            self.tell(machine, acknowledgements);
        }
    }

    /// At most one effect moves a reference, cleans up an environment, or tells of it.
    fn check_tags_in_flight(&self) {
        let answered = self.answers.iter().filter_map(|answer| match answer {
            Event::ImageTagged { environment, variant, .. } => {
                Some(Effect::Tag { environment: *environment, variant: variant.clone() })
            }
            Event::CleanedUp { environment, .. } => {
                Some(Effect::CleanUp { environment: *environment })
            }
            Event::Reported { environment, .. } => {
                Some(Effect::Report { environment: *environment })
            }
            _ => None,
        });
        let writes = self.github.writes.iter();
        let written = writes.map(|write| Effect::Report { environment: write.environment });
        let running =
            self.in_flight.iter().filter(|effect| effect.environment().is_some()).cloned();
        let mut effects: Vec<String> =
            running.chain(answered).chain(written).map(|effect| format!("{effect:?}")).collect();
        effects.sort();
        let count = effects.len();
        effects.dedup();
        assert_eq!(effects.len(), count, "two at once: {effects:?}");
    }

    /// Messages to agents wait for nobody: they may be overtaken by events, and by one another, but not
    /// by the next transaction, nor by an agent that dials anew.
    fn send_off(&mut self) {
        let (durable, messages): (Vec<_>, Vec<_>) =
            mem::take(&mut self.in_flight).into_iter().partition(Effect::is_durable);
        self.in_flight = durable;
        for message in messages {
            self.perform(&message);
        }
    }

    fn crash(&mut self) {
        self.trace(|_| "core crashes".to_owned());
        self.count("core crashes");
        self.uncommitted.clear();
        self.acknowledgements.clear();
        self.answers.clear();
        self.lists.clear();
        self.missing.clear();
        self.described.clear();
        self.forget_github();
        self.expected = self.expected_on_disk.clone();
        self.fingerprints = self.fingerprints_on_disk.clone();
        self.broken.clear();
        self.newest.clear();
        self.last_session = SessionId::default();
        // Outcomes die with the process that waited for them; agents live on.
        self.repeatable
            .retain(|event| matches!(event, Event::JobStarted { .. } | Event::JobReported { .. }));
        for effect in mem::take(&mut self.in_flight) {
            match effect {
                Effect::Launch { machine } => {
                    self.count("core crashes between a launch and its answer");
                    // The request had left before the crash.
                    if self.rng.chance(20) {
                        let provider = self.disk.machines[&machine].provider;
                        self.cloud.travelling.push((machine, provider));
                    }
                }
                Effect::Terminate { .. } => {
                    self.count("core crashes between a termination and its answer");
                }
                _ => {}
            }
        }
        for agent in self.agents.values_mut() {
            agent.session = None;
        }
        let downtime = if self.rng.chance(30) { self.rng.below(8_000_000) } else { 1_000 };
        self.pass(Duration::from_millis(downtime));
        self.core = State::load(self.core.limits.clone(), self.disk.clone());
        self.restart();
    }

    fn restart(&mut self) {
        self.started_at = self.now;
        self.cores += 1;
        let outbox: Vec<Effect> = self.core.outbox.values().cloned().collect();
        self.turns.restart();
        self.step(&Event::CoreStarted);
        self.commit();
        self.in_flight.extend(outbox);
    }

    // Agents.

    fn let_an_agent_act(&mut self) {
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        let Some(machine) = self.rng.pick(&machines) else { return };
        match self.rng.below(100) {
            0..80 => {
                self.go_on(machine);
            }
            80..90 => self.break_session(machine),
            90..94 => self.change_agent(machine, Agent::crash),
            94..96 => self.change_agent(machine, |agent| agent.is_hung = true),
            _ => {}
        }
    }

    fn change_agent(&mut self, machine: MachineId, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.agents.get_mut(&machine) {
            let session = agent.session.as_ref().map(|session| session.number);
            change(agent);
            if let Some(session) = session.filter(|_| agent.session.is_none()) {
                self.broken.insert((machine, session));
            }
        }
    }

    /// The agent does one thing that it has to do; false if there is none.
    fn go_on(&mut self, machine: MachineId) -> bool {
        let Some(agent) = self.agents.get_mut(&machine) else { return false };
        if agent.session.is_none() {
            self.last_session = self.last_session.next();
            agent.connect(self.last_session, &mut self.rng);
            return true;
        }
        if self.receive(machine) {
            return true;
        }
        let Some(agent) = self.agents.get_mut(&machine) else { return false };
        let has_acted = agent.take_order() || agent.work(&mut self.rng, self.has_faults);
        let written = mem::take(&mut agent.written);
        for (attempt, cache) in written {
            let is_known = self.knows(machine, attempt.job);
            if is_known && !self.lost_attempts.contains(&(machine, attempt)) {
                self.registry.caches.insert(cache);
            }
        }
        has_acted
    }

    /// Whether core thinks that the machine may be doing something for the job.
    fn knows(&self, machine: MachineId, job: JobId) -> bool {
        let machine =
            self.core.machines.get(&machine).filter(|machine| !machine.state.is_terminated());
        machine.is_some_and(|machine| jobs_of(machine).any(|known| known == job))
    }

    /// Core takes the oldest message of the agent.
    fn receive(&mut self, machine: MachineId) -> bool {
        let agent = self.agents.get(&machine);
        if agent.and_then(|agent| agent.session.as_ref()).is_some_and(|session| !session.is_open) {
            self.send_off();
        }
        let session = self.agents.get_mut(&machine).and_then(|agent| agent.session.as_mut());
        let message = session.and_then(|session| {
            session.is_open = true;
            session.to_core.pop_front()
        });
        let is_some = message.is_some();
        if let Some(event) = message {
            self.deliver(event);
        }
        is_some
    }

    // Time and the owner.

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

    fn request_run(&mut self) {
        if self.runs < RUNS_MAX {
            self.runs += 1;
            let request = plans::request(&mut self.rng, &self.core, self.now);
            self.deliver(request);
        }
    }

    fn cancel_any_run(&mut self) {
        let runs: Vec<RunId> = self.core.runs.keys().copied().collect();
        if let Some(run) = self.rng.pick(&runs) {
            self.deliver(Event::CancelRequested { run, reason: CancelReason::Requested });
        }
    }

    fn close_an_environment(&mut self) {
        let environments: Vec<EnvironmentId> = self.core.environments.keys().copied().collect();
        if let Some(environment) = self.rng.pick(&environments) {
            self.deliver(Event::EnvironmentClosed { environment });
        }
    }

    fn register_machine(&mut self, arch: Option<Arch>) {
        if arch.is_some() || self.registered_machines < REGISTERED_MACHINES_MAX {
            self.registered_machines += 1;
            let machine = MachineId::from_bits(self.rng.id());
            let arch = arch.or_else(|| self.rng.pick(&Arch::ALL)).expect("there are arches");
            self.agents.insert(machine, Agent::new(machine));
            self.deliver(Event::MachineRegistered { machine, name: String::new(), arch });
            // Its token was given to its owner, so the record is in the store.
            self.commit();
        }
    }

    fn unregister_machine(&mut self) {
        let registered =
            self.core.live_machines().filter(|machine| machine.kind == MachineKind::Registered);
        let registered: Vec<MachineId> = registered.map(|machine| machine.id).collect();
        if let Some(machine) = self.rng.pick(&registered) {
            self.deliver(Event::MachineUnregistered { machine });
        }
    }

    // What goes wrong.

    fn repeat_an_event(&mut self) {
        if !self.repeatable.is_empty() {
            let index = self.rng.below(self.repeatable.len() as u64);
            let event = self.repeatable[usize::try_from(index).expect("small")].clone();
            self.deliver(event);
        }
    }

    /// A machine reports the end of a job that another one has.
    fn report_for_another_machine(&mut self) {
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        let attempts = self.core.jobs.values().filter_map(|job| {
            Some(Attempt { job: job.id, number: job.state.attempt_on(job.state.machine()?)? })
        });
        let attempts: Vec<Attempt> = attempts.collect();
        let (reporter, attempt) = (self.rng.pick(&machines), self.rng.pick(&attempts));
        if let (Some(reporter), Some(attempt)) = (reporter, attempt)
            && self.core.jobs[&attempt.job].state.machine() != Some(reporter)
        {
            let is_early = self.rng.chance(30);
            let pushed = agents::pushed(attempt, true);
            self.deliver(agents::reported(reporter, attempt, pushed, is_early));
        }
    }

    fn notice_broken(&mut self) {
        if let Some((machine, session)) = self.broken.pop_first() {
            self.deliver(Event::AgentDisconnected { machine, session });
        }
    }

    fn forget(&mut self) {
        // Those that live must be refused.
        let runs: Vec<RunId> = self.core.runs.keys().copied().collect();
        let machines: Vec<MachineId> = self.core.machines.keys().copied().collect();
        let runs = self.rng.pick(&runs).into_iter().collect();
        let machines = self.rng.pick(&machines).into_iter().collect();
        self.deliver(Event::Forgotten { runs, machines, deliveries: Vec::new() });
    }

    // The end.

    /// Nothing goes wrong any more, so everything must come to its end.
    fn drain(&mut self) {
        self.trace(|_| "the faults stop".to_owned());
        self.has_faults = false;
        self.commit();
        self.settle_interruptions();
        self.describe_all();
        if self.core.limits.launchable.is_empty() {
            for arch in Arch::ALL {
                self.register_machine(Some(arch));
            }
        }
        let mut is_mended = false;
        for number in 0..ROUNDS_MAX {
            let is_quiet = self.round();
            invariants::check_leases(self, number);
            if is_quiet && invariants::is_over(self) {
                if self.reconcile() {
                    continue;
                }
                let has_problem = self
                    .core
                    .environments
                    .values()
                    .any(|environment| environment.report.problem.is_some());
                if has_problem && !mem::replace(&mut is_mended, true) {
                    // Somebody has mended what GitHub refused, and core tries again now and then.
                    self.deliver(Event::RetryReports);
                    continue;
                }
                self.memory.check_at_rest(self);
                return registry::check_at_rest(self);
            }
            self.pass_time_after(is_quiet);
        }
        panic!("not everything ends: {:?} {:?}", self.core.queue(), self.core.outbox);
    }

    /// Everybody does what there is to do; true if nobody had anything.
    fn round(&mut self) -> bool {
        while !self.cloud.travelling.is_empty() {
            self.arrive();
        }
        self.sweep();
        let effects = mem::take(&mut self.in_flight);
        let mut is_quiet =
            effects.is_empty() && self.answers.is_empty() && self.github.writes.is_empty();
        for effect in effects {
            self.perform(&effect);
        }
        while !self.github.writes.is_empty() {
            self.write();
        }
        while !self.answers.is_empty() {
            self.answer();
        }
        while !self.broken.is_empty() {
            self.notice_broken();
        }
        // A token dies with its machine's record.
        let is_live = |id: &MachineId| self.core.live_machines().any(|machine| machine.id == *id);
        self.agents.retain(|machine, _| is_live(machine));
        let machines: Vec<MachineId> = self.agents.keys().copied().collect();
        for machine in machines {
            while self.go_on(machine) {
                is_quiet = false;
            }
        }
        is_quiet
    }

    fn pass_time_after(&mut self, is_quiet: bool) {
        self.pass(Duration::from_secs(1));
        if is_quiet && let Some(next) = self.core.next_deadline() {
            self.pass(next.since(self.now));
        }
        if self.core.next_deadline().is_some_and(|next| next <= self.now) {
            self.deliver(Event::Tick);
        }
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

/// The jobs that the machine may be doing something for, as far as its record says.
fn jobs_of(machine: &Machine) -> impl Iterator<Item = JobId> {
    let exporting = machine.exporting.map(|export| export.attempt.job);
    let stopping = machine.stopping.iter().map(|attempt| attempt.job);
    machine.job().into_iter().chain(exporting).chain(stopping)
}

fn store(disk: &mut Snapshot, core: &State, changes: &Changes) {
    copy(&mut disk.projects, &core.projects, &changes.projects);
    copy(&mut disk.environments, &core.environments, &changes.environments);
    copy(&mut disk.runs, &core.runs, &changes.runs);
    copy(&mut disk.jobs, &core.jobs, &changes.jobs);
    copy(&mut disk.machines, &core.machines, &changes.machines);
    copy(&mut disk.deliveries, &core.deliveries, &changes.deliveries);
    copy(&mut disk.outbox, &core.outbox, &changes.outbox);
}

fn copy<K: Copy + Ord, V: Clone>(
    to: &mut BTreeMap<K, V>,
    from: &Table<K, V>,
    changed: &BTreeSet<K>,
) {
    for key in changed {
        match from.get(key) {
            Some(row) => to.insert(*key, row.clone()),
            None => to.remove(key),
        };
    }
}
