//! What a step may do to a preview, compared with its record before.

use std::time::Duration;

use stagely_state::ids::JobId;
use stagely_state::{
    CancelReason, CommandKind, Event, Generation, Interruption, Job, JobState, Preview,
    PreviewCommand, PreviewState, Run, RunState, State, Trigger,
};

use super::Before;
use crate::money;
use crate::world::World;

/// A preview gives its machine to another one only after this time without use.
const EVICTION_IDLE: Duration = Duration::from_mins(5);

impl Before {
    pub(super) fn check_previews(&self, world: &World, event: &Event) {
        for before in self.previews.values() {
            let Some(after) = world.core.previews.get(&before.id) else {
                // Without a machine it ends in the same step. An archive that is given up leaves it without one.
                let is_served = matches!(
                    before.state,
                    PreviewState::Live { .. } | PreviewState::Updating { .. }
                );
                assert!(!is_served, "{} is forgotten", before.id);
                continue;
            };
            check_shown(&world.core, before, after);
            check_sleep(world, before, after, event);
            check_links(&world.core, before, after, event);
            self.check_wake(&world.core, before, event);
            assert!(after.last_generation >= before.last_generation);
            assert!(after.key_number >= before.key_number);
        }
    }

    /// Counts what happens to previews.
    pub(crate) fn note_previews(&self, world: &mut World, event: &Event) {
        let core = &world.core;
        let mut counted = Vec::new();
        for before in self.previews.values() {
            let Some(after) = core.previews.get(&before.id) else { continue };
            counted.extend(happened(before, after, event));
        }
        let mut new_ends = core.jobs.values().filter(|job| !self.ended_jobs.contains(&job.id));
        if new_ends.any(|job| job.kind.is_deploy() && job.state == JobState::Cancelled) {
            counted.push("a deployment is cancelled");
        }
        for what in counted {
            world.count(what);
        }
    }

    /// A preview that sleeps wakes only for an authorised request, for its tests, or with what it showed before, after a
    /// deployment that failed at once.
    fn check_wake(&self, core: &State, before: &Preview, event: &Event) {
        let is_wake = |run: &&Run| {
            run.environment == before.environment
                && run.trigger == Trigger::Wake
                && !self.runs.contains(&run.id)
        };
        if before.state == PreviewState::Asleep && core.runs.values().any(|run| is_wake(&run)) {
            let after = core.previews.get(&before.id);
            let is_tested = after.is_some_and(|after| open_tests(core, after).next().is_some());
            let mut new_ends = core.jobs.values().filter(|job| !self.ended_jobs.contains(&job.id));
            let falls_back = new_ends.any(|job| {
                job.kind.is_deploy()
                    && matches!(job.state, JobState::Failed(_))
                    && core.runs[&job.run].environment == before.environment
            });
            let is_wanted = is_wake_request(event, before) || is_tested || falls_back;
            assert!(is_wanted, "{event:?} wakes {}", before.id);
        }
    }
}

/// Only a deployment that completed is shown, and none of a superseded or older run takes its place.
fn check_shown(core: &State, before: &Preview, after: &Preview) {
    let Some(shown) = after.shown.as_ref().filter(|_| after.shown != before.shown) else {
        return;
    };
    let id = after.id;
    let adopted = before.shown.as_ref().map(|former| Generation {
        run: shown.run,
        requested_at: shown.requested_at,
        ..former.clone()
    });
    if adopted.as_ref() == Some(shown) {
        return check_adopted(core, after);
    }
    assert_eq!(shown.number, before.last_generation, "{id} shows an older attempt");
    let run = &core.runs[&shown.run];
    assert!(!matches!(run.state, RunState::Cancelled { .. }), "{id} shows a cancelled run");
    let mut jobs = core.jobs_of(run.id).filter(|job| job.kind.is_deploy());
    let is_deployed = |job: &JobState| matches!(job, JobState::Completed { .. });
    assert!(jobs.all(|job| is_deployed(&job.state)), "{id} shows what is not deployed");
    let environment = &core.environments[&after.environment];
    let is_newest = environment.newest_run == Some(run.id);
    let is_later = |former: &Preview| {
        former.shown.as_ref().is_none_or(|former| shown.requested_at >= former.requested_at)
    };
    // The clock may have been set back between the two requests, and while the deployment was under way a newer run
    // may have come.
    let was_begun = before.state.job().is_some();
    assert!(is_newest || was_begun || is_later(before), "{id} goes back to an older run");
    if let Some(former) = &before.shown
        && run.trigger.is_of_preview()
    {
        assert_eq!(shown.commit, former.commit, "{id} shows another commit after a restart");
        assert_eq!(shown.requested_at, former.requested_at);
    }
}

/// The newest run of the environment has taken the deployment of an earlier run over.
fn check_adopted(core: &State, preview: &Preview) {
    let shown = preview.shown.as_ref().expect("it shows something");
    let newest = core.environments[&preview.environment].newest_run;
    assert_eq!(newest, Some(shown.run), "{} is taken over by an older run", preview.id);
    let mut jobs = core.jobs_of(shown.run).filter(|job| job.kind.is_deploy());
    assert!(jobs.all(|job| job.reused_from.is_some()), "{} is deployed", preview.id);
    assert_eq!(core.runs[&shown.run].created_at, shown.requested_at);
    assert_eq!(core.runs[&shown.run].commit.as_ref(), Some(&shown.commit));
}

