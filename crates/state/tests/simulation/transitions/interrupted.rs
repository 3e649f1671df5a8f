//! Interruptions and failed launches: what they do to machines and their work, and what they must not touch.

use std::time::Duration;

use stagely_protocol::FailureReason;
use stagely_state::{
    Attempt, Effect, Event, Fleet, Interruption, Job, JobFailure, JobKind, JobOutcome, JobState,
    LaunchFailure, Machine, MachineKind, State, Timestamp,
};

use super::{Before, Limit, LiveWork, current, postponed_until};
use crate::world::World;

/// The jobs of an interrupted machine fail this long after its time.
const TAKEN_BACK_GRACE: Duration = Duration::from_secs(10);

/// The longest wait between two launches without capacity.
const CAPACITY_WAIT_MAX: Duration = Duration::from_mins(5);

/// The longest time that a merge takes.
const MERGE_TIME: Duration = Duration::from_secs(30);

impl Before {
    /// A machine's record has the last notice of its agent. Its provider, fleet and arch never change.
    pub(super) fn check_announced(&self, core: &State, event: &Event) {
        for (before, _) in &self.machines {
            let Some(after) = core.machines.get(&before.id) else { continue };
            let fixed = |machine: &Machine| {
                (machine.provider, machine.fleet, machine.arch, machine.on_demand)
            };
            assert_eq!(fixed(before), fixed(after), "{} is another machine", before.id);
            assert_eq!(after.interruption, announced(before, event), "{event:?}");
            match event {
                Event::MachineLaunched { machine, placement: Some(placement) }
                    if *machine == before.id =>
                {
                    assert_eq!(after.placement.as_ref(), Some(placement));
                }
                _ => assert_eq!(after.placement, before.placement),
            }
        }
    }

    /// A job waits for capacity after a failed launch, exactly as long as it should.
    pub(super) fn check_postponed(&self, world: &World, event: &Event) {
        for (id, until) in &self.postponed {
            let Some(job) = world.core.jobs.get(id) else { continue };
            let is_due = *until <= world.now;
            match &job.state {
                JobState::Postponed { until: now, .. } => {
                    assert_eq!(now, until);
                    assert!(!matches!(event, Event::Tick) || !is_due, "{id} waits for ever");
                }
                JobState::Queued { .. } => {
                    assert!(matches!(event, Event::Tick) && is_due, "{id} does not wait");
                }
                JobState::Provisioning { .. } => {
                    // A builder of its build takes the merge over, so it needs no capacity.
                    assert!(is_due || job.took_over.is_some(), "{id} does not wait");
                }
                state => assert!(state.is_final(), "{id} does not wait"),
            }
        }
        let refused = self.refused(event);
        for job in world.core.jobs.values() {
            let Some(until) = postponed_until(job) else { continue };
            if !self.postponed.contains_key(&job.id) {
                assert_eq!(refused.map(|attempt| attempt.job), Some(job.id), "{event:?}");
                self.check_wait(world, job, until);
            }
        }
        if let Some(job) = refused.and_then(|attempt| world.core.jobs.get(&attempt.job)) {
            let is_queued = matches!(job.state, JobState::Queued { .. });
            assert!(!is_queued, "{} is launched again at once", job.id);
        }
    }

    /// The wait grows with the time that capacity has been missing, and ends at the limit. No attempt is lost.
    fn check_wait(&self, world: &World, job: &Job, until: Timestamp) {
        let gap =
            job.missing_capacity.as_ref().expect("a job that waits for capacity says since when");
        let before = self.missing_capacity.get(&job.id);
        let (since, launches) = before.copied().unwrap_or((world.now, 0));
        assert_eq!((gap.since, gap.launches), (since, launches + 1), "{}", job.id);
        let limits = &world.core.limits;
        let give_up_at = since.after(limits.capacity_limit);
        assert!(world.now < give_up_at, "{} waits for ever", job.id);
        let wait = world.now.since(since).clamp(limits.capacity_wait, CAPACITY_WAIT_MAX);
        assert_eq!(until, world.now.after(wait).min(give_up_at), "{} waits for too long", job.id);
    }

