//! What one step may change, compared with the records before it.

mod builders;
mod cancelled;
mod interrupted;
mod previews;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_protocol::{FailureReason, ImageRef};
use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, RunId};
use stagely_state::{
    Attempt, DEPLOYMENT_RETURN, Effect, Event, ExportState, FingerprintChange, Fleet, Job,
    JobFailure, JobKind, JobOutcome, JobReport, JobState, Limits, Machine, MachineKind,
    MachineState, Preview, RunState, State, TEST_RESULTS, Timestamp,
};

use self::builders::Export;
use self::cancelled::is_check;
pub(crate) use self::cancelled::is_of_github;
pub(crate) use self::previews::open_tests;
use crate::world::World;
use crate::{fairness, money};

/// The records before the step.
pub(crate) struct Before {
    work: Vec<LiveWork>,
    /// The live machines, and since when they should have stopped their attempts.
    machines: Vec<(Machine, Option<Timestamp>)>,
    /// The job of the event.
    reported_job: Option<Job>,
    open_runs: Vec<RunId>,
    /// The runs that were being planned, and since when.
    planned: Vec<(RunId, Timestamp)>,
    /// The exports under way.
    exports: Vec<Export>,
    /// The open runs of each environment.
    environments: BTreeMap<EnvironmentId, Vec<RunId>>,
    runs: BTreeSet<RunId>,
    /// The checks of commands under way.
    checks: Vec<Effect>,
    previews: BTreeMap<PreviewId, Preview>,
    ended_jobs: BTreeSet<JobId>,
    /// The jobs that waited for capacity, and until when.
    postponed: BTreeMap<JobId, Timestamp>,
    /// Since when the jobs lack capacity, and the launches since then.
    missing_capacity: BTreeMap<JobId, (Timestamp, u32)>,
    /// The caches of environments with an outdated clean-up.
    outdated_deletions: BTreeMap<EnvironmentId, BTreeSet<ImageRef>>,
}

/// An attempt that a machine had.
struct LiveWork {
    machine: Machine,
    attempt: Attempt,
    job: Job,
    /// How long the same job took before, if the event needs it.
    usual: Option<Duration>,
    /// Whether the job leaves the agent soon if the agent disconnects before it begins.
    is_hasty: bool,
    /// Whether it is a test of a preview that served.
    was_live: bool,
}

/// A time limit.
#[derive(Clone, Copy)]
struct Limit {
    since: Timestamp,
    at: Timestamp,
}

impl Limit {
    fn of(since: Timestamp, time: Duration) -> Self {
        Self { since, at: since.after(time) }
    }

    /// The end of the limit, with the grace after a start of core.
    fn with_grace(self, world: &World, grace: Duration) -> Timestamp {
        let was_there = self.since <= world.started_at;
        if was_there { self.at.max(world.started_at.after(grace)) } else { self.at }
    }

    fn lease_of(machine: &Machine) -> Self {
        let at = machine.lease_until.unwrap_or(Timestamp(u64::MAX));
        Self { since: machine.requested_at, at }
    }
}

