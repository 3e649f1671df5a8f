//! The invariants that must hold after every step. Numbers are those of the design.

mod github;
mod previews;
mod tests;

use std::time::Duration;

use stagely_protocol::{Arch, Digest, FailureReason};
use stagely_state::ids::JobId;
use stagely_state::{
    Approval, Attempt, Changes, Effect, Environment, Event, ExportState, Fleet, Interruption, Job,
    JobFailure, JobKind, JobState, Machine, MachineKind, MachineState, ProviderName, QueueReason,
    Run, RunState, Snapshot, State, TEST_RESULTS, Timestamp,
};

use crate::agents::digest;
use crate::world::World;
use crate::{fairness, money, plans, transitions};

pub(crate) use self::github::Memory;

pub(crate) fn check(world: &World, event: &Event) {
    let core = &world.core;
    check_machines(world);
    core.jobs.values().for_each(|job| check_job(core, job));
    core.jobs.values().for_each(|job| check_taken_over(world, job));
    core.runs.values().for_each(|run| check_run(core, run));
    check_outbox(core);
    check_queue(core);
    check_launchable(world);
    previews::check(world);
    tests::check(core);
    if matches!(event, Event::Tick) {
        let next = core.next_deadline();
        assert!(next.is_none_or(|next| next > world.now), "a tick leaves {next:?} undone");
    }
}

/// 1. Every machine has a record. 3. At most `max_concurrent` exist.
fn check_machines(world: &World) {
    let core = &world.core;
    let recorded = core.machines.values().filter(|machine| !machine.state.is_terminated());
    assert!(recorded.map(|machine| machine.id).eq(core.live_machines().map(|machine| machine.id)));
    let (builders, previews) = (core.limits.max_concurrent, core.limits.previews.max_concurrent);
    let launched = || core.live_machines().filter(|machine| machine.kind == MachineKind::Launched);
    let recorded = launched().filter(|machine| !world.swept.contains(&machine.id));
    let recorded = recorded.filter(|machine| machine.fleet == Fleet::Preview).count();
    assert!(recorded <= previews as usize, "{recorded} preview machines, and {previews} allowed");
    let max = builders as usize;
    let testers = core.limits.max_testers as usize;
    for (fleet, max) in [(Fleet::Builder, max), (Fleet::Tester, testers)] {
        let launched = launched().filter(|machine| machine.fleet == fleet);
        let counted = launched.filter(|machine| !world.swept.contains(&machine.id)).count();
        assert!(counted <= max, "{counted} {fleet} machines are recorded, and {max} allowed");
    }
    let strays = &world.cloud.strays;
    let expected = world.cloud.alive().filter(|id| !strays.contains(id)).collect::<Vec<_>>();
    let all = max + previews as usize + testers;
    assert!(expected.len() <= all, "{expected:?} exist, and {all} are allowed");
    for id in expected {
        let record = core.machines.get(&id);
        assert!(
            record.is_some_and(|machine| !machine.state.is_terminated()),
            "{id} is alive without a live record"
        );
    }
    core.live_machines().for_each(|machine| check_machine(core, machine));
}

fn check_machine(core: &State, machine: &Machine) {
    let id = machine.id;
    let job = transitions::current(core, machine).and_then(|attempt| core.jobs.get(&attempt.job));
    let has_work = job.is_some();
    let is_launched = machine.kind == MachineKind::Launched;
    match machine.state {
        MachineState::Requested | MachineState::Booting => assert!(is_launched && has_work),
        MachineState::Ready => {
            assert!(!has_work && (!is_launched || machine.serves.is_some()), "{id} idles");
        }
        MachineState::Busy { .. } => {
            let may_idle = machine.exporting.is_some() || machine.serves.is_some();
            assert!(has_work || !is_launched || may_idle, "{id} idles");
        }
        MachineState::Terminating => assert!(is_launched && !has_work),
        MachineState::Terminated => assert!(!has_work),
    }
    assert_eq!(is_launched, machine.lease_until.is_some());
    assert_eq!(is_launched, machine.requested_for.is_some());
    assert_eq!(machine.terminated_at, None);
    if let (Some(lease), Some(job)) = (machine.lease_until, job) {
        check_lease(core, machine, job, lease);
    }
    if let Some(export) = machine.exporting {
        assert!(matches!(machine.state, MachineState::Busy { .. }), "{id} exports and is not busy");
        let end = match export.state {
            ExportState::Running { deadline } => deadline,
            ExportState::Stopping { since } => since,
        };
        assert!(machine.lease_until.is_none_or(|lease| lease > end), "{id} is swept");
        assert!(!machine.stopping.contains(&export.attempt), "{id} stops the export twice");
        let job = core.jobs.get(&export.attempt.job);
        let is_completed = |job: &Job| {
            matches!(job.state, JobState::Completed { .. }) && job.attempt == export.attempt.number
        };
        assert!(job.is_none_or(is_completed), "{id} exports for {job:?}");
        if let Some(Interruption::Certain { at }) = machine.interruption {
            assert!(export.is_stopping() || end <= at, "{id} exports after its end");
        }
    }
}

