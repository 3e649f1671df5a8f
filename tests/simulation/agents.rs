//! Agents as core sees them: they connect, begin, report, repeat themselves, lose their work, hang.

use std::collections::{BTreeMap, VecDeque};

use stagely::core::state::{Attempt, Event, JobOutcome, JobReport};
use stagely::ids::{JobId, MachineId};
use stagely_agent::protocol::{Arch, Digest, FailureReason, RegistryProblem, SystemInfo};

use crate::rng::Rng;

/// What core says to an agent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Begin(Attempt),
    Stop(Attempt),
    /// The end of this attempt is in the store.
    Thanks(Attempt),
}

/// How far an agent is with an attempt.
enum Work {
    Given,
    Begun,
    Ended(JobOutcome),
}

/// An open connection. Both directions keep their order; what is in them when it breaks is lost.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) number: u64,
    /// Whether core has taken the HELLO: it has nothing to say to an agent that it does not know.
    pub(crate) is_open: bool,
    pub(crate) to_core: VecDeque<Event>,
    pub(crate) to_agent: VecDeque<Order>,
}

pub(crate) struct Agent {
    machine: MachineId,
    work: BTreeMap<Attempt, Work>,
    pub(crate) session: Option<Session>,
    /// Connected and deaf.
    pub(crate) is_hung: bool,
}

impl Agent {
    pub(crate) const fn new(machine: MachineId) -> Self {
        Self { machine, work: BTreeMap::new(), session: None, is_hung: false }
    }

    pub(crate) fn connect(&mut self, number: u64, rng: &mut Rng) {
        if self.is_hung {
            // Only a restart helps it, and it has forgotten everything then.
            self.is_hung = false;
            self.work.clear();
        }
        let mut session = Session { number, ..Session::default() };
        session.to_core.push_back(Event::AgentConnected {
            machine: self.machine,
            session: number,
            system_info: system_info(),
            holds: self.work.keys().copied().collect(),
        });
        for (attempt, work) in &self.work {
            match work {
                Work::Given => {}
                Work::Begun if rng.chance(50) => {}
                Work::Begun => session.to_core.push_back(self.started(*attempt)),
                Work::Ended(outcome) => {
                    session.to_core.push_back(reported(self.machine, *attempt, outcome.clone()));
                }
            }
        }
        self.session = Some(session);
    }

    /// The process dies and is started again.
    pub(crate) fn crash(&mut self) {
        self.session = None;
        self.work.clear();
    }

    /// Reads one order; false if there is none.
    pub(crate) fn obey(&mut self) -> bool {
        if self.is_hung {
            return false;
        }
        let order = self.session.as_mut().and_then(|session| session.to_agent.pop_front());
        match order {
            Some(Order::Begin(attempt)) => {
                let open = |(other, work): (&Attempt, &Work)| {
                    *other != attempt && !matches!(work, Work::Ended(_))
                };
                assert!(!self.work.iter().any(open), "{} gets a second job", self.machine);
                self.work.entry(attempt).or_insert(Work::Given);
            }
            Some(Order::Stop(attempt)) => {
                if matches!(self.work.get(&attempt), Some(Work::Given | Work::Begun)) {
                    self.end(attempt, JobOutcome::Cancelled);
                }
            }
            Some(Order::Thanks(attempt)) => {
                self.work.remove(&attempt);
            }
            None => return false,
        }
        true
    }

    /// Goes on with its work; false if it has none to go on with.
    pub(crate) fn work(&mut self, rng: &mut Rng, has_faults: bool) -> bool {
        if self.is_hung {
            return false;
        }
        let open = self.work.iter().find_map(|(attempt, work)| match work {
            Work::Given => Some((*attempt, false)),
            Work::Begun => Some((*attempt, true)),
            Work::Ended(_) => None,
        });
        match open {
            // The simplest agents never say that they have begun.
            Some((attempt, false)) if !rng.chance(5) => {
                self.work.insert(attempt, Work::Begun);
                let started = self.started(attempt);
                self.say(started);
            }
            Some((attempt, _)) => {
                let outcome = if has_faults { any_outcome(attempt, rng) } else { pushed(attempt) };
                self.end(attempt, outcome);
            }
            None => return false,
        }
        true
    }

    fn end(&mut self, attempt: Attempt, outcome: JobOutcome) {
        self.work.insert(attempt, Work::Ended(outcome.clone()));
        self.say(reported(self.machine, attempt, outcome));
    }

    fn say(&mut self, event: Event) {
        if let Some(session) = &mut self.session {
            session.to_core.push_back(event);
        }
    }

    const fn started(&self, Attempt { job, number }: Attempt) -> Event {
        Event::JobStarted { machine: self.machine, job, attempt: number }
    }
}

pub(crate) fn reported(machine: MachineId, attempt: Attempt, outcome: JobOutcome) -> Event {
    let Attempt { job, number } = attempt;
    let report = JobReport::new(outcome);
    Event::JobReported { machine, job, attempt: number, report }
}

/// The digest says which attempt pushed it.
pub(crate) fn digest(job: JobId, attempt: u32) -> Digest {
    format!("sha256:{:032x}{attempt:032x}", job.bits()).parse().expect("64 digits")
}

pub(crate) fn pushed(Attempt { job, number }: Attempt) -> JobOutcome {
    JobOutcome::Completed { digest: Some(digest(job, number)) }
}

fn any_outcome(attempt: Attempt, rng: &mut Rng) -> JobOutcome {
    let reason = match rng.below(20) {
        0..13 => return pushed(attempt),
        13 => return JobOutcome::Cancelled,
        14..16 => FailureReason::DiskFull,
        16 => FailureReason::Registry { problem: RegistryProblem::Unavailable },
        _ => FailureReason::User { step: "[2/5] RUN false".to_owned(), exit_code: 1 },
    };
    JobOutcome::Failed { message: reason.to_string(), reason, exit_code: Some(1) }
}

fn system_info() -> SystemInfo {
    SystemInfo {
        hostname: String::new(),
        architecture: Arch::Amd64,
        docker_version: String::new(),
        emulated: Vec::new(),
    }
}