impl Before {
    pub(crate) fn of(core: &State, event: &Event) -> Self {
        let work = core.live_machines().filter_map(|machine| LiveWork::of(core, machine, event));
        let machines =
            core.live_machines().map(|machine| (machine.clone(), asked_to_stop_at(core, machine)));
        let exports = core.live_machines().filter_map(|machine| Export::of(core, machine));
        let mut environments: BTreeMap<EnvironmentId, Vec<RunId>> = BTreeMap::new();
        for run in core.runs.values().filter(|run| !run.state.is_final()) {
            environments.entry(run.environment).or_default().push(run.id);
        }
        let open_runs = core.runs.values().filter(|run| !run.state.is_final());
        let planned = core.runs.values().filter_map(|run| match run.state {
            RunState::Planning { since } => Some((run.id, since)),
            _ => None,
        });
        Self {
            work: work.collect(),
            machines: machines.collect(),
            reported_job: match event {
                Event::JobStarted { attempt, .. } | Event::JobReported { attempt, .. } => {
                    core.jobs.get(&attempt.job).cloned()
                }
                _ => None,
            },
            open_runs: open_runs.map(|run| run.id).collect(),
            planned: planned.collect(),
            exports: exports.collect(),
            environments,
            runs: core.runs.keys().copied().collect(),
            previews: core.previews.clone(),
            ended_jobs: core
                .jobs
                .values()
                .filter(|job| job.state.is_final())
                .map(|job| job.id)
                .collect(),
            checks: core.outbox.values().filter(|effect| is_check(effect)).cloned().collect(),
            postponed: core
                .jobs
                .values()
                .filter_map(|job| Some((job.id, postponed_until(job)?)))
                .collect(),
            missing_capacity: core
                .jobs
                .values()
                .filter_map(|job| Some((job.id, job.missing_capacity.as_ref()?)))
                .map(|(job, gap)| (job, (gap.since, gap.launches)))
                .collect(),
            outdated_deletions: core
                .environments
                .values()
                .filter(|environment| environment.state.has_outdated_cleanup())
                .map(|environment| (environment.id, environment.cache_refs.clone()))
                .collect(),
        }
    }

    /// Whether `machine` had `attempt` already.
    pub(crate) fn had(&self, machine: MachineId, attempt: Attempt) -> bool {
        self.work.iter().any(|work| work.machine.id == machine && work.attempt == attempt)
    }

    pub(crate) fn check(&self, world: &World, event: &Event, effects: &[Effect]) {
        let cancelled = self.cancelled(&world.core, event);
        for work in &self.work {
            work.check(world, event, effects, &cancelled);
        }
        for export in &self.exports {
            self.check_export(world, export, event, effects, &cancelled);
        }
        self.check_merges(world, event, effects);
        self.check_announced(&world.core, event);
        self.check_postponed(world, event);
        self.check_machines_of_assigned(&world.core, effects);
        for (machine, stop_requested_at) in &self.machines {
            check_lease(world, machine, event);
            self.check_contact(world, machine, *stop_requested_at, event);
            check_registered(&world.core, machine, event);
        }
        self.check_planning(world, event);
        self.check_previews(world, event);
        for run in &self.open_runs {
            assert!(world.core.runs.contains_key(run), "{run} is forgotten alive");
        }
        for (machine, _) in &self.machines {
            assert!(world.core.machines.contains_key(&machine.id), "{} is forgotten", machine.id);
        }
        match event {
            Event::CoreStarted => {
                assert!(world.core.live_machines().all(|machine| !machine.connected));
            }
            Event::AgentConnected { machine, holds, .. } => {
                self.check_resumed(&world.core, *machine, holds, effects);
            }
            Event::JobStarted { machine, attempt } => {
                self.check_started(world, *machine, *attempt);
            }
            Event::JobReported { machine, attempt, report } => {
                self.check_report(world, *machine, *attempt, report);
            }
            _ => {}
        }
    }

    /// A fingerprint is stored exactly when the attempt that a machine has, or whose cache it exports, reports
    /// that the cache is complete. It is deleted with its cache, and whenever the cache may have been deleted.
    pub(crate) fn check_fingerprints(&self, event: &Event, changes: &[FingerprintChange]) {
        let expected: Vec<FingerprintChange> = match event {
            Event::JobReported { machine, attempt, report } => {
                let cache = self.completed_cache(*machine, *attempt, report);
                cache.map(FingerprintChange::Store).into_iter().collect()
            }
            Event::CleanedUp { environment, refs } => {
                let doubtful = self.outdated_deletions.get(environment).into_iter().flatten();
                let deleted: BTreeSet<ImageRef> = refs.iter().chain(doubtful).cloned().collect();
                deleted.into_iter().map(FingerprintChange::Delete).collect()
            }
            _ => Vec::new(),
        };
        assert_eq!(changes, expected, "{event:?}");
    }