/// 1. A lease ends, and 2. not before the work must.
fn check_lease(core: &State, machine: &Machine, job: &Job, lease: Timestamp) {
    let limits = &core.limits;
    let grace = transitions::grace_of(limits, job);
    let work = job.timeout.saturating_add(grace);
    let was_there = job.took_over.is_some() || machine.serves.is_some();
    let latest_end = if was_there {
        job.assigned_at.expect("its agent was there").after(work)
    } else {
        machine.requested_at.after(limits.boot).after(work)
    };
    assert!(lease >= latest_end, "{} is swept alive", machine.id);
    let mut longest = machine.requested_at.after(limits.lease).max(latest_end.after(grace));
    if let Some(finished) = job.took_over.and_then(|finished| core.jobs.get(&finished)) {
        let build = finished.timeout.saturating_add(limits.job_grace);
        let first = machine.requested_at.after(limits.boot).after(build).after(grace);
        let begun = finished.started_at.unwrap_or_default().after(build).after(grace);
        let export = finished.ended_at.unwrap_or_default().after(limits.cache_export).after(grace);
        longest = longest.max(first).max(begun).max(export);
    }
    if let JobState::Running { deadline, .. } = job.state {
        assert!(lease >= deadline, "{} is swept alive", machine.id);
        longest = longest.max(deadline.after(grace));
    }
    if let Some(preview) = machine.serves.and_then(|preview| core.previews.get(&preview)) {
        longest = longest.max(preview.active_at.after(limits.previews.lease).after(grace));
        // Its earlier deployments and tests had leases of their own, and those of forgotten deployments are shorter than
        // the preview's.
        let is_earlier = |other: &&Job| {
            let run = core.runs.get(&other.run);
            other.kind.fleet() == Fleet::Preview
                && run.is_some_and(|run| run.environment == preview.environment)
        };
        let first = machine.requested_at.after(limits.boot);
        for other in core.jobs.values().filter(is_earlier) {
            let began = other.started_at.unwrap_or_default().max(first);
            let grace = transitions::grace_of(limits, other);
            longest = longest.max(began.after(other.timeout).after(grace));
            let deployed = other.ended_at.unwrap_or_default();
            longest = longest.max(deployed.after(limits.previews.lease));
        }
        let forgotten_test = plans::TIMEOUT_MAX.saturating_add(TEST_RESULTS);
        longest = longest.after(grace).after(grace).after(grace).after(forgotten_test);
    }
    assert!(lease <= longest, "{} is paid for too long: {lease:?}, not {longest:?}", machine.id);
}

/// An arch can be launched if it is configured, unless its provider has only other arches.
fn check_launchable(world: &World) {
    let limits = &world.core.limits;
    let is_there = |(arch, provider): &(Arch, ProviderName)| {
        let described = world.volatile.described.get(provider);
        described.is_none_or(|arches| arches.is_empty() || arches.contains(arch))
    };
    let fleets = [
        (Fleet::Builder, &limits.launchable),
        (Fleet::Preview, &limits.launchable_previews),
        (Fleet::Tester, &limits.launchable_testers),
    ];
    for (fleet, configured) in fleets {
        let configured = configured.iter().map(|(arch, provider)| (*arch, *provider));
        assert!(world.core.launchable(fleet).eq(configured.filter(is_there)), "{fleet}");
    }
}

