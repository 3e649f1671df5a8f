//! Agents: they connect, begin, report, repeat reports, lose their work, hang, and export caches after they have
//! reported the image.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use stagely_protocol::{
    Arch, Digest, FailureReason, ImageRef, RegistryProblem, SystemInfo, TestResults,
};
use stagely_state::ids::{MachineId, PreviewId, SessionId};
use stagely_state::{
    Archive, Attempt, Event, Interruption, JobFailure, JobOutcome, JobReport, Timestamp,
};

use crate::rng::Rng;

/// A message of core to an agent.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Begin(Attempt, Task),
    Stop(Attempt),
    /// Archive and remove the preview.
    Sleep(PreviewId),
    /// Remove the preview.
    Retire(PreviewId),
    /// A report of this attempt is committed: of the image before the export, or of the end.
    Acknowledge {
        attempt: Attempt,
        is_early: bool,
    },
}

/// A job as its agent knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Task {
    /// Whether the image gets a digest.
    pub(crate) pushes: bool,
    /// The cache that a build writes. A merge has none.
    pub(crate) cache: Option<ImageRef>,
    /// The preview that a deployment starts.
    pub(crate) deploys: Option<PreviewId>,
    /// Whether it is a test, which has results.
    pub(crate) tests: bool,
}

impl Task {
    fn report(&self, attempt: Attempt, outcome: JobOutcome, exporting_cache: bool) -> JobReport {
        let results = self.tests.then(|| results(attempt));
        JobReport { exporting_cache, results, ..JobReport::new(outcome) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Assigned,
    Begun,
    /// The image is reported. An endless export has to be stopped.
    Exporting {
        is_acknowledged: bool,
        is_endless: bool,
    },
    Ended,
}

struct Work {
    task: Task,
    progress: Progress,
    /// The outcome of the last report.
    outcome: Option<JobOutcome>,
}

/// A connection. Both directions keep their order. Messages under way are lost when it breaks.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) number: SessionId,
    /// Whether core has received the HELLO. It sends nothing before.
    pub(crate) is_open: bool,
    pub(crate) to_core: VecDeque<Event>,
    pub(crate) to_agent: VecDeque<Order>,
}

pub(crate) struct Agent {
    machine: MachineId,
    work: BTreeMap<Attempt, Work>,
    pub(crate) session: Option<Session>,
    /// Connected, but reads and sends nothing.
    pub(crate) is_hung: bool,
    /// The cloud's notice.
    interruption: Option<Interruption>,
    /// The previews whose containers run.
    previews: BTreeSet<PreviewId>,
    /// The caches that were written since the last check.
    pub(crate) written: Vec<(Attempt, ImageRef)>,
}

impl Agent {
    pub(crate) const fn new(machine: MachineId) -> Self {
        Self {
            machine,
            work: BTreeMap::new(),
            session: None,
            is_hung: false,
            interruption: None,
            previews: BTreeSet::new(),
            written: Vec::new(),
        }
    }

    pub(crate) fn connect(&mut self, number: SessionId, rng: &mut Rng) {
        if self.is_hung {
            // A hung agent has to be restarted, which loses its work.
            self.is_hung = false;
            self.work.clear();
        }
        let mut session = Session { number, ..Session::default() };
        session.to_core.push_back(Event::AgentConnected {
            machine: self.machine,
            session: number,
            system_info: system_info(),
            holds: self.work.keys().copied().collect(),
            previews: Some(self.previews.clone()),
        });
        for (attempt, work) in &self.work {
            match work.progress {
                Progress::Assigned | Progress::Exporting { is_acknowledged: true, .. } => {}
                Progress::Begun if rng.chance(50) => {}
                Progress::Begun => session.to_core.push_back(self.started(*attempt)),
                Progress::Exporting { is_acknowledged: false, .. } | Progress::Ended => {
                    let outcome = work.outcome.clone().expect("the outcome was reported");
                    let is_early = work.progress != Progress::Ended;
                    let report = work.task.report(*attempt, outcome, is_early);
                    let (machine, attempt) = (self.machine, *attempt);
                    session.to_core.push_back(Event::JobReported { machine, attempt, report });
                }
            }
        }
        // The agent reads the notice again, and reports it unless the session breaks first.
        if let Some(interruption) = self.interruption.filter(|_| rng.chance(70)) {
            session.to_core.push_back(self.interrupted(interruption));
        }
        self.session = Some(session);
    }