    fn completed_cache(
        &self,
        id: MachineId,
        attempt: Attempt,
        report: &JobReport,
    ) -> Option<ImageRef> {
        let exports = |machine: &Machine| machine.exporting.map(|export| export.attempt);
        let machine = self.machines.iter().find(|(machine, _)| machine.id == id);
        let is_exporting = machine.is_some_and(|(machine, _)| exports(machine) == Some(attempt));
        let is_current = self.had(id, attempt);
        let is_completed = matches!(report.outcome, JobOutcome::Completed { .. });
        let is_complete = is_completed && !report.exporting_cache;
        match self.reported_job.as_ref().map(|job| &job.kind) {
            Some(JobKind::Build { cache_to, .. })
                if is_complete && (is_current || is_exporting) =>
            {
                cache_to.clone()
            }
            _ => None,
        }
    }

    /// A connected agent stays connected until its session ends, or core gives it up.
    fn check_contact(
        &self,
        world: &World,
        before: &Machine,
        stop_requested_at: Option<Timestamp>,
        event: &Event,
    ) {
        let id = before.id;
        let Some(after) =
            world.core.machines.get(&id).filter(|machine| !machine.state.is_terminated())
        else {
            return;
        };
        let is_lost = before.connected && !after.connected;
        match event {
            Event::CoreStarted => {}
            Event::AgentConnected { machine, .. } if *machine == id => assert!(after.connected),
            Event::AgentDisconnected { machine, session }
                if *machine == id && world.volatile.newest.get(machine) == Some(session) =>
            {
                assert!(!after.connected);
            }
            Event::Tick if before.connected => {
                let grace = stop_grace_of(&world.core.limits, before);
                let due = stop_requested_at.map(|at| Limit::of(at, grace));
                let must_go = due.is_some_and(|due| is_over(due, world));
                assert!(!must_go || is_lost, "{id} need not stop");
                let work = self.work.iter().find(|work| work.machine.id == id);
                let limits = || work.into_iter().flat_map(|work| work.limits(world));
                let may_go = due.into_iter().chain(limits()).any(|limit| !is_coming(limit, world));
                assert!(may_go || !is_lost, "{id} is cut off");
            }
            _ => assert!(!is_lost, "{event:?} cut off {id}"),
        }
    }

    fn check_planning(&self, world: &World, event: &Event) {
        for (run, since) in &self.planned {
            let is_planned = world.core.runs[run].state == RunState::Planning { since: *since };
            let due = Limit::of(*since, world.core.limits.planning);
            match event {
                Event::Tick if is_over(due, world) => assert!(!is_planned, "{run} plans for ever"),
                Event::Tick if is_coming(due, world) => assert!(is_planned, "{run} is hurried"),
                _ => {}
            }
        }
    }

    /// 5. After its HELLO, an agent has the attempt that it should have, and stops all others.
    fn check_resumed(&self, core: &State, id: MachineId, holds: &[Attempt], effects: &[Effect]) {
        let Some(machine) = core.machines.get(&id) else { return };
        let current = current(core, machine);
        if let Some(attempt) = current.filter(|current| !holds.contains(current)) {
            let assign = Effect::Assign { machine: id, attempt };
            assert!(effects.contains(&assign), "{id} does not get {attempt:?}");
            let is_running = matches!(core.jobs[&attempt.job].state, JobState::Running { .. });
            assert!(!is_running, "{id} has lost {attempt:?}");
        }
        if machine.state.is_terminated() {
            return;
        }
        let exports = machine.exporting.map(|export| export.attempt);
        if let Some(exports) = exports {
            assert!(holds.contains(&exports), "{id} does not export {exports:?} any more");
        }
        for stray in holds.iter().filter(|held| current != Some(**held) && exports != Some(**held))
        {
            assert!(is_stopped(id, *stray, effects), "{id} goes on with {stray:?}");
            let is_new = current.is_some_and(|current| !self.had(id, current));
            let is_free = machine.state == MachineState::Ready;
            assert!(!is_new && !is_free, "{id} has yet to stop {stray:?}");
        }
    }