/// No job waits for a machine that is free.
fn check_queue(core: &State) {
    for queued in core.queue() {
        assert_ne!(queued.reason, QueueReason::Nothing, "{} could be served", queued.job);
        check_postponed(core, &core.jobs[&queued.job], &queued.reason);
    }
    let has_slot = |job: &Job| {
        let fleet = job.kind.fleet();
        let machines = fairness::machines_in(core, fleet);
        let launched = machines.filter(|machine| machine.kind == MachineKind::Launched);
        launched.count() < core.limits.max_of(fleet) as usize
    };
    let idle = |job: &Job| {
        let machines = fairness::machines_in(core, job.kind.fleet());
        let mut ready = machines.filter(|machine| machine.state == MachineState::Ready);
        ready.any(|machine| machine.connected && fairness::could_use(core, job, machine))
    };
    for job in core.jobs.values().filter(|job| fairness::must_be_native(job)) {
        let is_queued = matches!(job.state, JobState::Queued { .. });
        let mut live = fairness::machines_in(core, Fleet::Builder);
        let has_any = core.launchable(Fleet::Builder).next().is_some()
            || live.any(|machine| machine.kind == MachineKind::Registered);
        let may_be_served = !has_any || fairness::has_native(core, job);
        assert!(!is_queued || may_be_served, "{} waits for an arch without a machine", job.id);
    }
    for job in core.jobs.values().filter(|job| fairness::is_ready(core, job)) {
        assert!(!idle(job), "{} waits beside an idle machine", job.id);
        let is_free = has_slot(job) && !money::is_short_of_money(core, job.id);
        assert!(!is_free || !fairness::may_launch(core, job), "{} may have a machine", job.id);
    }
}

/// The queue shows the jobs that wait for capacity, and their wait ends.
fn check_postponed(core: &State, job: &Job, reason: &QueueReason) {
    match (transitions::postponed_until(job), reason) {
        (Some(postponed), QueueReason::Capacity { since, retry_at, give_up_at }) => {
            let gap = job.missing_capacity.as_ref().expect("it says since when");
            let end = gap.since.after(core.limits.capacity_limit);
            assert_eq!((*since, *retry_at, *give_up_at), (gap.since, postponed, end));
            assert!(core.next_deadline().is_some_and(|next| next <= postponed), "no timeout fires");
        }
        (postponed, reason) => {
            let is_capacity = matches!(reason, QueueReason::Capacity { .. });
            assert!(postponed.is_none() && !is_capacity, "{} waits for {reason:?}", job.id);
        }
    }
}