    pub(crate) const fn interruption(&self) -> Option<Interruption> {
        self.interruption
    }

    /// The cloud sends a notice, and the agent reads it at once or later.
    pub(crate) fn interrupt(&mut self, interruption: Interruption, is_delivered: bool) {
        let is_certain = matches!(self.interruption, Some(Interruption::Certain { .. }));
        if !is_certain || interruption != Interruption::Likely {
            self.interruption = Some(interruption);
        }
        if is_delivered && !self.is_hung {
            self.send(self.interrupted(interruption));
        }
    }

    const fn interrupted(&self, interruption: Interruption) -> Event {
        Event::MachineInterrupted { machine: self.machine, interruption }
    }

    /// The whole machine restarts.
    pub(crate) fn reboot(&mut self) {
        self.crash();
        self.is_hung = false;
        self.interruption = None;
        self.previews.clear();
    }

    /// The agent's process dies and restarts.
    pub(crate) fn crash(&mut self) {
        self.session = None;
        self.work.clear();
    }

    /// Reads one order. Returns false if there is none.
    pub(crate) fn take_order(&mut self, rng: &mut Rng, has_faults: bool) -> bool {
        if self.is_hung {
            return false;
        }
        let order = self.session.as_mut().and_then(|session| session.to_agent.pop_front());
        match order {
            Some(Order::Begin(attempt, task)) => self.begin(attempt, task),
            Some(Order::Stop(attempt)) => {
                if self.work.get(&attempt).is_some_and(|work| work.progress != Progress::Ended) {
                    self.end(attempt, JobOutcome::Cancelled);
                }
            }
            Some(Order::Sleep(preview))
                if has_faults && self.previews.contains(&preview) && rng.chance(30) =>
            {
                let (machine, problem) = (self.machine, "the disk is full".to_owned());
                self.send(Event::PreviewArchiveFailed { machine, preview, problem });
            }
            Some(Order::Sleep(preview)) => {
                let held = self.previews.remove(&preview);
                let archive = held.then(|| Archive {
                    digest: format!("sha256:{:064x}", preview.bits()).parse().expect("64 digits"),
                    bytes: 1,
                    made_at: Timestamp::default(),
                });
                let machine = self.machine;
                let problem = (!held).then(|| "it is not here".to_owned());
                self.send(Event::PreviewArchived { machine, preview, archive, problem });
            }
            Some(Order::Retire(preview)) => {
                self.previews.remove(&preview);
            }
            Some(Order::Acknowledge { attempt, is_early: true }) => {
                if let Some(Work {
                    progress: Progress::Exporting { is_acknowledged, .. }, ..
                }) = self.work.get_mut(&attempt)
                {
                    *is_acknowledged = true;
                }
            }
            Some(Order::Acknowledge { attempt, is_early: false }) => {
                self.work.remove(&attempt);
            }
            None => return false,
        }
        true
    }

    /// Begins a job. Beside an export only a merge may begin.
    fn begin(&mut self, attempt: Attempt, task: Task) {
        let is_merge = task.cache.is_none() && task.deploys.is_none() && !task.tests;
        let hinders = |(other, work): (&Attempt, &Work)| {
            *other != attempt
                && match work.progress {
                    Progress::Assigned | Progress::Begun => true,
                    Progress::Exporting { .. } => !is_merge,
                    Progress::Ended => false,
                }
        };
        assert!(!self.work.iter().any(hinders), "{} gets a second job", self.machine);
        let work = Work { task, progress: Progress::Assigned, outcome: None };
        self.work.entry(attempt).or_insert(work);
    }

    /// Continues its work. Returns false if it has none.
    pub(crate) fn work(&mut self, rng: &mut Rng, has_faults: bool) -> bool {
        if self.is_hung {
            return false;
        }
        let open = |work: &Work| match work.progress {
            Progress::Assigned | Progress::Begun => true,
            Progress::Exporting { is_endless, .. } => !is_endless,
            Progress::Ended => false,
        };
        let open = self.work.iter().filter(|(_, work)| open(work));
        let open: Vec<(Attempt, Progress)> = open.map(|(id, work)| (*id, work.progress)).collect();
        let Some((attempt, progress)) = rng.pick(&open) else { return false };
        match progress {
            // Simple agents do not report the start.
            Progress::Assigned if !rng.chance(5) => {
                self.set(attempt, Progress::Begun);
                let started = self.started(attempt);
                self.send(started);
            }
            Progress::Exporting { .. } if has_faults && rng.chance(60) => self.write_cache(attempt),
            _ => self.finish(attempt, rng, has_faults),
        }
        true
    }