    fn check_started(&self, world: &World, machine: MachineId, attempt: Attempt) {
        let (Some(before), Some(after)) = (&self.reported_job, world.core.jobs.get(&attempt.job))
        else {
            return;
        };
        let provisioning = JobState::Provisioning { attempt: attempt.number, machine };
        if before.state == provisioning {
            // Its machine would have to live for longer than the budget allows: see `LiveWork::is_late`.
            let is_lost =
                money::has_budget(&world.core) && after.state.attempt_on(machine).is_none();
            let is_running = matches!(after.state, JobState::Running { .. });
            assert!(is_running || is_lost, "{attempt:?} does not start");
        } else {
            assert_unmoved(before, after);
        }
    }

    /// 4. The end follows from the report of the newest attempt. 5. Other reports change nothing.
    fn check_report(
        &self,
        world: &World,
        machine: MachineId,
        attempt: Attempt,
        report: &JobReport,
    ) {
        let Some(before) = &self.reported_job else { return };
        let after = &world.core.jobs[&attempt.job];
        if before.state.attempt_on(machine) != Some(attempt.number) {
            return assert_unmoved(before, after);
        }
        let reported = match &report.outcome {
            JobOutcome::Completed { digest } => {
                assert_eq!(after.state, JobState::Completed { digest: digest.clone() });
                if matches!(after.kind, JobKind::Build { .. }) {
                    interrupted::check_build_time(&world.core, after);
                }
                return;
            }
            JobOutcome::Failed(JobFailure { reason, .. }) => Some(reason),
            JobOutcome::Cancelled => None,
        };
        let is_last = attempt.number >= after.last_attempt(&world.core.limits);
        if is_last || reported.is_some_and(|reason| !reason.is_transient()) {
            let JobState::Failed(JobFailure { reason, .. }) = &after.state else {
                panic!("{after:?} goes on")
            };
            assert!(reported.is_none_or(|reported| reported == reason), "{reason:?}");
        } else {
            let next = attempt.number + 1;
            let is_next = match after.state {
                JobState::Queued { attempt }
                | JobState::Postponed { attempt, .. }
                | JobState::Provisioning { attempt, .. } => attempt == next,
                // If its arch is not available any more, it fails in the same step.
                JobState::Failed(JobFailure { reason: FailureReason::Emulation, .. }) => {
                    fairness::must_be_native(after) && !fairness::has_native(&world.core, after)
                }
                // A newer run has taken its place, or no machine for previews is left.
                JobState::Cancelled
                | JobState::Failed(JobFailure { reason: FailureReason::Provider, .. }) => {
                    after.kind.is_deploy() || after.kind.is_test()
                }
                _ => false,
            };
            assert!(is_next, "{after:?} is not tried again");
        }
    }
}

/// The attempts that agents held and should stop, and have not reported as stopped.
#[derive(Default)]
pub(crate) struct Strays(BTreeMap<MachineId, BTreeSet<Attempt>>);

impl Strays {
    /// Checks that no registered machine is free before its agent has stopped everything.
    pub(crate) fn check(&mut self, core: &State, event: &Event) {
        match event {
            Event::AgentConnected { machine, holds, .. } => {
                let record = core.machines.get(machine);
                let current = record.and_then(|machine| current(core, machine));
                let exports =
                    record.and_then(|machine| machine.exporting).map(|export| export.attempt);
                let is_stray = |held: &Attempt| Some(*held) != current && Some(*held) != exports;
                let strays = holds.iter().copied().filter(is_stray);
                self.0.insert(*machine, strays.collect());
            }
            Event::JobReported { machine, attempt, report } if !report.exporting_cache => {
                if let Some(strays) = self.0.get_mut(machine) {
                    strays.remove(attempt);
                }
            }
            _ => {}
        }
        let mut free = core.live_machines().filter(|machine| machine.state == MachineState::Ready);
        let is_stopping = |id| self.0.get(id).is_some_and(|strays| !strays.is_empty());
        assert!(
            !free.any(|machine| machine.connected && is_stopping(&machine.id)),
            "a machine is free too soon"
        );
    }
}

