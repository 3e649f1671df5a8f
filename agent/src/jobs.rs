//! All jobs of one agent: those that run, and those whose end core has not acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stagely_protocol::{
    AgentMessage, FailureReason, LogAck, ResumedJob, RunningJob, Status, StatusState, WireId,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::job::{self, JOBS_FOLDER, Work, Workplace};
use crate::process;
use crate::spool::{LineBatch, Spool, SpoolError};

/// The folder of all spools, in the work folder.
const SPOOLS_FOLDER: &str = "spool";

/// Begins the name of what is still to be removed of a former agent, in the work folder.
const ASIDE_PREFIX: &str = "jobs.old.";

/// A waiting line is sent after this long, though its batch is not full.
const BATCH_DELAY: Duration = Duration::from_millis(50);

/// Batches of one job that may be on their way unacknowledged. Core acknowledges after a commit of
/// some milliseconds; sixteen full batches keep it busy meanwhile.
const WINDOW: usize = 16;

/// The jobs of one agent.
pub(crate) struct Jobs {
    place: Workplace,
    /// Notified when a job has something to send.
    wake: Arc<Notify>,
    known: BTreeMap<WireId, Job>,
    /// Removes what a former agent left.
    cleaning: JoinHandle<()>,
}

struct Job {
    spool: Arc<Spool>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
    /// Core does not want it any more: nothing is sent, and it is removed when it has ended.
    unwanted: bool,
    waiting_since: Option<Instant>,
    /// The line after each batch on its way.
    in_flight: VecDeque<u64>,
    /// The STATUS that was sent on this connection and is not acknowledged.
    sent: Option<Sent>,
}

/// Which STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The image is pushed, and another STATUS follows.
    First,
    /// The job has ended.
    End,
}

impl Job {
    fn new(spool: Arc<Spool>, cancel: CancellationToken, task: Option<JoinHandle<()>>) -> Self {
        Self {
            spool,
            cancel,
            task,
            unwanted: false,
            waiting_since: None,
            in_flight: VecDeque::new(),
            sent: None,
        }
    }
}

impl Jobs {
    /// Takes over what a former agent left in the work folder: the ends of jobs that it could not
    /// report are kept, everything else is removed.
    ///
    /// # Errors
    /// When the work folder cannot be used.
    pub(crate) fn recover(place: Workplace, wake: Arc<Notify>) -> io::Result<Self> {
        fs::create_dir_all(place.work_dir.join(SPOOLS_FOLDER))?;
        let leftovers = set_leftovers_aside(&place.work_dir)?;
        // A build that goes on would push its image over that of the next attempt. Where no agent
        // has worked there is nothing to look for, and the first HELLO is not held up.
        if !leftovers.is_empty() {
            process::kill_leftovers(&place.machine);
        }
        // Checkouts are large, and core waits for HELLO.
        let clean = move || leftovers.iter().for_each(|path| remove(path));
        let cleaning = tokio::task::spawn_blocking(clean);
        let mut jobs = Self { place, wake, known: BTreeMap::new(), cleaning };
        jobs.recover_spools()?;
        Ok(jobs)
    }

