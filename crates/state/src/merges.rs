//! Merges run on a builder of their build if one is still there, so that no machine is launched for them.

use std::time::Duration;

use super::step::Step;
use super::{Job, JobKind, JobState, Limits, Machine, MachineState, State, Timestamp};
use crate::ids::{JobId, MachineId};

/// How long a merge waits for an agent that disconnected before it began. A merge takes a second on any machine, so it
/// does not wait as long as a build.
pub(super) const ABSENT_BUILDER_GRACE: Duration = Duration::from_secs(10);

impl Step<'_> {
    /// Assigns the merge that only waited for `finished` to the machine that has just finished it. Returns false if
    /// there is no such merge, or the machine cannot do it.
    pub(super) fn assign_merge_to_builder(&mut self, id: MachineId, finished: JobId) -> bool {
        let machine = self.state.machines.get(&id);
        let will_do = machine.is_some_and(|machine| self.state.can_merge(machine));
        let merge = self.state.ready_merge_of(finished).filter(|_| will_do);
        let merge = merge.filter(|merge| self.state.may_take_over(id, *merge));
        if let Some(merge) = merge {
            self.take_over(id, merge, finished);
        }
        merge.is_some()
    }

    /// Assigns waiting merges to builders of their build that still export a cache.
    pub(super) fn assign_merges_to_builders(&mut self) {
        while let Some((merge, machine, finished)) = self.state.next_to_take_over() {
            self.take_over(machine, merge, finished);
        }
    }

    fn take_over(&mut self, machine: MachineId, merge: JobId, finished: JobId) {
        let Some(end) = self.state.end_of_merge(merge) else { return };
        self.extend_lease(machine, end);
        self.begin_attempt(merge, machine);
        self.state.change_job(merge, |job| job.took_over = Some(finished));
        self.assign(machine, merge);
    }
}

impl State {
    fn next_to_take_over(&self) -> Option<(JobId, MachineId, JobId)> {
        // Machines are few, however long the queue.
        let mut builders = self.live_machines().filter(|machine| self.can_merge(machine));
        builders.find_map(|machine| {
            let finished = machine.exporting?.attempt.job;
            let merge = self.ready_merge_of(finished)?;
            self.may_take_over(machine.id, merge).then_some((merge, machine.id, finished))
        })
    }

    /// When core ends a merge that begins now.
    fn end_of_merge(&self, merge: JobId) -> Option<Timestamp> {
        let job = self.jobs.get(&merge)?;
        Some(self.stepped_at.after(job.timeout).after(self.limits.job_grace))
    }

    /// Whether the budget suffices for the longer life of the machine.
    fn may_take_over(&self, machine: MachineId, merge: JobId) -> bool {
        self.end_of_merge(merge).is_some_and(|end| self.may_extend_lease(machine, end))
    }

    fn ready_merge_of(&self, finished: JobId) -> Option<JobId> {
        let run = self.jobs.get(&finished)?.run;
        let mut merges = self.jobs_of(run).filter(|job| self.is_ready_merge(job));
        merges.find(|merge| merge.needs.contains(&finished)).map(|merge| merge.id)
    }

    /// Whether the job is a merge that only waits for a machine.
    fn is_ready_merge(&self, job: &Job) -> bool {
        matches!(job.kind, JobKind::Merge { .. })
            && job.state.is_waiting()
            && job.missing_needs(&self.jobs).next().is_none()
    }

    /// Whether the machine is connected and idle, or only exports a cache.
    fn can_merge(&self, machine: &Machine) -> bool {
        let MachineState::Busy { attempt } = machine.state else { return false };
        let has_work = self
            .jobs
            .get(&attempt.job)
            .is_some_and(|job| job.state.attempt_on(machine.id).is_some());
        let will_stay = machine.connected && machine.interruption.is_none();
        will_stay && !machine.has_to_stop() && !has_work
    }
}

impl Job {
    /// Whether the job is a merge that its agent has not begun, and attempts are left for another machine.
    pub(super) fn may_leave_builder(&self, limits: &Limits) -> bool {
        let is_assigned = matches!(self.state, JobState::Provisioning { .. });
        self.took_over.is_some() && is_assigned && self.attempt < self.last_attempt(limits)
    }
}
