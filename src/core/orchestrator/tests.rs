//! Fingerprints go to the store in the transaction of their event.

use std::collections::BTreeSet;

use stagely_protocol::ImageRef;
use stagely_state::Timestamp;
use stagely_state::ids::{EnvironmentId, JobId, ProjectId};
use stagely_state::{
    Attempt, CacheExport, Environment, ExportState, Job, JobKind, JobOutcome, JobReport, JobState,
    Machine, MachineState, Run, RunState, Snapshot,
};
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::core::fixtures::{self, RunningOrchestrator};

const JOB: JobId = JobId::from_bits(1);
const MACHINE: MachineId = MachineId::from_bits(1);

fn cache() -> ImageRef {
    "r/app/cache:app".parse().unwrap()
}

fn print(text: &str) -> Fingerprint {
    Fingerprint::try_from(text.to_owned()).unwrap()
}

/// A core of nothing but its orchestrator, with the second attempt of a job under way.
struct Core {
    _folder: TempDir,
    store: Store,
    events: Events,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Core {
    fn start(change: impl FnOnce(&mut Job, &mut Machine)) -> Self {
        let project = ProjectId::from_bits(1);
        let environment = Environment::new(EnvironmentId::from_bits(1), project, String::new());
        let run = Run::new(RunId::from_bits(1), &environment, String::new(), now());
        let run = Run { state: RunState::Building, ..run };
        let mut job = fixtures::job(1, 1, "app", "linux/amd64");
        let deadline = Timestamp(now().0 + 3_600_000);
        job.state = JobState::Running { attempt: 2, machine: MACHINE, deadline };
        job.attempt = 2;
        let JobKind::Build { cache_to, .. } = &mut job.kind else { panic!("{job:?}") };
        *cache_to = Some(cache());
        let mut machine = fixtures::machine(1);
        machine.state = MachineState::Busy { attempt: Attempt { job: JOB, number: 2 } };
        change(&mut job, &mut machine);

        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let mut config = Config::default();
        config.builders.provider = None;
        let snapshot = Snapshot {
            environments: [(environment.id, environment)].into(),
            runs: [(run.id, run)].into(),
            jobs: [(job.id, job)].into(),
            machines: [(machine.id, machine)].into(),
            ..Snapshot::default()
        };
        let state = State::load(config.limits(), snapshot);
        let RunningOrchestrator { events, stop, task, .. } =
            fixtures::start_orchestrator(folder.path(), config, store.clone(), state);
        Self { _folder: folder, store, events, stop, task }
    }

    async fn report(&self, attempt: u32, outcome: JobOutcome, text: &str) {
        self.report_with_log(attempt, JobReport::new(outcome), text).await;
    }

    async fn report_with_log(&self, attempt: u32, report: JobReport, text: &str) {
        let attempt = Attempt { job: JOB, number: attempt };
        let event = Event::JobReported { machine: MACHINE, attempt, report };
        self.events.store_with_fingerprint(event, print(text)).await.unwrap();
    }

    fn fingerprint(&self) -> Option<Fingerprint> {
        self.store.fingerprint(&[cache()]).unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn completed() -> JobOutcome {
    JobOutcome::Completed { digest: Some(fixtures::digest()) }
}

#[tokio::test]
async fn a_fingerprint_is_stored_until_its_cache_is_deleted() {
    let core = Core::start(|_, _| {});
    core.report(2, completed(), "second").await;
    assert_eq!(core.fingerprint(), Some(print("second")));

    core.report(2, completed(), "repeated").await;
    assert_eq!(core.fingerprint(), Some(print("second")), "the job has ended");

    let (environment, refs) = (EnvironmentId::from_bits(1), BTreeSet::from([cache()]));
    core.events.store(Event::CleanedUp { environment, refs }).await.unwrap();
    assert_eq!(core.fingerprint(), None);
    core.stop().await;
}

#[tokio::test]
async fn a_late_attempt_and_a_failed_one_leave_the_fingerprint_as_it_is() {
    let core = Core::start(|_, _| {});
    core.report(1, completed(), "late").await;
    assert_eq!(core.fingerprint(), None);
    core.report(2, JobOutcome::Cancelled, "cancelled").await;
    assert_eq!(core.fingerprint(), None);
    core.stop().await;
}

#[tokio::test]
async fn the_report_of_an_export_beside_the_ended_job_counts() {
    let attempt = Attempt { job: JOB, number: 2 };
    let deadline = Timestamp(now().0 + 3_600_000);
    let core = Core::start(|job, machine| {
        job.state = JobState::Completed { digest: Some(fixtures::digest()) };
        machine.state = MachineState::Ready;
        let state = ExportState::Running { deadline };
        machine.exporting = Some(CacheExport { attempt, state });
    });
    core.report(2, completed(), "exported").await;
    assert_eq!(core.fingerprint(), Some(print("exported")));
    core.stop().await;
}

#[tokio::test]
async fn a_cache_that_is_still_exported_has_no_fingerprint_until_the_last_report() {
    let core = Core::start(|_, _| {});
    let first = JobReport { exporting_cache: true, ..JobReport::new(completed()) };
    core.report_with_log(2, first, "too early").await;
    assert_eq!(core.fingerprint(), None);
    core.report(2, completed(), "exported").await;
    assert_eq!(core.fingerprint(), Some(print("exported")));
    core.stop().await;
}
