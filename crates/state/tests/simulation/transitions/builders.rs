//! Builders after their job has completed: they export its cache, and merge.

use stagely_state::ids::RunId;
use stagely_state::{
    Attempt, Effect, Event, ExportState, JobKind, Machine, MachineKind, MachineState, State,
};

use super::{Before, Limit, current, is_coming, is_over, is_stopped};
use crate::money;
use crate::world::World;

/// An export that core has not asked the agent to stop.
pub(super) struct Export {
    machine: Machine,
    attempt: Attempt,
    run: RunId,
    limit: Limit,
}

impl Before {
    /// An export is ended by its agent, by a limit, or by the end of its run, and by nothing else.
    pub(super) fn check_export(
        &self,
        world: &World,
        export: &Export,
        event: &Event,
        effects: &[Effect],
        cancelled: &[RunId],
    ) {
        let (id, attempt) = (export.machine.id, export.attempt);
        let work = self.work.iter().find(|work| work.machine.id == id);
        let limits = || {
            export
                .limits(world)
                .into_iter()
                .chain(work.into_iter().flat_map(|work| work.limits(world)))
        };
        let is_cancelled = cancelled.contains(&export.run);
        let has_ended = match event {
            Event::JobReported { machine, attempt: reported, report } => {
                (*machine, *reported) == (id, attempt) && !report.exporting_cache
            }
            Event::AgentConnected { machine, session, holds, .. } => {
                let is_newest = world.volatile.newest.get(machine) == Some(session);
                *machine == id && is_newest && !holds.contains(&attempt)
            }
            Event::Tick => export.limits(world).into_iter().any(|limit| is_over(limit, world)),
            _ => false,
        };
        let must_end = is_cancelled || has_ended;
        let after = world.core.machines.get(&id).filter(|machine| {
            let export = machine.exporting.filter(|export| export.attempt == attempt);
            export.is_some_and(|export| !export.is_stopping())
        });
        if after.is_some() {
            assert!(!must_end, "{event:?} lets {id} export {attempt:?}");
            return;
        }
        let may_end = match event {
            Event::Tick => limits().any(|limit| !is_coming(limit, world)),
            Event::JobReported { machine, attempt: reported, report } => {
                let is_its_own = (*machine, *reported) == (id, attempt);
                is_cancelled || (is_its_own && !report.exporting_cache)
            }
            Event::AgentConnected { machine, holds, .. } => {
                *machine == id && !holds.contains(&attempt)
            }
            Event::EndedAtLaunch { machine, .. }
            | Event::MachineGone { machine, .. }
            | Event::MachineUnregistered { machine } => *machine == id,
            // A launched machine is terminated with the work that it has beside the export.
            Event::MachineInterrupted { machine, .. } => {
                *machine == id && work.is_some_and(|work| work.is_cut(event, world))
            }
            _ => is_cancelled,
        };
        assert!(may_end, "{event:?} ends the export of {attempt:?} on {id}");
        let must_stop = world.core.machines.get(&id).is_some_and(|machine| {
            machine.kind == MachineKind::Registered
                && machine.connected
                && is_stopping(machine, attempt)
        });
        assert!(
            !must_stop || is_stopped(id, attempt, effects),
            "{id} gets no order to stop exporting"
        );
    }

    /// No machine is launched for a merge while a builder of its build is idle.
    pub(super) fn check_merges(&self, world: &World, event: &Event, effects: &[Effect]) {
        let core = &world.core;
        for effect in effects {
            let machine = match effect {
                Effect::Launch { machine } | Effect::Assign { machine, .. } => {
                    &core.machines[machine]
                }
                _ => continue,
            };
            let Some(attempt) =
                current(core, machine).filter(|attempt| !self.had(machine.id, *attempt))
            else {
                continue;
            };
            let job = &core.jobs[&attempt.job];
            // A budget may not suffice for the longer life of a builder, and for another machine later.
            let is_merge = matches!(job.kind, JobKind::Merge { .. }) && !money::has_budget(core);
            if !is_merge || job.took_over.is_some() {
                continue;
            }
            let idle = core.live_machines().find(|builder| {
                let exporting = builder.exporting.map(|export| export.attempt.job);
                builder.connected
                    && builder.interruption.is_none()
                    && !has_to_stop(builder)
                    && current(core, builder).is_none()
                    && exporting.is_some_and(|exporting| job.needs.contains(&exporting))
            });
            assert!(idle.is_none(), "{} could merge for {}", idle.expect("some").id, job.id);
            if let Event::JobReported { machine: last, attempt: finished, .. } = event
                && job.needs.contains(&finished.job)
                && let Some((before, _)) =
                    self.machines.iter().find(|(machine, _)| machine.id == *last)
                && self
                    .work
                    .iter()
                    .any(|work| work.attempt.job == finished.job && work.machine.id == *last)
            {
                let is_busy = matches!(before.state, MachineState::Busy { .. });
                let will_stay = before.connected && before.interruption.is_none();
                let will_do = will_stay && !has_to_stop(before) && is_busy;
                assert!(!will_do, "{last} has just finished and could merge for {}", job.id);
            }
        }
    }
}

/// Whether the agent has yet to stop `attempt`, or to stop exporting its cache.
fn is_stopping(machine: &Machine, attempt: Attempt) -> bool {
    let export = machine.exporting.filter(|export| export.attempt == attempt);
    machine.stopping.contains(&attempt) || export.is_some_and(|export| export.is_stopping())
}

fn has_to_stop(machine: &Machine) -> bool {
    !machine.stopping.is_empty() || machine.exporting.is_some_and(|export| export.is_stopping())
}

impl Export {
    pub(super) fn of(core: &State, machine: &Machine) -> Option<Self> {
        let export = machine.exporting?;
        let ExportState::Running { deadline } = export.state else { return None };
        let job = core.jobs.get(&export.attempt.job)?;
        let limit = Limit { since: job.ended_at.expect("the job completed"), at: deadline };
        let machine = machine.clone();
        Some(Self { machine, attempt: export.attempt, run: job.run, limit })
    }

    /// Until when the machine may go on.
    fn limits(&self, world: &World) -> Vec<Limit> {
        let machine = &self.machine;
        let grace = world.core.limits.reconnect_grace;
        // Work beside it has a shorter limit at times.
        let silence = (!machine.connected).then(|| Limit::of(machine.contact_at, grace));
        [self.limit, Limit::lease_of(machine)].into_iter().chain(silence).collect()
    }
}