/// 5. A job runs on at most one machine at a time, and only reports of its newest attempt count.
fn check_job(core: &State, job: &Job) {
    let run = core.runs.get(&job.run).expect("a job has a run");
    assert_eq!(job.state.is_final(), job.ended_at.is_some());
    let attempts_max = job.last_attempt(&core.limits);
    assert!(job.attempt <= attempts_max && attempts_max <= core.limits.max_attempts + 2);
    let lost = job.lost_attempts.iter().map(|lost| lost.attempt);
    assert!(lost.eq((1..).take(job.lost_attempts.len())), "{:?}", job.lost_attempts);
    assert!(job.lost_attempts.iter().all(|lost| lost.reason.is_transient()));
    let lost = u32::try_from(job.lost_attempts.len()).expect("few");
    let mut needed = job.needs.iter().map(|id| &core.jobs.get(id).expect("needs exist").state);
    match &job.state {
        JobState::Queued { attempt } | JobState::Postponed { attempt, .. } => {
            assert_eq!((*attempt, job.attempt), (lost + 1, lost));
            let is_open =
                matches!(run.state, RunState::Building | RunState::Deploying | RunState::Testing);
            assert!(is_open, "{} waits in a run that has ended", job.id);
            let is_hopeless =
                |state: &JobState| state.is_final() && !matches!(state, JobState::Completed { .. });
            assert!(!needed.any(is_hopeless), "{} waits in vain", job.id);
        }
        JobState::Provisioning { attempt, machine }
        | JobState::Running { attempt, machine, .. } => {
            assert_eq!((*attempt, job.attempt), (lost + 1, lost + 1));
            assert!(needed.all(|state| matches!(state, JobState::Completed { .. })));
            let machine = core.machines.get(machine).expect("a job's machine has a record");
            let held = transitions::current(core, machine).map(|attempt| attempt.job);
            assert_eq!(held, Some(job.id), "{} has another job", machine.id);
            if let MachineState::Busy { attempt: busy_with, .. } = machine.state {
                assert_eq!(
                    busy_with.number, *attempt,
                    "{} is busy with another attempt",
                    machine.id
                );
            }
            let is_native = fairness::is_native(job, machine.arch);
            assert!(is_native || !fairness::must_be_native(job), "{} is on a wrong arch", job.id);
            assert_eq!(job.emulated, !is_native, "{}", job.id);
            if let JobState::Running { deadline, .. } = job.state {
                let started_at = job.started_at.expect("a running job has started");
                let grace = transitions::grace_of(&core.limits, job);
                let time = started_at.after(job.timeout).after(grace);
                assert_eq!(deadline, time, "{} gets more time, or less", job.id);
            }
        }
        JobState::Completed { digest: pushed } => check_completed(core, job, pushed.as_ref()),
        JobState::Cancelled => {
            let is_cancelled = matches!(run.state, RunState::Cancelled { .. });
            let may_be_dropped = job.kind.is_deploy() || job.kind.is_test();
            assert!(is_cancelled || may_be_dropped, "{} is stopped unasked", job.id);
        }
        // Before the last attempt, a job fails only for a reason that is not transient, or after a long wait for capacity.
        JobState::Failed(JobFailure { reason: FailureReason::NoCapacity, .. }) => {
            let gap = job.missing_capacity.as_ref().map_or(job.ended_at, |gap| Some(gap.since));
            let limit = gap.map(|since| since.after(core.limits.capacity_limit));
            assert!(limit <= job.ended_at, "{} could wait for longer", job.id);
        }
        JobState::Failed(JobFailure { reason, .. }) => {
            let may_go_on = reason.is_transient() && job.attempt < attempts_max;
            assert!(!may_go_on, "{} has attempts left", job.id);
        }
    }
}

/// The digest is that of the job's newest attempt, or of the job whose image was reused.
fn check_completed(core: &State, job: &Job, pushed: Option<&Digest>) {
    if let Some(origin) = job.reused_from {
        if job.kind.image().is_some() {
            let image = digest(Attempt { job: origin, number: 0 }).to_string();
            let made = pushed.map(ToString::to_string).expect("an image with a digest is reused");
            assert_eq!(made[..39], image[..39], "{} reuses another image", job.id);
        }
        let needs = job.needs.iter().map(|needed| &core.jobs[needed]);
        assert!(needs.clone().all(|needed| needed.reused_from.is_some()), "{} is outdated", job.id);
        if let (JobKind::Build { uses, .. }, Some(JobKind::Build { uses: before, .. })) =
            (&job.kind, core.jobs.get(&origin).map(|origin| &origin.kind))
        {
            assert_eq!(uses, before, "{} stands on other images", job.id);
        }
        return;
    }
    let has_image =
        job.kind.image().is_some() && !matches!(job.kind, JobKind::Build { push: false, .. });
    assert_eq!(
        pushed,
        has_image.then(|| digest(Attempt { job: job.id, number: job.attempt })).as_ref(),
        "an older one counted"
    );
}

/// A merge that took over a machine has the machine of a job that it needs.
fn check_taken_over(world: &World, job: &Job) {
    let Some(finished) = job.took_over else { return };
    assert!(matches!(job.kind, JobKind::Merge { .. }) && job.needs.contains(&finished));
    assert!(!job.state.is_waiting(), "{} has no machine", job.id);
    let machine = |job: JobId| {
        let number = world.core.jobs.get(&job)?.attempt;
        world.given.get(&Attempt { job, number })
    };
    if let (Some(has), Some(had)) = (machine(job.id), machine(finished)) {
        assert_eq!(has, had, "{} took over another machine", job.id);
    }
}