/// Whether the effects ask the agent to stop the attempt.
fn is_stopped(id: MachineId, stopped: Attempt, effects: &[Effect]) -> bool {
    let is_stop = |effect: &Effect| match *effect {
        Effect::Cancel { machine, attempt, .. } => (machine, attempt) == (id, stopped),
        _ => false,
    };
    effects.iter().any(is_stop)
}

/// Until when the job waits for capacity.
pub(crate) const fn postponed_until(job: &Job) -> Option<Timestamp> {
    match job.state {
        JobState::Postponed { until, .. } => Some(until),
        _ => None,
    }
}

/// Checks that the job is unchanged, except that it may have got a machine that the step has freed.
fn assert_unmoved(before: &Job, after: &Job) {
    match (&before.state, &after.state) {
        (
            JobState::Queued { attempt: old } | JobState::Postponed { attempt: old, .. },
            JobState::Provisioning { attempt: new, .. },
        ) => {
            assert_eq!(old, new);
        }
        _ => assert_eq!(before, after, "the report of another attempt counted"),
    }
}

impl LiveWork {
    fn of(core: &State, machine: &Machine, event: &Event) -> Option<Self> {
        let attempt = current(core, machine)?;
        let job = core.jobs.get(&attempt.job)?;
        Some(Self {
            machine: machine.clone(),
            attempt,
            job: job.clone(),
            usual: match event {
                Event::MachineInterrupted { .. } => interrupted::usual_time(core, job),
                _ => None,
            },
            is_hasty: job.took_over.is_some()
                && matches!(job.state, JobState::Provisioning { .. })
                && attempt.number < job.last_attempt(&core.limits),
            was_live: job.kind.is_test() && fairness::serves_tested(core, job),
        })
    }

    /// Whether the job begins so late that the lease of its machine would have to be longer, for which a budget may not suffice.
    fn is_late(&self, event: &Event, world: &World) -> bool {
        let limits = &world.core.limits;
        let grace = grace_of(limits, &self.job);
        let needed = world.now.after(self.job.timeout).after(grace).after(limits.job_grace);
        matches!(event, Event::JobStarted { .. })
            && money::has_budget(&world.core)
            && self.machine.lease_until.is_some_and(|lease| lease < needed)
    }

    /// 2. A machine with live work is never swept. Only the machine itself, its limits and the end of the run take an
    ///    attempt from it.
    fn check(&self, world: &World, event: &Event, effects: &[Effect], cancelled: &[RunId]) {
        let Attempt { job, number } = self.attempt;
        let id = self.machine.id;
        let job_after = world.core.jobs.get(&job);
        if job_after.and_then(|job| job.state.attempt_on(id)) == Some(number) {
            assert!(
                !self.must_end(event, world, cancelled),
                "{event:?} left {:?} to {id}",
                self.attempt
            );
            return;
        }
        if self.is_late(event, world) {
            return;
        }
        if self.is_preview_lost(world) {
            assert!(
                self.was_live,
                "{event:?} took {job} from {id} for a preview that did not serve"
            );
        } else {
            assert!(self.may_end(event, world, cancelled), "{event:?} took {job} from {id}");
            self.check_reason(&world.core, event);
        }
        let machine = world.core.machines.get(&id);
        let goes_on = machine.is_some_and(|machine| {
            let exports = machine.exporting.is_some_and(|export| export.attempt == self.attempt);
            !exports
                && machine.connected
                && machine.state == MachineState::Busy { attempt: self.attempt }
        });
        if goes_on {
            assert!(
                is_stopped(id, self.attempt, effects),
                "{id} gets no order to stop {:?}",
                self.attempt
            );
        }
    }