    fn recover_spools(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.place.work_dir.join(SPOOLS_FOLDER))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(job_id) = name.parse::<WireId>() else {
                remove(&path);
                continue;
            };
            match Spool::recover(path.clone(), job_id.clone(), Arc::clone(&self.wake)) {
                Ok(Some(spool)) => {
                    tracing::info!(job = %job_id, "the end of this job is still to be reported");
                    let job = Job::new(Arc::new(spool), CancellationToken::new(), None);
                    self.known.insert(job_id, job);
                }
                Ok(None) => remove(&path),
                Err(error) => {
                    tracing::warn!(job = %job_id, %error, "this job's spool cannot be read");
                    remove(&path);
                }
            }
        }
        Ok(())
    }

    /// The jobs that HELLO names.
    pub(crate) fn running(&self) -> Vec<RunningJob> {
        let wanted = self.known.iter().filter(|(_, job)| !job.unwanted);
        wanted.map(|(job_id, _)| RunningJob { job_id: job_id.clone() }).collect()
    }

    /// Starts a job. `false`: it is known already, and nothing happens.
    ///
    /// # Errors
    /// When its spool cannot be made.
    pub(crate) fn start(&mut self, work: Work) -> Result<bool, SpoolError> {
        let job_id = work.job_id().clone();
        if self.known.contains_key(&job_id) {
            return Ok(false);
        }
        let folder = self.spool_folder(&job_id);
        let spool = Arc::new(Spool::create(folder, job_id.clone(), Arc::clone(&self.wake))?);
        let cancel = CancellationToken::new();
        let task = spawn(work, self.place.clone(), Arc::clone(&spool), cancel.clone());
        self.known.insert(job_id, Job::new(spool, cancel, Some(task)));
        Ok(true)
    }

    fn spool_folder(&self, job_id: &WireId) -> PathBuf {
        self.place.work_dir.join(SPOOLS_FOLDER).join(job_id.as_str())
    }

    /// Stops a job, which then reports itself cancelled. `false`: there is no such job.
    pub(crate) fn cancel(&self, job_id: &WireId) -> bool {
        let job = self.known.get(job_id);
        if let Some(job) = job {
            job.cancel.cancel();
        }
        job.is_some()
    }

    /// A session has opened: logs go on where core says, and jobs that core does not name stop.
    pub(crate) fn resume(&mut self, resumed: &[ResumedJob]) {
        for (job_id, job) in &mut self.known {
            job.in_flight.clear();
            job.waiting_since = None;
            job.sent = None;
            let next = resumed.iter().find(|resumed| resumed.job_id == *job_id);
            match next.map(|resumed| job.spool.resume(resumed.next_line)) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::error!(job = %job_id, %error, "this job's log cannot go on");
                    job.give_up(&error);
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
        let Some(job) = self.known.get_mut(&ack.job_id) else { return };
        while job.in_flight.front().is_some_and(|&end| end <= ack.lines) {
            job.in_flight.pop_front();
        }
        job.spool.acknowledge(ack.lines);
    }

    /// Core has stored the STATUS of a job that was sent last.
    pub(crate) fn status_acknowledged(&mut self, job_id: &WireId) {
        // Core acknowledges that a job runs, too, and nothing that was not sent.
        match self.known.get_mut(job_id).and_then(|job| job.sent.take()) {
            None => {}
            Some(Sent::First) => self.known[job_id].spool.acknowledge_pushed(),
            Some(Sent::End) => {
                if let Some(job) = self.known.remove(job_id) {
                    job.spool.remove();
                }
            }
        }
    }

    /// The messages that are due, at most `room`, and when to ask again though nobody wakes us.
    pub(crate) fn due(&mut self, room: usize) -> (Vec<String>, Option<Instant>) {
        let (mut messages, mut next, now) = (Vec::new(), None, Instant::now());
        self.known.retain(|_, job| !job.is_spent());
        for (job_id, job) in self.known.iter_mut().filter(|(_, job)| !job.unwanted) {
            while messages.len() < room
                && let Some(batch) = job.batch_due(job_id, now)
            {
                messages.push(AgentMessage::Log(batch.log(job_id)).to_json());
            }
            // One after the other: an acknowledgement does not say which of them it is for.
            if messages.len() < room
                && job.sent.is_none()
                && let Some(status) = job.spool.status_due()
            {
                job.sent = Some(if status.exporting_cache { Sent::First } else { Sent::End });
                messages.push(AgentMessage::Status(status).to_json());
            }
            let again = job.waiting_since.filter(|_| job.in_flight.len() < WINDOW);
            next = [next, again.map(|since| since + BATCH_DELAY)].into_iter().flatten().min();
        }
        // Without room the writer wakes us; what is overdue must not keep us spinning until then.
        let next = next.filter(|_| messages.len() < room);
        (messages, next)
    }

    /// Stops all jobs and waits for them. None of these reports its end: the machine was at fault.
    /// Those whose image is pushed have completed.
    pub(crate) async fn stop_all(&mut self) {
        for job in self.known.values_mut().filter(|job| !job.spool.is_finished()) {
            job.cancel.cancel();
            // It may be pushed by the time it has stopped; then its attempt is only made again.
            job.unwanted |= !job.spool.is_pushed();
        }
        for job in self.known.values_mut() {
            if let Some(task) = job.task.take()
                && let Err(error) = task.await
            {
                tracing::error!(%error, "a job's task died");
            }
        }
        self.known.retain(|_, job| !job.is_spent());
    }

    /// Removes everything from disk. All jobs must have stopped.
    pub(crate) async fn remove_all(&mut self) {
        self.known.clear();
        if let Err(error) = (&mut self.cleaning).await {
            tracing::error!(%error, "the leftovers of a former agent are still there");
        }
        remove(&self.place.work_dir.join(SPOOLS_FOLDER));
        remove(&self.place.work_dir.join(JOBS_FOLDER));
    }
}