/// 4. Every run reaches an end, and the right one.
fn check_run(core: &State, run: &Run) {
    assert_eq!(run.state.is_final(), run.ended_at.is_some());
    let is_awaited = run.approval == Approval::Awaited;
    let is_cancelled = matches!(run.state, RunState::Cancelled { .. });
    assert!(is_cancelled || is_awaited == (run.state == RunState::AwaitingApproval), "{}", run.id);
    let all_ended = core.jobs_of(run.id).all(|job| job.state.is_final());
    let has_jobs = core.jobs_of(run.id).next().is_some();
    // A deployment that nobody wants any more is no failure, and neither are its tests.
    let is_late = |job: &Job| job.kind.is_deploy() || job.kind.is_test();
    let is_dropped = |job: &Job| is_late(job) && job.state == JobState::Cancelled;
    let is_completed =
        |job: &Job| matches!(job.state, JobState::Completed { .. }) || is_dropped(job);
    let all_completed = || core.jobs_of(run.id).all(is_completed);
    match &run.state {
        RunState::Building => assert!(has_jobs && (!all_ended || waits_for_tag(core, run))),
        RunState::Deploying => {
            let mut open = core.jobs_of(run.id).filter(|job| !job.state.is_final()).peekable();
            let waits = open.peek().is_some() || waits_for_tag(core, run);
            assert!(waits && open.all(is_late), "{} builds", run.id);
        }
        RunState::Testing => {
            let mut open = core.jobs_of(run.id).filter(|job| !job.state.is_final()).peekable();
            let waits = open.peek().is_some() || waits_for_tag(core, run);
            assert!(waits && open.all(|job| job.kind.is_test()), "{} is not tested", run.id);
        }
        RunState::Completed => assert!(all_completed() && !waits_for_tag(core, run)),
        RunState::AwaitingApproval
        | RunState::Pending
        | RunState::Deferred { .. }
        | RunState::Planning { .. }
        | RunState::Failed { plan_error: Some(_) } => assert!(!has_jobs),
        RunState::Failed { plan_error: None } => {
            assert!(all_ended && !all_completed() && !waits_for_tag(core, run));
        }
        RunState::Cancelled { .. } => assert!(all_ended),
    }
}

/// Whether a reference is being moved to an image of the run.
fn waits_for_tag(core: &State, run: &Run) -> bool {
    core.outbox.values().any(|effect| match effect {
        Effect::Tag { environment, variant } => {
            core.environments[environment].images[variant].run == run.id
        }
        _ => false,
    })
}

/// The outbox holds exactly the effects that the records wait for.
fn check_outbox(core: &State) {
    let count = |wanted: &Effect| core.outbox.values().filter(|effect| *effect == wanted).count();
    for run in core.runs.values() {
        let is_planned = matches!(run.state, RunState::Planning { .. });
        assert_eq!(count(&Effect::Plan { run: run.id }), usize::from(is_planned), "{}", run.id);
    }
    check_planning(core);
    for machine in core.live_machines() {
        let launches = count(&Effect::Launch { machine: machine.id });
        let ends = count(&Effect::Terminate { machine: machine.id });
        match machine.state {
            MachineState::Requested => assert_eq!((launches, ends), (1, 0)),
            MachineState::Terminating => assert_eq!(launches + ends, 1),
            MachineState::Busy { .. } => assert!(launches <= 1 && ends == 0),
            MachineState::Ready if machine.serves.is_some() => {
                assert!(launches <= 1 && ends == 0);
            }
            MachineState::Booting | MachineState::Ready | MachineState::Terminated => {
                assert_eq!((launches, ends), (0, 0));
            }
        }
    }
    for effect in core.outbox.values() {
        let is_wanted = match effect {
            Effect::Plan { run } => core.runs.contains_key(run),
            Effect::Launch { machine } | Effect::Terminate { machine } => {
                core.machines.get(machine).is_some_and(|machine| !machine.state.is_terminated())
            }
            Effect::Tag { environment, variant } => core
                .environments
                .get(environment)
                .is_some_and(|environment| environment.images.contains_key(variant)),
            Effect::CleanUp { environment }
            | Effect::Report { environment }
            | Effect::CheckCommand { environment, .. } => {
                core.environments.contains_key(environment)
            }
            Effect::Assign { .. }
            | Effect::Cancel { .. }
            | Effect::Sleep { .. }
            | Effect::Retire { .. }
            | Effect::Disconnect { .. } => false,
        };
        assert_eq!(count(effect), 1, "{effect:?} is asked for twice");
        assert!(is_wanted, "no record waits for {effect:?}");
    }
}