/// The links change when the preview begins again, and when somebody wants fresh data.
fn check_links(core: &State, before: &Preview, after: &Preview, event: &Event) {
    if after.key_number == before.key_number {
        return;
    }
    // A reset that a newer deployment has overtaken is done once more.
    let was_overtaken = |run: &Run| {
        let reason = CancelReason::Superseded;
        run.trigger == Trigger::Reset
            && run.environment == after.environment
            && run.state == RunState::Cancelled { reason }
    };
    let is_reset = is_reset_request(event, before) || core.runs.values().any(was_overtaken);
    // It may end, begin and fail in one step.
    let begins = before.state == PreviewState::Ended
        || matches!(after.state, PreviewState::Deploying { .. } | PreviewState::Failed { .. });
    assert!(begins || is_reset, "{} changes its links", after.id);
}

fn is_reset_request(event: &Event, preview: &Preview) -> bool {
    match event {
        Event::PreviewResetRequested { preview: requested } => *requested == preview.id,
        Event::CommandChecked { environment, command, .. } => {
            *environment == preview.environment
                && command.kind == CommandKind::Preview { action: PreviewCommand::Reset }
        }
        _ => false,
    }
}

/// A live preview goes to sleep only for a reason, and one that is in use never for another one.
fn check_sleep(world: &World, before: &Preview, after: &Preview, event: &Event) {
    let core = &world.core;
    let (
        PreviewState::Live { machine } | PreviewState::Updating { machine, .. },
        PreviewState::Archiving { wakes, .. },
    ) = (before.state, after.state)
    else {
        return;
    };
    let id = after.id;
    let machine = &core.machines[&machine];
    let is_taken_back = matches!(machine.interruption, Some(Interruption::Certain { .. }));
    let is_asked = is_sleep_request(event);
    let settings = before.settings().expect("it shows something");
    let idle = |after| before.active_at.after(after) <= world.now;
    let is_idle = settings.sleep_after.is_some_and(idle);
    let is_evicted = settings.sleep_after.is_some() && idle(EVICTION_IDLE);
    let limits = &core.limits.previews;
    let ends = machine
        .lease_until
        .is_some_and(|lease| lease.before(limits.archive.saturating_mul(2)) <= world.now);
    if wakes {
        let mut jobs = core.jobs.values();
        let moves = jobs.any(|job| {
            let is_its_own = core.runs[&job.run].environment == after.environment;
            job.kind.is_deploy() && is_its_own && !job.state.is_final()
        });
        assert!(is_taken_back || ends || moves, "{id} moves for nothing");
    } else {
        assert!(open_tests(core, before).next().is_none(), "{id} sleeps while it is tested");
        let is_short = ends && money::has_budget(core);
        assert!(is_asked || is_idle || is_evicted || is_short, "{id} sleeps while it is in use");
    }
}

/// The tests of what the preview shows that have not ended, and wait for no other job.
pub(crate) fn open_tests<'a>(
    core: &'a State,
    preview: &'a Preview,
) -> impl Iterator<Item = &'a Job> {
    let shown = preview.shown.as_ref().map(|shown| shown.requested_at);
    let is_completed = |id: &JobId| matches!(core.jobs[id].state, JobState::Completed { .. });
    core.jobs.values().filter(move |job| {
        let tested = job.kind.test().and_then(|test| test.preview_of);
        tested.is_some()
            && tested == shown
            && core.runs[&job.run].environment == preview.environment
            && !job.state.is_final()
            && job.needs.iter().all(is_completed)
    })
}

/// The change of a preview, for the counts.
fn happened(before: &Preview, after: &Preview, event: &Event) -> Option<&'static str> {
    use PreviewState as S;
    Some(match (before.state, after.state) {
        (S::Updating { machine, .. }, S::Live { machine: now }) if now != machine => {
            "a preview takes over another machine"
        }
        (S::Updating { .. }, S::Live { .. }) if before.shown == after.shown => {
            "an update ends in vain"
        }
        (S::Archiving { .. }, S::Live { .. }) => "an archive fails and the preview serves on",
        (S::Archiving { .. }, S::Asleep | S::Waking { .. })
            if matches!(event, Event::PreviewArchiveFailed { .. }) =>
        {
            "an archive fails that is not needed"
        }
        (S::Live { .. }, S::Archiving { wakes: true, .. }) => "a preview moves",
        (S::Live { .. }, S::Archiving { wakes: false, .. })
            if !matches!(event, Event::Tick) && !is_sleep_request(event) =>
        {
            "a preview sleeps for another one"
        }
        (S::Failed { .. }, S::Ended | S::Ending) => "a failed preview ends",
        _ => return None,
    })
}

fn is_sleep_request(event: &Event) -> bool {
    match event {
        Event::PreviewSleepRequested { .. } => true,
        Event::CommandChecked { command, .. } => {
            command.kind == CommandKind::Preview { action: PreviewCommand::Sleep }
        }
        _ => false,
    }
}

fn is_wake_request(event: &Event, preview: &Preview) -> bool {
    match event {
        Event::PreviewRequested { preview: requested, .. }
        | Event::PreviewWakeRequested { preview: requested } => *requested == preview.id,
        Event::CommandChecked { environment, command, .. } => {
            *environment == preview.environment
                && command.kind == CommandKind::Preview { action: PreviewCommand::Start }
        }
        _ => false,
    }
}