impl Job {
    fn discard(&mut self) {
        self.unwanted = true;
        self.cancel.cancel();
    }

    /// Stops a job whose log cannot be sent; its end says so.
    fn give_up(&mut self, error: &SpoolError) {
        self.cancel.cancel();
        self.spool.abandon_log(error);
    }

    /// Removes the spool of a job that nobody wants, once it has ended.
    fn is_spent(&self) -> bool {
        let spent = self.unwanted && self.spool.is_finished();
        if spent {
            self.spool.remove();
        }
        spent
    }

    fn batch_due(&mut self, job_id: &WireId, now: Instant) -> Option<LineBatch> {
        if self.spool.waiting() == 0 {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert(now);
        let due = now >= since + BATCH_DELAY || self.spool.is_batch_due();
        if !due || self.in_flight.len() >= WINDOW {
            return None;
        }
        self.waiting_since = None;
        match self.spool.next_batch() {
            Ok(batch) => {
                self.in_flight.extend(batch.as_ref().map(|batch| batch.first + batch.count));
                batch
            }
            Err(error) => {
                tracing::error!(job = %job_id, %error, "this job's log cannot be read back");
                self.give_up(&error);
                None
            }
        }
    }
}

fn spawn(
    work: Work,
    place: Workplace,
    spool: Arc<Spool>,
    cancel: CancellationToken,
) -> JoinHandle<()> {
    let (job_id, sink) = (work.job_id().clone(), Arc::clone(&spool));
    let job = tokio::spawn(async move { job::run(work, &place, sink, &cancel).await });
    tokio::spawn(async move {
        // Also a bug in the job's code must not leave core waiting for its end.
        let status = job.await.unwrap_or_else(|error| Status {
            error: Some(FailureReason::Internal),
            error_message: Some(format!("the agent's job died: {error}")),
            ..Status::new(job_id.clone(), StatusState::Failed)
        });
        tracing::info!(job = %job_id, state = ?status.state, "job ended");
        if let Err(error) = spool.finish(status) {
            tracing::error!(job = %job_id, %error, "the job's end is not on disk");
        }
    })
}

/// Moves the job folders of a former agent out of the way of new ones, and says where to.
fn set_leftovers_aside(work_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(work_dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == JOBS_FOLDER {
            // Not named after this process: in a container each agent has the same id, and an
            // earlier one may have been killed while it cleared up.
            let aside = tempfile::Builder::new().prefix(ASIDE_PREFIX).tempdir_in(work_dir)?.keep();
            fs::rename(&path, &aside)?;
            leftovers.push(aside);
        } else if name.starts_with(ASIDE_PREFIX) {
            leftovers.push(path);
        }
    }
    Ok(leftovers)
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a leftover");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use stagely_protocol::Stream;

    use super::*;

    const JOB: &str = "job_1";

    /// The jobs of an agent whose one job has pushed its image and goes on, after one line.
    async fn exporting(work_dir: &Path) -> (Jobs, Arc<Spool>) {
        let place = Workplace {
            machine: "vm_test".parse().unwrap(),
            work_dir: work_dir.to_owned(),
            docker_host: None,
            grace: Duration::from_secs(1),
            registry_patience: Duration::ZERO,
        };
        let mut jobs = Jobs::recover(place, Arc::default()).unwrap();
        (&mut jobs.cleaning).await.unwrap();
        jobs.cleaning = tokio::spawn(async {});
        let job_id: WireId = JOB.parse().unwrap();
        let folder = jobs.spool_folder(&job_id);
        let spool = Arc::new(Spool::create(folder, job_id.clone(), Arc::default()).unwrap());
        spool.append([(Stream::Stdout, "pushed")]).unwrap();
        spool.record_pushed(Status { exporting_cache: true, ..completed() }).unwrap();
        jobs.known.insert(job_id, Job::new(Arc::clone(&spool), CancellationToken::new(), None));
        (jobs, spool)
    }

    fn completed() -> Status {
        Status::new(JOB.parse().unwrap(), StatusState::Completed)
    }

    /// The STATUS that is due: whether it is the last.
    fn status_due(jobs: &mut Jobs) -> Option<bool> {
        let messages = jobs.due(16).0;
        let statuses =
            messages.iter().filter_map(|text| match AgentMessage::parse(text).unwrap() {
                AgentMessage::Status(status) => Some(!status.exporting_cache),
                _ => None,
            });
        let statuses: Vec<_> = statuses.collect();
        assert!(statuses.len() <= 1, "{messages:?}");
        statuses.first().copied()
    }

    fn acknowledge(jobs: &mut Jobs, lines: u64) {
        jobs.acknowledge(&LogAck { job_id: JOB.parse().unwrap(), lines });
    }

    #[tokio::test]
    async fn two_statuses_come_one_after_the_other_over_lost_connections() {
        let folder = tempfile::tempdir().unwrap();
        let (mut jobs, spool) = exporting(folder.path()).await;
        let job_id: WireId = JOB.parse().unwrap();
        let resumed = [ResumedJob { job_id: job_id.clone(), next_line: 1 }];
        assert_eq!(status_due(&mut jobs), None);
        acknowledge(&mut jobs, 1);
        assert_eq!(status_due(&mut jobs), Some(false));
        assert_eq!(status_due(&mut jobs), None);
        // It was not acknowledged: it comes again.
        jobs.resume(&resumed);
        assert_eq!(status_due(&mut jobs), Some(false));
        jobs.status_acknowledged(&job_id);
        jobs.status_acknowledged(&job_id);
        assert_eq!((status_due(&mut jobs), jobs.running().len()), (None, 1));
        jobs.resume(&resumed);
        assert_eq!(status_due(&mut jobs), None);

        spool.finish(completed()).unwrap();
        assert_eq!(status_due(&mut jobs), Some(true));
        jobs.resume(&resumed);
        assert_eq!((status_due(&mut jobs), jobs.running().len()), (Some(true), 1));
        jobs.status_acknowledged(&job_id);
        assert!(jobs.running().is_empty() && !jobs.spool_folder(&job_id).exists());
    }

    #[tokio::test]
    async fn an_acknowledgement_of_the_first_status_does_not_end_a_job_that_has_ended_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let (mut jobs, spool) = exporting(folder.path()).await;
        acknowledge(&mut jobs, 1);
        assert_eq!(status_due(&mut jobs), Some(false));
        spool.finish(completed()).unwrap();
        assert_eq!(status_due(&mut jobs), None);
        jobs.status_acknowledged(&JOB.parse().unwrap());
        assert_eq!((status_due(&mut jobs), jobs.running().len()), (Some(true), 1));
    }