    fn may_end(&self, event: &Event, world: &World, cancelled: &[RunId]) -> bool {
        let id = self.machine.id;
        match event {
            Event::Tick => self.limits(world).into_iter().any(|limit| !is_coming(limit, world)),
            Event::JobReported { machine, attempt, .. } => {
                let is_its_own = *machine == id && self.attempt == *attempt;
                is_its_own || cancelled.contains(&self.job.run)
            }
            // What serves goes on until another machine takes over.
            Event::FilesNeedReset { machine, attempt } => {
                let is_its_own = *machine == id && self.attempt == *attempt;
                is_its_own && self.machine.serves.is_some() && !self.is_running()
            }
            Event::LaunchFailed { machine, .. } => {
                *machine == id && self.machine.state == MachineState::Requested
            }
            Event::AgentConnected { machine, holds, .. } => {
                *machine == id && self.is_running() && !holds.contains(&self.attempt)
            }
            Event::EndedAtLaunch { machine, .. }
            | Event::MachineGone { machine, .. }
            | Event::MachineUnregistered { machine } => *machine == id,
            Event::MachineInterrupted { .. } => self.is_cut(event, world),
            _ => cancelled.contains(&self.job.run) || self.is_dropped(event, world),
        }
    }

    fn must_end(&self, event: &Event, world: &World, cancelled: &[RunId]) -> bool {
        match event {
            Event::Tick => self.limits(world).into_iter().any(|limit| is_over(limit, world)),
            Event::MachineInterrupted { .. } => self.is_cut(event, world),
            _ => cancelled.contains(&self.job.run),
        }
    }

    const fn is_running(&self) -> bool {
        matches!(self.job.state, JobState::Running { .. })
    }

    /// Until when the machine may keep the attempt.
    fn limits(&self, world: &World) -> Vec<Limit> {
        let limits = &world.core.limits;
        let machine = &self.machine;
        let work = self.job.timeout.saturating_add(grace_of(limits, &self.job));
        let limit = match (machine.state, &self.job.state) {
            (MachineState::Requested | MachineState::Booting, _) => {
                Limit::of(machine.requested_at, limits.boot)
            }
            _ if !machine.connected && self.is_hasty => {
                Limit::of(machine.contact_at, Duration::from_secs(10))
            }
            // Its containers go on.
            _ if !machine.connected && machine.serves.is_some() => {
                Limit::of(machine.contact_at, limits.previews.reconnect)
            }
            _ if !machine.connected => Limit::of(machine.contact_at, limits.reconnect_grace),
            (_, JobState::Running { .. }) => {
                Limit::of(self.job.started_at.expect("a running job has started"), work)
            }
            _ => Limit::of(self.job.assigned_at.expect("a busy machine's job is assigned"), work),
        };
        [limit, Limit::lease_of(machine)].into_iter().chain(self.taken_back()).collect()
    }
}

/// How long the agent of the machine may take to stop a job.
fn stop_grace_of(limits: &Limits, machine: &Machine) -> Duration {
    match machine.fleet {
        Fleet::Builder | Fleet::Tester => limits.job_grace,
        // It goes back to what served before.
        Fleet::Preview => limits.job_grace.saturating_add(DEPLOYMENT_RETURN),
    }
}

/// How long an agent may take to end a job that should have ended.
pub(crate) fn grace_of(limits: &Limits, job: &Job) -> Duration {
    let for_more = match job.kind {
        JobKind::Build { .. } | JobKind::Merge { .. } => Duration::ZERO,
        // It goes back to what served before.
        JobKind::Deploy { .. } => DEPLOYMENT_RETURN,
        // It sends what the test has left.
        JobKind::Test { .. } => TEST_RESULTS,
    };
    limits.job_grace.saturating_add(for_more)
}

