//! Fingerprints and secrets go to the store in the transaction of their event.

use std::collections::BTreeSet;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use stagely_protocol::{Arch, DeployProblem, FailureReason, ImageRef, SystemInfo};
use stagely_state::Timestamp;
use stagely_state::ids::{EnvironmentId, JobId, MachineId, ProjectId, SessionId};
use stagely_state::{
    Attempt, CacheExport, Environment, ExportState, Fleet, Job, JobFailure, JobKind, JobOutcome,
    JobReport, JobState, Machine, MachineState, PlannedJob, Preview, Project, Run, RunState,
    Snapshot, Trigger,
};
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::core::fixtures::{self, RunningOrchestrator};
use crate::core::secrets::{RunSecrets, SecretsOf};

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

/// A run with a clone token of its own deploys a preview, whose first deployment fails.
#[tokio::test]
async fn a_failed_preview_keeps_the_clone_token_with_which_it_is_deployed_again() {
    let project = Project::new(ProjectId::from_bits(1), "shop".to_owned(), String::new());
    let environment = Environment::new(EnvironmentId::from_bits(1), project.id, String::new());
    let run = Run::new(RunId::from_bits(1), &environment, String::new(), now());
    let commit = Some("c".repeat(40).parse().unwrap());
    let run = Run { state: RunState::Deploying, commit, ..run };
    let kind = JobKind::Deploy { arch: None, deployment: Box::new(fixtures::deployment()) };
    let planned = PlannedJob::new(JOB, "deploy", kind, Duration::from_mins(1));
    let deadline = Timestamp(now().0 + 3_600_000);
    let state = JobState::Running { attempt: 1, machine: MACHINE, deadline };
    let started_at = Some(now());
    let job = Job { state, attempt: 1, started_at, ..Job::queued(planned, run.id, now()) };
    let attempt = Attempt { job: JOB, number: 1 };
    let machine = Machine {
        state: MachineState::Busy { attempt },
        fleet: Fleet::Preview,
        ..fixtures::machine(1)
    };
    let id = PreviewId::from_bits(1);
    let preview = Preview::new(id, project.id, environment.id, now());
    let preview = Preview { state: PreviewState::Deploying { job: JOB }, ..preview };

    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
    let mut config = Config::default();
    config.builders.provider = None;
    let snapshot = Snapshot {
        projects: [(project.id, project)].into(),
        environments: [(environment.id, environment)].into(),
        runs: [(run.id, run)].into(),
        jobs: [(job.id, job)].into(),
        machines: [(machine.id, machine)].into(),
        previews: [(id, preview)].into(),
        ..Snapshot::default()
    };
    let state = State::load(config.limits(), snapshot);
    let core = fixtures::start_orchestrator(folder.path(), config, store.clone(), state);
    let mut batch = Batch::default();
    let own = RunSecrets { clone_token: Some("the token".into()), ..RunSecrets::default() };
    batch.run_secrets(RunId::from_bits(1), Some(core.secrets.seal_run(RunId::from_bits(1), &own)));
    store.commit(&batch).unwrap();

    let system_info = SystemInfo {
        hostname: String::new(),
        architecture: Arch::Amd64,
        docker_version: String::new(),
        emulated: Vec::new(),
    };
    let session = SessionId::default().next();
    let (machine, holds, previews) = (MACHINE, vec![attempt], None);
    let connected = Event::AgentConnected { machine, session, system_info, holds, previews };
    core.events.store(connected).await.unwrap();
    let reason = FailureReason::Deploy { problem: DeployProblem::Health };
    let failure = JobFailure { reason, message: "no answer".to_owned(), exit_code: None };
    let report = JobReport::new(JobOutcome::Failed(failure));
    core.events.store(Event::JobReported { machine: MACHINE, attempt, report }).await.unwrap();
    core.events.store(Event::PreviewResetRequested { preview: id }).await.unwrap();

    let token = {
        let records = core.records.read();
        assert!(
            matches!(records.previews[&id].state, PreviewState::Deploying { job } if job != JOB)
        );
        let reset = records.runs.values().find(|run| run.trigger == Trigger::Reset).unwrap();
        core.secrets.open(SecretsOf::run(&records, reset)).unwrap().clone_token
    };
    assert_eq!(token.unwrap().expose_secret(), "the token");
    core.events.store(Event::PreviewEndRequested { preview: id }).await.unwrap();
    assert!(store.preview_secrets(id).unwrap().is_none(), "an ended preview keeps nothing");
    core.stop.cancel();
    core.task.await.unwrap().unwrap();
}