    #[tokio::test]
    async fn an_agent_that_is_stopped_while_it_exports_leaves_the_end_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (mut jobs, spool) = exporting(folder.path()).await;
        let cancel = jobs.known.values().next().unwrap().cancel.clone();
        let stopped = Arc::clone(&spool);
        jobs.known.values_mut().next().unwrap().task = Some(tokio::spawn(async move {
            cancel.cancelled().await;
            stopped.finish(completed()).unwrap();
        }));
        jobs.stop_all().await;
        assert!(spool.is_finished());
        let mut jobs = Jobs::recover(jobs.place.clone(), Arc::default()).unwrap();
        assert_eq!(jobs.running().len(), 1);
        jobs.resume(&[ResumedJob { job_id: JOB.parse().unwrap(), next_line: 1 }]);
        assert_eq!(status_due(&mut jobs), Some(true));
    }

    #[test]
    fn an_agent_killed_while_it_cleared_up_hinders_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            fs::create_dir_all(folder.path().join("jobs/job_1/src")).unwrap();
            set_leftovers_aside(folder.path()).unwrap();
        }
        fs::create_dir_all(folder.path().join("jobs.old.1/job_0")).unwrap();
        let leftovers = set_leftovers_aside(folder.path()).unwrap();
        assert_eq!(leftovers.len(), 4);
        assert!(leftovers.iter().all(|path| fs::read_dir(path).unwrap().count() == 1));
    }
}