    /// The attempt whose launch found no capacity.
    fn refused(&self, event: &Event) -> Option<Attempt> {
        let (Event::LaunchFailed { machine, failure } | Event::EndedAtLaunch { machine, failure }) =
            event
        else {
            return None;
        };
        if matches!(failure, LaunchFailure::Permanent(_) | LaunchFailure::Internal(_)) {
            return None;
        }
        let work = self.work.iter().find(|work| work.machine.id == *machine);
        // A machine whose agent has connected was there.
        work.filter(|work| work.machine.system_info.is_none()).map(|work| work.attempt)
    }

    /// Jobs get only machines without an interruption, and the last attempt gets one on demand, as does a job for which
    /// spot had no capacity.
    pub(super) fn check_machines_of_assigned(&self, core: &State, effects: &[Effect]) {
        for effect in effects {
            let (Effect::Launch { machine } | Effect::Assign { machine, .. }) = effect else {
                continue;
            };
            let machine = &core.machines[machine];
            let Some(attempt) =
                current(core, machine).filter(|attempt| !self.had(machine.id, *attempt))
            else {
                continue;
            };
            // A test on the preview's own machine takes no other machine for a notice that may not come true.
            let stays = core.jobs[&attempt.job].kind.is_test() && machine.fleet == Fleet::Preview;
            let is_taken_back = match machine.interruption {
                None => false,
                Some(Interruption::Likely) => !stays,
                Some(Interruption::Certain { .. }) => true,
            };
            assert!(!is_taken_back, "{} gets {attempt:?}", machine.id);
            if let Effect::Launch { .. } = effect {
                let job = &core.jobs[&attempt.job];
                let launches = job.missing_capacity.as_ref().map_or(0, |gap| gap.launches);
                let is_last = attempt.number + launches >= job.last_attempt(&core.limits);
                assert_eq!(machine.on_demand, is_last, "{attempt:?} is on the wrong market");
                let provider =
                    core.launchable(machine.fleet).find(|(arch, _)| *arch == machine.arch);
                assert_eq!(provider, Some((machine.arch, machine.provider)), "{}", machine.id);
            }
        }
    }

    /// Counts the outcomes of interruptions.
    pub(crate) fn note(&self, world: &mut World, event: &Event) {
        match event {
            Event::MachineInterrupted { machine, interruption: Interruption::Certain { .. } } => {
                let Some(work) = self.work.iter().find(|work| work.machine.id == *machine) else {
                    return world.count("a notice finds no work");
                };
                world.count(match (work.is_cut(event, world), &work.job.kind) {
                    (true, _) => "a notice ends work",
                    (false, JobKind::Build { .. }) => "a build goes on after a notice",
                    (false, JobKind::Merge { .. }) => "a merge goes on after a notice",
                    (false, JobKind::Deploy { .. }) => "a deployment goes on after a notice",
                    (false, JobKind::Test { .. }) => "a test goes on after a notice",
                });
            }
            Event::LaunchFailed { .. } | Event::EndedAtLaunch { .. } => {
                let refused =
                    self.refused(event).and_then(|attempt| world.core.jobs.get(&attempt.job));
                let gave_up = refused.is_some_and(|job| {
                    matches!(job.state, JobState::Failed(_)) && job.missing_capacity.is_some()
                });
                if gave_up {
                    world.count("a launch finds no capacity for too long");
                }
            }
            Event::Tick => {
                let is_late = |work: &LiveWork| {
                    let limit = work.taken_back();
                    limit.is_some_and(|limit| super::is_over(limit, world))
                };
                let is_lease = |(machine, _): &(Machine, Option<Timestamp>)| {
                    super::is_over(Limit::lease_of(machine), world)
                };
                let (late, leases) = (
                    self.work.iter().filter(|work| is_late(work)).count(),
                    self.machines.iter().filter(|machine| is_lease(machine)).count(),
                );
                for _ in 0..late {
                    world.count("work does not end before its machine is taken back");
                }
                for _ in 0..leases {
                    world.count("a lease runs out");
                }
            }
            _ => {}
        }
    }
}

