//! All jobs of one agent: those that run, and those whose end core has not acknowledged.

mod handle;
mod leftovers;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use stagely_protocol::{
    AgentMessage, FailureReason, LogAck, ResumedJob, RunningJob, Status, StatusState, WireId,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::handle::{JobHandle, SentStatus};
use self::leftovers::{move_leftovers, remove};
use crate::job::{self, JOBS_FOLDER, JobRequest, JobSettings};
use crate::process;
use crate::spool::{Spool, SpoolError};

/// The folder of all spools, in the work folder.
const SPOOLS_FOLDER: &str = "spool";

pub(crate) struct Jobs {
    settings: JobSettings,
    /// Notified when a job has something to send.
    wake: Arc<Notify>,
    handles: BTreeMap<WireId, JobHandle>,
    /// Removes the folders of a former agent.
    cleanup: JoinHandle<()>,
    /// Removes the containers of a former agent.
    _container_cleanup: Option<AbortOnDropHandle<()>>,
}

impl Jobs {
    /// Takes over the work folder of a former agent: keeps the ends of jobs that it could not report, and
    /// removes everything else.
    ///
    /// # Errors
    /// If the work folder cannot be used.
    pub(crate) fn recover(settings: JobSettings, wake: Arc<Notify>) -> io::Result<Self> {
        fs::create_dir_all(settings.work_dir.join(SPOOLS_FOLDER))?;
        let leftovers = move_leftovers(&settings.work_dir)?;
        // A build of the former agent that still runs would push its image over that of the next attempt.
        // Without leftovers no agent has worked here, and the first HELLO need not wait for the search.
        if !leftovers.is_empty() {
            process::kill_leftovers(&settings.machine);
        }
        let has_leftovers = !leftovers.is_empty();
        let container_cleanup = has_leftovers.then(|| {
            let remove = job::remove_leftovers(settings.clone());
            AbortOnDropHandle::new(tokio::spawn(remove))
        });
        // In the background: checkouts are large, and core waits for HELLO.
        let remove_all = move || leftovers.iter().for_each(|path| remove(path));
        let cleanup = tokio::task::spawn_blocking(remove_all);
        let mut jobs = Self {
            settings,
            wake,
            handles: BTreeMap::new(),
            cleanup,
            _container_cleanup: container_cleanup,
        };
        jobs.recover_spools()?;
        Ok(jobs)
    }