    /// Ends the attempt, or reports its image and goes on.
    fn finish(&mut self, attempt: Attempt, rng: &mut Rng, has_faults: bool) {
        let Work { task, progress, .. } = &self.work[&attempt];
        let pushed = pushed(attempt, task.pushes);
        let may_export = task.cache.is_some() && !matches!(progress, Progress::Exporting { .. });
        // Most deployments come when there are no faults any more.
        let lacks_image = task.deploys.is_some() && rng.chance(10);
        let outcome = match has_faults {
            _ if lacks_image => {
                failed(FailureReason::Registry { problem: RegistryProblem::Missing })
            }
            true => any_outcome(pushed, rng),
            false => pushed,
        };
        let is_completed = matches!(outcome, JobOutcome::Completed { .. });
        if is_completed {
            self.write_cache(attempt);
            self.previews.extend(self.work[&attempt].task.deploys);
        }
        if is_completed && may_export && rng.chance(60) {
            self.set(
                attempt,
                Progress::Exporting { is_acknowledged: false, is_endless: rng.chance(15) },
            );
            self.report(attempt, outcome, true);
        } else {
            self.end(attempt, outcome);
        }
    }

    fn write_cache(&mut self, attempt: Attempt) {
        let cache = self.work[&attempt].task.cache.clone();
        self.written.extend(cache.map(|cache| (attempt, cache)));
    }

    fn set(&mut self, attempt: Attempt, progress: Progress) {
        if let Some(work) = self.work.get_mut(&attempt) {
            work.progress = progress;
        }
    }

    fn end(&mut self, attempt: Attempt, outcome: JobOutcome) {
        self.set(attempt, Progress::Ended);
        self.report(attempt, outcome, false);
    }

    fn report(&mut self, attempt: Attempt, outcome: JobOutcome, is_early: bool) {
        if let Some(work) = self.work.get_mut(&attempt) {
            work.outcome = Some(outcome.clone());
        }
        let task = self.work.get(&attempt).map(|work| work.task.clone()).unwrap_or_default();
        let report = task.report(attempt, outcome, is_early);
        self.send(Event::JobReported { machine: self.machine, attempt, report });
    }

    fn send(&mut self, event: Event) {
        if let Some(session) = &mut self.session {
            session.to_core.push_back(event);
        }
    }

    const fn started(&self, attempt: Attempt) -> Event {
        Event::JobStarted { machine: self.machine, attempt }
    }
}

pub(crate) fn reported(
    machine: MachineId,
    attempt: Attempt,
    outcome: JobOutcome,
    exporting_cache: bool,
) -> Event {
    let report = JobReport { exporting_cache, ..JobReport::new(outcome) };
    Event::JobReported { machine, attempt, report }
}

/// The counts say which attempt had them.
pub(crate) fn results(Attempt { number, .. }: Attempt) -> TestResults {
    TestResults { passed: u64::from(number), ..TestResults::default() }
}

/// The digest says which attempt pushed it.
pub(crate) fn digest(Attempt { job, number }: Attempt) -> Digest {
    format!("sha256:{:032x}{number:032x}", job.bits()).parse().expect("64 digits")
}

pub(crate) fn pushed(attempt: Attempt, pushes: bool) -> JobOutcome {
    JobOutcome::Completed { digest: pushes.then(|| digest(attempt)) }
}

fn any_outcome(pushed: JobOutcome, rng: &mut Rng) -> JobOutcome {
    let reason = match rng.below(20) {
        0..13 => return pushed,
        13 => return JobOutcome::Cancelled,
        14..16 => FailureReason::DiskFull,
        16 => FailureReason::Registry { problem: RegistryProblem::Unavailable },
        _ => FailureReason::User { step: "[2/5] RUN false".to_owned(), exit_code: 1 },
    };
    failed(reason)
}

fn failed(reason: FailureReason) -> JobOutcome {
    let message = reason.to_string();
    JobOutcome::Failed(JobFailure { reason, message, exit_code: Some(1) })
}

fn system_info() -> SystemInfo {
    SystemInfo {
        hostname: String::new(),
        architecture: Arch::Amd64,
        docker_version: String::new(),
        emulated: Vec::new(),
    }
}