/// The interruption that a machine's record should have after `event`.
fn announced(before: &Machine, event: &Event) -> Option<Interruption> {
    use stagely_state::MachineState::{Terminated, Terminating};
    let old = before.interruption;
    match event {
        Event::MachineInterrupted { machine, interruption } if *machine == before.id => {
            let is_over = matches!(before.state, Terminating | Terminated);
            let is_certain = matches!(old, Some(Interruption::Certain { .. }));
            let is_durable = is_over || is_certain && *interruption == Interruption::Likely;
            if is_durable { old } else { Some(*interruption) }
        }
        Event::AgentConnected { machine, .. }
            if *machine == before.id && before.kind == MachineKind::Registered =>
        {
            None
        }
        _ => old,
    }
}

impl LiveWork {
    /// Until when an interrupted machine may keep the attempt.
    pub(super) fn taken_back(&self) -> Option<Limit> {
        let Some(Interruption::Certain { at }) = self.machine.interruption else { return None };
        Some(Limit { since: self.machine.requested_at, at: at.after(TAKEN_BACK_GRACE) })
    }

    /// 2. Whether a notice takes the attempt from the machine, because it cannot end in time.
    pub(super) fn is_cut(&self, event: &Event, world: &World) -> bool {
        let Event::MachineInterrupted { machine, interruption } = event else { return false };
        let is_new = self.machine.interruption != Some(*interruption);
        match interruption {
            Interruption::Certain { at } if *machine == self.machine.id && is_new => {
                !self.ends_by(*at, world.now)
            }
            _ => false,
        }
    }

    fn ends_by(&self, at: Timestamp, now: Timestamp) -> bool {
        match (&self.job.kind, &self.job.state) {
            (JobKind::Merge { .. }, _) => now.after(MERGE_TIME) <= at,
            (JobKind::Test { test, .. }, _) if test.is_on_preview() => false,
            (JobKind::Build { .. } | JobKind::Test { .. }, JobState::Running { deadline, .. }) => {
                let end = self.usual.zip(self.job.started_at);
                let end = end.map(|(usual, since)| since.after(usual * 5 / 4));
                *deadline <= at || end.is_some_and(|end| (now..=at).contains(&end))
            }
            _ => false,
        }
    }

    /// An attempt that is lost with an interrupted machine has the reason `SpotInterruption`.
    pub(super) fn check_reason(&self, core: &State, event: &Event) {
        let Some(job) = core.jobs.get(&self.attempt.job) else { return };
        let lost = job.lost_attempts.iter().find(|lost| lost.attempt == self.attempt.number);
        let reason = match (lost, &job.state) {
            (Some(lost), _) => &lost.reason,
            (None, JobState::Failed(JobFailure { reason, .. })) => reason,
            _ => return,
        };
        let is_certain = matches!(self.machine.interruption, Some(Interruption::Certain { .. }));
        let is_interruption = *reason == FailureReason::SpotInterruption;
        let should_be = match event {
            Event::MachineInterrupted { .. } | Event::MachineGone { taken_back: true, .. } => true,
            Event::MachineGone { .. } | Event::AgentConnected { .. } => is_certain,
            Event::JobReported { report, .. } if report.outcome == JobOutcome::Cancelled => {
                is_certain
            }
            Event::Tick => is_certain && !matches!(reason, FailureReason::Timeout { .. }),
            _ => false,
        };
        assert_eq!(is_interruption, should_be, "{event:?}: {reason:?}");
    }
}

/// How long the same job took in the newest run of the environment that completed it.
pub(super) fn usual_time(core: &State, job: &Job) -> Option<Duration> {
    let environment = core.runs.get(&job.run)?.environment;
    let usual = core.environments[&environment].build_times.get(&job.name)?;
    (usual.emulated == job.emulated).then_some(usual.time)
}

/// The environment has the time of a build that has just completed, or that of a newer run.
pub(super) fn check_build_time(core: &State, job: &Job) {
    let (Some(from), Some(to)) = (job.started_at, job.ended_at) else { return };
    let environment = core.runs[&job.run].environment;
    let noted = &core.environments[&environment].build_times[&job.name];
    let expected = (to.since(from), job.emulated);
    assert!(noted.run > job.run || (noted.time, noted.emulated) == expected, "{noted:?}");
}