/// At most `planned_at_once` runs are planned at once, and no run waits while fewer are.
fn check_planning(core: &State) {
    let is_planned = |run: &&Run| matches!(run.state, RunState::Planning { .. });
    let planned: Vec<_> = core.runs.values().filter(is_planned).collect();
    let is_waiting = |run: &&Run| run.state == RunState::Pending;
    let waiting: Vec<_> = core.runs.values().filter(is_waiting).collect();
    let max = core.limits.planned_at_once;
    assert!(planned.len() <= max, "{planned:?} are planned, and {max} allowed");
    assert!(waiting.is_empty() || planned.len() == max, "{waiting:?} wait for nothing");
}

/// Ended records do not change.
pub(crate) fn check_history(disk: &Snapshot, core: &State, changes: &Changes) {
    for id in &changes.jobs {
        if let (Some(old), Some(new)) = (disk.jobs.get(id), core.jobs.get(id)) {
            // A warning about a tag may be added while the run is open.
            let is_run_open = disk.runs.get(&old.run).is_some_and(|run| !run.state.is_final());
            let warnings = if is_run_open { new.warnings.clone() } else { old.warnings.clone() };
            // The rest of the cost follows when its machine is gone.
            let old = Job { warnings, cost: new.cost, ..old.clone() };
            assert!(!old.state.is_final() || old == *new, "{id} changed after its end");
            assert_eq!(old.queued_at, new.queued_at, "{id} loses its position in the queue");
        }
    }
    for id in &changes.runs {
        if let (Some(old), Some(new)) = (disk.runs.get(id), core.runs.get(id)) {
            assert!(!old.state.is_final() || old == new, "{id} changed after its end");
        }
    }
}

/// The committed records are those of the state.
pub(crate) fn check_disk(disk: &Snapshot, core: &State) {
    assert_eq!(disk.projects, *core.projects);
    assert_eq!(disk.environments, *core.environments);
    assert_eq!(disk.runs, *core.runs);
    assert_eq!(disk.jobs, *core.jobs);
    assert_eq!(disk.machines, *core.machines);
    assert_eq!(disk.previews, *core.previews);
    assert_eq!(disk.deliveries, *core.deliveries);
    assert_eq!(disk.outbox, *core.outbox);
}

/// 1. Without faults, no machine exists for longer than its lease and a sweep need.
pub(crate) fn check_leases(world: &World, round: u32) {
    // Leases that ended before are found in the first rounds.
    const ROUNDS: u32 = 5;
    const SWEEP: Duration = Duration::from_secs(10);
    for id in world.cloud.alive().filter(|_| round >= ROUNDS) {
        let record = world.core.machines.get(&id);
        assert!(record.is_some(), "{id} is alive without a record");
        let lease = record.and_then(|record| record.lease_until);
        // No agent could report while core was down.
        let limits = &world.core.limits;
        let patience = limits.reconnect_grace.saturating_add(limits.job_grace);
        let lease = lease.map(|lease| lease.max(world.started_at.after(patience)));
        let is_over = lease.is_none_or(|lease| lease.after(SWEEP) < world.now);
        assert!(!is_over, "{id} outlives its lease");
    }
}

/// Whether every run has ended and no launched machine is left.
pub(crate) fn is_over(world: &World) -> bool {
    let core = &world.core;
    // A run without approval waits for ever.
    let may_rest = |run: &Run| run.state.is_final() || run.state == RunState::AwaitingApproval;
    let is_clean = |environment: &Environment| {
        !environment.state.is_closed()
            || environment.cache_refs.is_empty() && !environment.has_images
    };
    core.runs.values().all(may_rest)
        && core.outbox.is_empty()
        && core.environments.values().all(is_clean)
        && core.live_machines().all(|machine| machine.kind == MachineKind::Registered)
        && previews::are_at_rest(core)
        && core.live_machines().all(|machine| machine.exporting.is_none())
        && world.cloud.alive().next().is_none()
}
