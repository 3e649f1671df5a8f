//! The invariants of previews and of the machines that serve them.

use stagely_state::{
    Fleet, JobState, Machine, MachineKind, MachineState, Preview, PreviewState, State, Timestamp,
    UsedImage,
};

use crate::transitions::open_tests;
use crate::world::World;

pub(super) fn check(world: &World) {
    let core = &world.core;
    core.previews.values().for_each(|preview| check_preview(world, preview));
    core.live_machines().for_each(|machine| check_machine(core, machine));
    let mut environments: Vec<_> =
        core.previews.values().map(|preview| preview.environment).collect();
    environments.sort_unstable();
    let count = environments.len();
    environments.dedup();
    assert_eq!(count, environments.len(), "an environment has two previews");
}

fn check_preview(world: &World, preview: &Preview) {
    let core = &world.core;
    let id = preview.id;
    let serving: Vec<&Machine> =
        core.live_machines().filter(|machine| machine.serves == Some(id)).collect();
    let environment = core.environments.get(&preview.environment);
    let environment = environment.expect("a preview has an environment");
    if let Some(job) = preview.state.job() {
        let job = core.jobs.get(&job).expect("a deployment under way is there");
        assert!(!job.state.is_final(), "{id} waits for a job that has ended");
        assert_eq!(core.runs[&job.run].environment, preview.environment, "{id} deploys another");
    }
    match preview.state {
        // A live preview has exactly one machine, and two while it is replaced.
        PreviewState::Live { machine }
        | PreviewState::Updating { machine, .. }
        | PreviewState::Archiving { machine, .. } => {
            let ids: Vec<_> = serving.iter().map(|machine| machine.id).collect();
            assert_eq!(ids, [machine], "{id} is served by others");
            let is_there =
                matches!(serving[0].state, MachineState::Ready | MachineState::Busy { .. });
            assert!(is_there, "{id} is served by a machine that ends");
            assert!(preview.shown.is_some(), "{id} shows nothing");
            assert!(!environment.state.is_closed(), "{id} outlives its pull request");
            if let PreviewState::Updating { machine, job } = preview.state {
                let takes_over = core.jobs[&job].state.machine().filter(|other| *other != machine);
                let takes_over = takes_over.map(|other| &core.machines[&other]);
                assert!(
                    takes_over.is_none_or(|other| other.serves.is_none()),
                    "{id} is served twice"
                );
                assert!(!core.jobs[&job].state.is_waiting(), "{id} is updated by nothing");
            }
        }
        PreviewState::Deploying { .. } | PreviewState::Waking { .. } => {
            assert!(serving.is_empty(), "{id} is served");
            assert!(!environment.state.is_closed(), "{id} outlives its pull request");
        }
        PreviewState::Asleep => {
            assert!(serving.is_empty(), "{id} sleeps on a machine");
            assert!(preview.shown.is_some(), "{id} cannot wake");
            assert!(!environment.state.is_closed(), "{id} outlives its pull request");
        }
        PreviewState::Failed { .. } => {
            assert!(serving.is_empty(), "{id} has a machine");
            assert!(!environment.state.is_closed(), "{id} outlives its pull request");
        }
        PreviewState::Ending | PreviewState::Ended => {
            assert!(serving.is_empty(), "{id} has a machine");
            assert!(preview.archive.is_none() && preview.shown.is_none(), "{id} keeps data");
            assert_eq!(preview.extended_until, None, "{id} is extended");
            assert_eq!(preview.data_loss, None, "{id} has no data");
        }
    }
    check_end(world, preview);
    // Requests go only to a generation that completed.
    if let Some(shown) = &preview.shown {
        assert!(shown.number <= preview.last_generation);
        let mut images = shown.deployment.used_images();
        let is_known = images.all(|image| matches!(image, UsedImage::Image { .. }));
        assert!(is_known, "{id} shows unknown images");
    }
}

/// The next timeout is no later than the preview's own.
fn check_end(world: &World, preview: &Preview) {
    let core = &world.core;
    let next = core.next_deadline();
    let comes_by = |due: Timestamp| next.is_some_and(|next| next <= due);
    let id = preview.id;
    match preview.state {
        PreviewState::Failed { .. } => {
            let end = preview.ends_at().expect("it ends");
            assert!(comes_by(end), "{id} does not end");
        }
        PreviewState::Asleep => {
            assert!(preview.ends_at().is_some_and(comes_by), "{id} does not end");
        }
        PreviewState::Live { machine } => {
            let is_tested = open_tests(core, preview).next().is_some();
            assert!(is_tested || preview.ends_at().is_some_and(comes_by), "{id} does not end");
            let sleep_after = preview.settings().and_then(|settings| settings.sleep_after);
            let retry_at = preview.archive_retry_at.unwrap_or_default();
            let sleep = sleep_after.map(|after| preview.active_at.after(after).max(retry_at));
            assert!(is_tested || sleep.is_none_or(comes_by), "{id} does not sleep");
            let lease = core.machines[&machine].lease_until;
            let lease = lease.map(|lease| {
                let sleep = lease.before(core.limits.previews.archive).max(retry_at);
                // Otherwise the machine ends with its lease, but not before agents could report after a start of core.
                let limits = &core.limits;
                let patience = limits.reconnect_grace.saturating_add(limits.job_grace);
                let end = lease.max(world.started_at.after(patience));
                if sleep <= lease { sleep } else { end }
            });
            assert!(lease.is_none_or(comes_by), "{id} stays for too long");
        }
        _ => {}
    }
}

fn check_machine(core: &State, machine: &Machine) {
    let id = machine.id;
    if let Some(preview) = machine.serves {
        assert_eq!(machine.fleet, Fleet::Preview, "{id} is of another fleet");
        let preview = core.previews.get(&preview).expect("a served preview has a record");
        let of_state = match preview.state {
            PreviewState::Archiving { machine, .. } => Some(machine),
            state => state.machine(),
        };
        assert_eq!(of_state, Some(id), "{id} serves a preview that does not know it");
        let lease = machine.lease_until.is_some();
        assert_eq!(lease, machine.kind == MachineKind::Launched);
    }
    if let MachineState::Busy { attempt } = machine.state
        && let Some(job) = core.jobs.get(&attempt.job)
        && !matches!(job.state, JobState::Cancelled)
    {
        assert_eq!(machine.fleet, job.kind.fleet(), "{id} works for another fleet");
    }
}

/// Whether no preview has a machine, or will get one without a request.
pub(super) fn are_at_rest(core: &State) -> bool {
    core.previews.values().all(|preview| {
        matches!(
            preview.state,
            PreviewState::Asleep | PreviewState::Ended | PreviewState::Failed { .. }
        )
    })
}