/// 1. No machine outlives its lease.
fn check_lease(world: &World, before: &Machine, event: &Event) {
    if matches!(event, Event::Tick) && is_over(Limit::lease_of(before), world) {
        let state = world.core.machines.get(&before.id).map(|machine| machine.state);
        let is_ending = matches!(state, Some(MachineState::Terminating | MachineState::Terminated));
        assert!(is_ending, "{} outlives its lease", before.id);
    }
}

/// Since when the agent of a registered machine should have stopped its attempt; `None` if it works or is idle.
fn asked_to_stop_at(core: &State, machine: &Machine) -> Option<Timestamp> {
    let MachineState::Busy { attempt } = machine.state else { return None };
    if machine.kind == MachineKind::Launched || current(core, machine).is_some() {
        return None;
    }
    let asked_at = match machine.exporting.map(|export| export.state) {
        Some(ExportState::Running { .. }) if machine.stopping.is_empty() => return None,
        Some(ExportState::Stopping { since }) => since,
        Some(ExportState::Running { .. }) | None => Timestamp::default(),
    };
    let ended_at = core.jobs.get(&attempt.job).and_then(|job| job.ended_at).unwrap_or_default();
    let stop = machine.stop_requested_at.unwrap_or_default();
    Some(ended_at.max(machine.contact_at).max(asked_at).max(stop))
}

/// A registered machine is free only after its agent's report, or after its reconnect timeout.
fn check_registered(core: &State, before: &Machine, event: &Event) {
    let MachineState::Busy { attempt: busy_with } = before.state else { return };
    let Some(after) = core.machines.get(&before.id) else { return };
    if before.kind != MachineKind::Registered || after.state == before.state {
        return;
    }
    let id = before.id;
    let has_merge = |job: &JobId| core.jobs.get(job).is_some_and(|job| job.took_over.is_some());
    if matches!(&after.state, MachineState::Busy { attempt } if has_merge(&attempt.job)) {
        let exporting = before.exporting.map(|export| export.attempt.job);
        // The next attempt of a merge may go to the builder that has just failed the one before.
        let gave_up = matches!(event, Event::JobReported { machine, attempt, .. }
            if (*machine, *attempt) == (id, busy_with));
        let job = busy_with.job;
        let is_free = exporting == Some(job) || has_ended(core, job) || gave_up;
        assert!(is_free, "{id} is given a merge beside its work");
        return;
    }
    let is_its_own = match event {
        Event::JobReported { machine, attempt, .. } => (*machine, *attempt) == (id, busy_with),
        Event::AgentConnected { machine, .. }
        | Event::FilesNeedReset { machine, .. }
        | Event::MachineUnregistered { machine } => *machine == id,
        Event::Tick => !before.connected,
        _ => false,
    };
    assert!(is_its_own, "{event:?} freed {id}, which is busy with {busy_with:?}");
}

fn has_ended(core: &State, job: JobId) -> bool {
    core.jobs.get(&job).is_some_and(|job| job.state.is_final())
}

/// Whether a limit has passed, even with the grace after a start of core.
fn is_over(limit: Limit, world: &World) -> bool {
    let limits = &world.core.limits;
    let grace = limits.reconnect_grace.saturating_add(limits.job_grace);
    limit.with_grace(world, grace) <= world.now
}

/// Whether a limit has not passed without that grace.
fn is_coming(limit: Limit, world: &World) -> bool {
    limit.with_grace(world, world.core.limits.reconnect_grace) > world.now
}

/// The attempt that the machine has.
pub(crate) fn current(core: &State, machine: &Machine) -> Option<Attempt> {
    let job = machine.job()?;
    let number = core.jobs.get(&job)?.state.attempt_on(machine.id)?;
    Some(Attempt { job, number })
}