    fn recover_spools(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.settings.work_dir.join(SPOOLS_FOLDER))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(job_id) = name.parse::<WireId>() else {
                remove(&path);
                continue;
            };
            match Spool::recover(path.clone(), job_id.clone(), Arc::clone(&self.wake)) {
                Ok(Some(spool)) => {
                    tracing::info!(job = %job_id, "the end of this job is still to be reported");
                    let job = JobHandle::new(Arc::new(spool), CancellationToken::new(), None);
                    self.handles.insert(job_id, job);
                }
                Ok(None) => remove(&path),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::warn!(job = %job_id, "cannot read this job's spool: {error:#}");
                    remove(&path);
                }
            }
        }
        Ok(())
    }

    /// The jobs that HELLO lists.
    pub(crate) fn running(&self) -> Vec<RunningJob> {
        let wanted = self.handles.iter().filter(|(_, job)| !job.is_discarded);
        wanted.map(|(job_id, _)| RunningJob { job_id: job_id.clone() }).collect()
    }

    /// Starts a job. `false`: the job is known already, and nothing happens.
    ///
    /// # Errors
    /// If its spool cannot be created.
    pub(crate) fn start(&mut self, request: JobRequest) -> Result<bool, SpoolError> {
        let job_id = request.job_id().clone();
        if self.handles.contains_key(&job_id) {
            return Ok(false);
        }
        let folder = self.spool_folder(&job_id);
        let spool = Arc::new(Spool::create(folder, job_id.clone(), Arc::clone(&self.wake))?);
        let cancel = CancellationToken::new();
        let task = spawn(request, self.settings.clone(), Arc::clone(&spool), cancel.clone());
        self.handles.insert(job_id, JobHandle::new(spool, cancel, Some(task)));
        Ok(true)
    }

    fn spool_folder(&self, job_id: &WireId) -> PathBuf {
        self.settings.work_dir.join(SPOOLS_FOLDER).join(job_id.as_str())
    }

    /// Stops a job, which then reports itself cancelled. `false`: there is no such job.
    pub(crate) fn cancel(&self, job_id: &WireId) -> bool {
        let job = self.handles.get(job_id);
        if let Some(job) = job {
            job.cancel.cancel();
        }
        job.is_some()
    }

    /// A session has opened: continues each log at the line that core wants, and stops the jobs that core does
    /// not list.
    pub(crate) fn resume(&mut self, resumed: &[ResumedJob]) {
        for (job_id, job) in &mut self.handles {
            job.reset_connection();
            let next = resumed.iter().find(|resumed| resumed.job_id == *job_id);
            match next.map(|resumed| job.spool.resume(resumed.next_line)) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    job.abandon_log(&error);
                    let error = anyhow::Error::new(error);
                    tracing::error!(job = %job_id, "cannot continue this job's log: {error:#}");
                }
                None => {
                    tracing::info!(job = %job_id, "core does not want this job any more");
                    job.discard();
                }
            }
        }
    }

    /// Core has stored lines.
    pub(crate) fn acknowledge(&mut self, ack: &LogAck) {
        if let Some(job) = self.handles.get_mut(&ack.job_id) {
            job.acknowledge(ack.lines);
        }
    }

    /// Core has stored the STATUS of a job that was sent last.
    pub(crate) fn acknowledge_status(&mut self, job_id: &WireId) {
        let Some(job) = self.handles.get_mut(job_id) else { return };
        match job.unacknowledged_status.take() {
            // Core also acknowledges the STATUS `running`, which is not recorded.
            None => {}
            Some(SentStatus::Pushed) => job.spool.acknowledge_pushed(),
            Some(SentStatus::Final) => {
                job.spool.remove();
                self.handles.remove(job_id);
            }
        }
    }

    /// The messages that are due, at most `messages_max`, and when to call again without a wake-up.
    pub(crate) fn due(&mut self, messages_max: usize) -> (Vec<String>, Option<Instant>) {
        let (mut messages, mut next, now) = (Vec::new(), None, Instant::now());
        self.handles.retain(|_, job| !job.remove_if_discarded());
        for (job_id, job) in self.handles.iter_mut().filter(|(_, job)| !job.is_discarded) {
            while messages.len() < messages_max
                && let Some(batch) = job.batch_due(job_id, now)
            {
                messages.push(AgentMessage::Log(batch.log(job_id)).to_json());
            }
            // One STATUS at a time: STATUS_ACK does not say which of two it acknowledges.
            if messages.len() < messages_max
                && job.unacknowledged_status.is_none()
                && let Some(status) = job.spool.status_due()
            {
                let sent =
                    if status.exporting_cache { SentStatus::Pushed } else { SentStatus::Final };
                job.unacknowledged_status = Some(sent);
                messages.push(AgentMessage::Status(status).to_json());
            }
            next = [next, job.next_batch_at()].into_iter().flatten().min();
        }
        // With a full queue the writer wakes us. Overdue lines must not make the caller spin until then.
        let next = next.filter(|_| messages.len() < messages_max);
        (messages, next)
    }

    /// Stops all jobs and waits for them. None of them reports its end, because the machine was at fault. Jobs
    /// whose image is pushed have completed, and report that.
    pub(crate) async fn stop_all(&mut self) {
        for job in self.handles.values_mut().filter(|job| !job.spool.is_finished()) {
            job.cancel.cancel();
            // The image may be pushed before the job has stopped. Then core only makes a needless attempt.
            job.is_discarded |= !job.spool.is_pushed();
        }
        for job in self.handles.values_mut() {
            if let Some(task) = job.task.take()
                && let Err(error) = task.await
            {
                tracing::error!(%error, "a job's task panicked");
            }
        }
        self.handles.retain(|_, job| !job.remove_if_discarded());
    }

    /// Removes everything from disk. All jobs must have stopped.
    pub(crate) async fn remove_all(&mut self) {
        self.handles.clear();
        if let Err(error) = (&mut self.cleanup).await {
            tracing::error!(%error, "cannot remove the folders of a former agent");
        }
        remove(&self.settings.work_dir.join(SPOOLS_FOLDER));
        remove(&self.settings.work_dir.join(JOBS_FOLDER));
    }
}

fn spawn(
    request: JobRequest,
    settings: JobSettings,
    spool: Arc<Spool>,
    cancel: CancellationToken,
) -> JoinHandle<()> {
    let (job_id, sink) = (request.job_id().clone(), Arc::clone(&spool));
    let job = tokio::spawn(async move { job::run(request, &settings, sink, &cancel).await });
    tokio::spawn(async move {
        // A panic must end the job, too: core would wait for its end.
        let status = job.await.unwrap_or_else(|error| Status {
            error: Some(FailureReason::Internal),
            error_message: Some(format!("the job's task panicked: {error}")),
            ..Status::new(job_id.clone(), StatusState::Failed)
        });
        tracing::info!(job = %job_id, state = ?status.state, "job ended");
        if let Err(error) = spool.finish(status) {
            let error = anyhow::Error::new(error);
            tracing::error!(job = %job_id, "cannot write the job's end to disk: {error:#}");
        }
    })
}

#[cfg(test)]
mod tests;
