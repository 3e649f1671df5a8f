//! The life of an attempt: assigned, started, reported, failed or cancelled, and what its end means for other jobs.

use std::time::Duration;

use stagely_protocol::{COMMENT_IMAGES_MAX, FailureReason, StoredArtifacts, TestResults};

use super::step::Step;
use super::{
    Attempt, BuildTime, Effect, ExportEvent, JobEvent, JobFailure, JobKind, JobOutcome, JobReport,
    JobState, Limits, LostAttempt, MachineEvent, MachineKind, MachineState, MissingCapacity,
    StopReason, Timestamp,
};
use crate::ids::{JobId, MachineId};

/// Messages of lost attempts are cut after this many characters.
const LOST_MESSAGE_CHARS_MAX: usize = 2_000;

/// The longest wait between two launches for a job while there is no capacity, unless the configuration sets a longer
/// one.
const CAPACITY_WAIT_MAX: Duration = Duration::from_mins(5);

impl Step<'_> {
    /// Sends the job to the agent of `machine`.
    pub(super) fn assign(&mut self, machine: MachineId, job: JobId) {
        let Some(attempt) = self.attempt_of(job, machine) else { return };
        let now = self.now;
        self.move_machine(machine, MachineEvent::Assigned { attempt });
        self.state.change_job(job, |job| {
            job.assigned_at = job.assigned_at.or(Some(now));
            job.missing_capacity = None;
        });
        self.note_generation(job);
        self.emit(Effect::Assign { machine, attempt });
    }

    pub(super) fn attempt_of(&self, job: JobId, machine: MachineId) -> Option<Attempt> {
        let number = self.job_state(job)?.attempt_on(machine)?;
        Some(Attempt { job, number })
    }

    pub(super) fn start_job(&mut self, machine: MachineId, Attempt { job: id, number }: Attempt) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        // An agent reports the start again after a reconnect, and the report may be of an older attempt.
        if job.state != (JobState::Provisioning { attempt: number, machine }) {
            return;
        }
        let now = self.now;
        let deadline = now.after(job.timeout).after(self.state.limits.grace_of(job));
        if !self.extend_lease(machine, deadline) {
            return self.lose_late_start(machine, id);
        }
        if !self.move_job(id, JobEvent::Started { deadline }) {
            return;
        }
        self.state.change_job(id, |job| job.started_at = Some(now));
    }

    /// The job has begun so late that its machine would have to live for longer than was reserved, and the budget does not
    /// suffice for that. The next attempt waits for money.
    fn lose_late_start(&mut self, machine: MachineId, id: JobId) {
        let message = "the job began too late for the lease of its machine, and the budget allows no longer one";
        self.stop_work(machine, id, StopReason::NotWanted);
        self.fail_attempt(id, JobFailure::machine_lost(message));
    }

    pub(super) fn report_job(&mut self, machine: MachineId, attempt: Attempt, report: JobReport) {
        let exports = report.exporting_cache;
        self.store_fingerprint(machine, attempt, &report);
        if self.attempt_of(attempt.job, machine) == Some(attempt) {
            let is_completed = matches!(report.outcome, JobOutcome::Completed { .. });
            self.take_report(machine, attempt.job, report);
            if exports && is_completed {
                self.begin_export(machine, attempt);
            }
            if !self.assign_merge_to_builder(machine, attempt.job) {
                self.release(machine);
            }
        } else if !exports {
            // Otherwise another report of the attempt follows.
            let is_completed = matches!(report.outcome, JobOutcome::Completed { .. });
            self.stopped(machine, attempt, is_completed);
        }
    }

    fn take_report(&mut self, machine: MachineId, id: JobId, report: JobReport) {
        let (results, artifacts) = (report.results, report.artifacts);
        self.state.change_job(id, |job| {
            job.steps = report.steps;
            job.warnings.extend(report.warnings);
            job.cache_miss = report.cache_miss;
        });
        match report.outcome {
            JobOutcome::Completed { digest } => {
                self.note_results(id, results, artifacts);
                self.deployed(id, machine);
                self.complete_job(id, JobEvent::Completed { digest });
            }
            JobOutcome::Failed(failure) => {
                self.note_results(id, results, artifacts);
                self.fail_attempt(id, failure);
            }
            // The job is not cancelled, so the agent itself is being shut down.
            JobOutcome::Cancelled => {
                self.lose_to_restart(machine, id, "the agent was shut down");
            }
        }
    }

    /// The next attempt, if there is one, begins without them.
    fn note_results(
        &mut self,
        id: JobId,
        results: Option<TestResults>,
        artifacts: Option<StoredArtifacts>,
    ) {
        if self.state.jobs.get(&id).is_some_and(|job| job.kind.is_test()) {
            self.state.change_job(id, |job| {
                job.results = results.map(TestResults::bounded);
                job.artifacts = artifacts;
                if let Some(artifacts) = &mut job.artifacts {
                    artifacts.comment_images.truncate(COMMENT_IMAGES_MAX);
                }
            });
        }
    }

    /// The agent has ended an attempt that is not current any more, or an export; or it repeats an earlier report.
    fn stopped(&mut self, id: MachineId, stopped: Attempt, is_completed: bool) {
        let Some(machine) = self.state.machines.get(&id) else { return };
        let is_free = machine.state == MachineState::Busy { attempt: stopped };
        let is_deploy = self.state.jobs.get(&stopped.job).is_some_and(|job| job.kind.is_deploy());
        let is_deployed = is_free && is_completed && is_deploy;
        if let Some(preview) = machine.serves.filter(|_| is_deployed) {
            // A deployment that was stopped too late: the machine runs what the preview does not show.
            self.preview_requests.restore.push(preview);
        }
        let has_exported = machine.exports(stopped);
        if machine.stopping.contains(&stopped) {
            self.state.change_machine(id, |machine| {
                machine.stopping.remove(&stopped);
            });
        }
        if has_exported {
            self.move_export(id, ExportEvent::Ended);
        }
        // A registered machine may still have to stop a merge.
        let is_useless = has_exported && !self.is_registered(id) && self.attempt_on(id).is_none();
        if is_free || is_useless {
            self.release(id);
        }
    }

    /// Fails the job's attempt because its agent was restarted. That uses up an attempt only if the cloud takes the
    /// machine back, or if the job's agents were restarted too often.
    pub(super) fn lose_to_restart(&mut self, machine: MachineId, id: JobId, message: &str) {
        let failure = self.loss_of(machine, message);
        if failure.reason == FailureReason::MachineLost {
            self.state.change_job(id, |job| job.restarted_attempts.push(job.attempt));
        }
        self.fail_attempt(id, failure);
    }

    /// Fails the job's attempt. The job is queued again if the failure is transient and attempts are left.
    pub(super) fn fail_attempt(&mut self, id: JobId, failure: JobFailure) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let (JobState::Provisioning { attempt, .. } | JobState::Running { attempt, .. }) =
            job.state
        else {
            return;
        };
        if failure.reason == FailureReason::NoCapacity && job.assigned_at.is_none() {
            return self.wait_for_capacity(id, attempt, &failure.message);
        }
        if !failure.reason.is_transient() || attempt >= job.last_attempt(&self.state.limits) {
            return self.fail_job(id, failure);
        }
        let JobFailure { reason, message, .. } = failure;
        if !self.move_job(id, JobEvent::AttemptLost) {
            return;
        }
        self.update_interrupted(id);
        let message = cut(&message);
        self.state.change_job(id, |job| {
            job.lost_attempts.push(LostAttempt { attempt, reason, message });
            job.assigned_at = None;
            job.started_at = None;
            job.took_over = None;
            // A result counts once: of the attempt that ends the job.
            job.results = None;
            job.artifacts = None;
        });
    }

    /// Postpones a job whose machine could not be had, or fails the job if capacity has been missing for too long. No
    /// attempt is lost, because no agent got the job.
    fn wait_for_capacity(&mut self, id: JobId, attempt: u32, message: &str) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let (since, launches) =
            job.missing_capacity.as_ref().map_or((self.now, 0), |gap| (gap.since, gap.launches));
        let retry_at = self.state.limits.next_launch(since, self.now);
        // The machine never existed, and so the attempt has no log.
        self.state.change_job(id, |job| job.attempt = attempt - 1);
        let Some(retry_at) = retry_at else {
            let waited = self.now.since(since);
            let message = format!("{}{message}", waited_for_capacity(waited));
            return self.fail_job(id, JobFailure::new(FailureReason::NoCapacity, message));
        };
        if self.move_job(id, JobEvent::CapacityMissing { retry_at }) {
            let gap = MissingCapacity { since, launches: launches + 1, message: cut(message) };
            self.state.change_job(id, |job| job.missing_capacity = Some(gap));
            self.update_interrupted(id);
        }
    }

    /// Queues the jobs again whose wait for capacity is over.
    pub(super) fn resume_postponed(&mut self) {
        let due = self.state.index.postponed.iter().take_while(|(until, _)| *until <= self.now);
        let due: Vec<JobId> = due.map(|(_, job)| *job).collect();
        for job in due {
            self.move_job(job, JobEvent::PostponementOver);
        }
    }

    /// Cancels a job of a run that is being cancelled. The caller ends the other jobs and the run.
    pub(super) fn cancel_job(&mut self, id: JobId) {
        let machine = self.job_state(id).and_then(JobState::machine);
        if let Some(machine) = machine {
            self.stop_work(machine, id, StopReason::RunCancelled);
        }
        self.close_job(id, JobEvent::Cancelled);
    }

    /// Stops the job on `machine`. A launched machine is terminated. A registered machine's agent is asked to stop, and
    /// the machine stays busy until the agent confirms it.
    pub(super) fn stop_work(&mut self, machine: MachineId, job: JobId, reason: StopReason) {
        let Some(record) = self.state.machines.get(&machine) else { return };
        match record.kind {
            MachineKind::Launched if record.serves.is_none() => self.terminate(machine),
            // It goes on serving what it served before.
            MachineKind::Launched | MachineKind::Registered => {
                if let Some(attempt) = self.attempt_of(job, machine) {
                    let now = self.now;
                    self.state
                        .change_machine(machine, |machine| machine.stop_requested_at = Some(now));
                    self.emit(Effect::Cancel { machine, attempt, reason });
                }
            }
        }
    }

    /// Completes a job whose image was reported or is reused.
    pub(super) fn complete_job(&mut self, id: JobId, end: JobEvent) {
        if self.close_job(id, end) {
            self.note_build_time(id);
            self.note_image(id);
            self.settle_run_of(id);
        }
    }

    /// Notes how long a build took, unless a newer run of the environment has built the same.
    fn note_build_time(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(run) = self.state.runs.get(&job.run) else { return };
        let (JobKind::Build { .. }, Some(from), Some(to)) =
            (&job.kind, job.started_at, job.ended_at)
        else {
            return;
        };
        let noted = BuildTime { run: run.id, time: to.since(from), emulated: job.emulated };
        let (environment, name) = (run.environment, job.name.clone());
        self.state.change_environment(environment, |environment| {
            let known = environment.build_times.get(&name);
            if known.is_none_or(|known| known.run <= noted.run) {
                environment.build_times.insert(name, noted);
            }
        });
    }

    /// Fails a job, and the jobs that need it.
    pub(super) fn fail_job(&mut self, id: JobId, failure: JobFailure) {
        if self.close_job(id, JobEvent::Failed(failure)) {
            self.fail_dependents(id);
            self.settle_run_of(id);
        }
    }

    fn settle_run_of(&mut self, id: JobId) {
        if let Some(run) = self.state.jobs.get(&id).map(|job| job.run) {
            self.settle_run(run);
        }
    }

    pub(super) fn close_job(&mut self, id: JobId, end: JobEvent) -> bool {
        let is_closed = self.move_job(id, end);
        if is_closed {
            let now = self.now;
            self.state.change_job(id, |job| job.ended_at = Some(now));
            self.deployment_closed(id);
        }
        is_closed
    }

    fn fail_dependents(&mut self, id: JobId) {
        let Some(failed) = self.state.jobs.get(&id) else { return };
        let reason = FailureReason::DependencyFailed { job: failed.name.clone() };
        let waiting = self
            .state
            .jobs_of(failed.run)
            .filter(|job| job.state.is_waiting() && job.needs.contains(&id));
        let waiting: Vec<JobId> = waiting.map(|job| job.id).collect();
        for job in waiting {
            // A test may need both a build and the deployment that has just failed with it.
            if self.job_state(job).is_some_and(JobState::is_final) {
                continue;
            }
            self.fail_job(job, JobFailure::new(reason.clone(), reason.to_string()));
        }
    }
}

impl Limits {
    /// When the next machine is requested after a launch that found no capacity. The time between two launches grows
    /// with the time that capacity has been missing. `None`: that is too long.
    fn next_launch(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let give_up_at = since.after(self.capacity_limit);
        let shortest = self.capacity_wait;
        let wait = now.since(since).clamp(shortest, shortest.max(CAPACITY_WAIT_MAX));
        (now < give_up_at).then(|| now.after(wait).min(give_up_at))
    }
}

fn waited_for_capacity(waited: Duration) -> String {
    match waited.as_secs() {
        0 => String::new(),
        seconds @ 1..120 => format!("after {seconds} s of waiting for capacity: "),
        seconds => format!("after {} min of waiting for capacity: ", seconds / 60),
    }
}

fn cut(message: &str) -> String {
    message.chars().take(LOST_MESSAGE_CHARS_MAX).collect()
}
