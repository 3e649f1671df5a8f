//! What happens to a job while a machine has it: begun, reported, lost.

use stagely_agent::protocol::FailureReason;

use super::{JobOutcome, JobReport, JobState, MachineState, State, Timestamp};
use crate::ids::{JobId, MachineId};

impl State {
    pub(super) fn job_started(&mut self, machine: MachineId, id: JobId, now: Timestamp) {
        let Some(job) = self.jobs.get(&id) else { return };
        let JobState::Provisioning { attempt, machine: current } = job.state else { return };
        // A late word of an earlier attempt's machine.
        if current != machine {
            return;
        }
        let deadline = now.after(job.timeout).after(self.limits.job_grace);
        // The lease covers the job and the time to end it: a machine doing live work is never swept.
        let lease = deadline.after(self.limits.job_grace);
        self.change_job(id, |job| {
            job.state = JobState::Running { attempt, machine, deadline };
            job.started_at = Some(now);
        });
        self.change_machine(machine, |machine| {
            machine.lease_until = machine.lease_until.map(|until| until.max(lease));
        });
    }

    pub(super) fn job_reported(
        &mut self,
        machine: MachineId,
        id: JobId,
        report: JobReport,
        now: Timestamp,
    ) {
        if self.machine_of(id) == Some(machine) {
            self.release(machine);
            self.conclude(id, report, now);
        } else if self.machines.get(&machine).map(|machine| machine.state)
            == Some(MachineState::Busy { job: id })
        {
            // The job had ended without its agent, which has stopped now.
            self.release(machine);
        }
    }

    /// The machine that has the job.
    pub(super) fn machine_of(&self, job: JobId) -> Option<MachineId> {
        self.jobs.get(&job).and_then(|job| job.state.machine())
    }

    fn conclude(&mut self, id: JobId, report: JobReport, now: Timestamp) {
        self.change_job(id, |job| {
            job.steps = report.steps;
            job.warnings = report.warnings;
        });
        match report.outcome {
            JobOutcome::Completed { digest } => {
                self.finish_job(id, JobState::Completed { digest }, now);
            }
            JobOutcome::Failed { reason, message, exit_code } => {
                self.end_attempt(id, JobState::Failed { reason, message, exit_code }, now);
            }
            // Nobody asked for it here: the agent was stopped on its machine.
            JobOutcome::Cancelled => self.lose_attempt(id, FailureReason::MachineLost, None, now),
        }
    }

    /// Ends an attempt that came to nothing; `message` defaults to the reason's own words.
    pub(super) fn lose_attempt(
        &mut self,
        id: JobId,
        reason: FailureReason,
        message: Option<String>,
        now: Timestamp,
    ) {
        let message = message.unwrap_or_else(|| reason.to_string());
        self.end_attempt(id, JobState::Failed { reason, message, exit_code: None }, now);
    }

    /// Lets the job go round again, or fails it.
    fn end_attempt(&mut self, id: JobId, failed: JobState, now: Timestamp) {
        let Some(attempt) = self.jobs.get(&id).and_then(|job| job.state.attempt()) else { return };
        let JobState::Failed { reason, .. } = &failed else { return };
        let reason = reason.clone();
        if !reason.is_transient() || attempt >= self.limits.max_attempts {
            self.finish_job(id, failed, now);
            return;
        }
        self.change_job(id, |job| {
            job.lost_attempts.push((attempt, reason));
            job.state = JobState::Queued { attempt: attempt + 1 };
        });
    }
}
