//! A pull request with a run of one commit, for the tests of its report.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use stagely_protocol::{
    Arch, BuildArgs, CommitSha, Digest, Endpoint, FailureReason, HealthCheck, Platform, Shard,
    Step, Submodules,
};
use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};
use stagely_state::{
    Access, CommitSource, DEPLOY_JOB, Deployment, Environment, Generation, GithubRun, Job,
    JobFailure, JobKind, JobState, MachineSize, Preview, PreviewSettings, PreviewState, Project,
    Run, RunState, Test, TestMachine, Timestamp, UsedImage,
};
use url::Url;

use super::view::ReportView;
use crate::core::fixtures::job as build;
use crate::core::previews::{PreviewHosts, PreviewLinks};
use crate::core::records::Records;
use crate::core::secrets::SecretStore;
use crate::core::secrets::keyring::Keyring;
use crate::core::store::Store;

pub(crate) const ENVIRONMENT: EnvironmentId = EnvironmentId::from_bits(2);
const PROJECT: ProjectId = ProjectId::from_bits(1);
const RUN: u128 = 3;
const PREVIEW: PreviewId = PreviewId::from_bits(6);
/// The job of [`ReportFixture::add_deployment`].
pub(crate) const DEPLOY: u128 = 20;
/// The machine of the preview.
pub(crate) const MACHINE: MachineId = MachineId::from_bits(30);

/// Records, and the rest of a [`ReportView`].
pub(crate) struct ReportFixture {
    pub(crate) records: Records,
    /// `core.open-logs`.
    pub(crate) open_logs: bool,
    url: Url,
}

/// The addresses of previews.
pub(crate) fn links() -> &'static PreviewLinks {
    static LINKS: OnceLock<PreviewLinks> = OnceLock::new();
    LINKS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key"), [7; 32]).unwrap();
        let keyring = Keyring::open(&folder.path().join("key")).unwrap();
        let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
        let secrets = SecretStore::new(keyring, store, Vec::new(), Vec::new());
        let settings =
            "core.public-url = \"https://core.example\"\npreviews.domain = \"preview.example\"\n";
        PreviewLinks::new(PreviewHosts::new(&toml::from_str(settings).unwrap()), secrets)
    })
}

fn deployment() -> Deployment {
    let endpoint = |name: &str, port| Endpoint {
        name: name.to_owned(),
        service: name.to_owned(),
        port,
        host: None,
        health: HealthCheck::default(),
    };
    Deployment {
        compose: Some("compose.yaml".to_owned()),
        images: BTreeMap::new(),
        default_images: BTreeMap::new(),
        endpoints: vec![endpoint("web", 8080), endpoint("mail", 8025)],
        env: BuildArgs::default(),
        submodules: Submodules::default(),
        secrets: Vec::new(),
        migrate: None,
        seed: None,
        fresh: false,
        reset_when: Vec::new(),
        disk_gib: 20,
        settings: PreviewSettings {
            access: Access::Link,
            public_paths: Vec::new(),
            on_request: false,
            sleep_after: None,
            ttl: Duration::from_hours(24),
        },
    }
}

pub(crate) fn commit() -> CommitSha {
    "a".repeat(40).parse().unwrap()
}

pub(crate) const fn job_id(number: u128) -> JobId {
    JobId::from_bits(number)
}

pub(crate) fn user_failure(step: &str, exit_code: i32) -> FailureReason {
    FailureReason::User { step: step.to_owned(), exit_code }
}

fn digest(letter: &str) -> Digest {
    format!("sha256:{}", letter.repeat(64)).parse().unwrap()
}

impl ReportFixture {
    /// A run without jobs, of the pull request 7.
    pub(crate) fn new() -> Self {
        let mut records = Records::default();
        let project =
            Project::new(PROJECT, "app".to_owned(), "https://git.example/o/app".to_owned());
        let mut environment = Environment::new(ENVIRONMENT, PROJECT, "pr-7".to_owned());
        environment.pull_request = Some(7);
        records.projects.insert(PROJECT, project);
        records.environments.insert(ENVIRONMENT, environment);
        let mut fixture = Self::of(records);
        fixture.start_run(RUN, commit());
        fixture
    }

    /// Continues with the records of another fixture.
    pub(crate) fn of(records: Records) -> Self {
        Self { records, open_logs: true, url: "https://core.example/".parse().unwrap() }
    }

    /// Adds another environment, whose newest run is open.
    pub(crate) fn copy_environment(&mut self, number: u128) -> EnvironmentId {
        let mut run = self.run().clone();
        run.id = RunId::from_bits(number);
        let mut copy = self.environment().clone();
        copy.id = EnvironmentId::from_bits(number);
        copy.report.run = Some(run.id);
        run.environment = copy.id;
        let id = copy.id;
        self.records.runs.insert(run.id, run);
        self.records.environments.insert(id, copy);
        id
    }

    /// Adds a newer run.
    pub(crate) fn start_run(&mut self, number: u128, commit: CommitSha) {
        let id = RunId::from_bits(number);
        let repository = "https://git.example/o/app".to_owned();
        let mut run = Run::new(id, self.environment(), repository, Timestamp(0));
        run.github = Some(GithubRun { default_branch: "main".to_owned(), is_private: false });
        run.requested_ref = Some(commit.to_string());
        run.commit = Some(commit);
        run.state = RunState::Building;
        self.records.runs.insert(id, run);
        self.records.run_jobs.insert(id, Vec::new());
        self.environment().report.run = Some(id);
    }

    /// Two builds of one image, and the merge of both.
    pub(crate) fn multi_platform() -> Self {
        let mut fixture = Self::new();
        for (number, arch) in [(1, "amd64"), (2, "arm64")] {
            let mut job = build(number, RUN, "app", &format!("linux/{arch}"));
            job.name = format!("app_{arch}");
            fixture.add(job);
        }
        let mut merge = build(3, RUN, "app", "linux/amd64");
        merge.name = "app_merge".to_owned();
        merge.attempt = 0;
        merge.tag = Some("r/app/pr-7:app".parse().unwrap());
        let platforms = ["linux/amd64", "linux/arm64"];
        let platforms: Vec<Platform> =
            platforms.iter().map(|platform| platform.parse().unwrap()).collect();
        merge.kind = JobKind::Merge { platforms, image: "r/app/pr-7:app.3".parse().unwrap() };
        fixture.add(merge);
        fixture
    }

    /// `count` builds, numbered from 1.
    pub(crate) fn many(count: u128) -> Self {
        let mut fixture = Self::new();
        for number in 1..=count {
            fixture.add(build(number, RUN, &format!("job{number}"), "linux/amd64"));
        }
        fixture
    }

    pub(crate) fn add(&mut self, job: Job) {
        self.records.run_jobs.entry(job.run).or_default().push(job.id);
        self.records.jobs.insert(job.id, job);
    }

    /// Adds a deploy job to the run, which waits for its images.
    pub(crate) fn add_deployment(&mut self) {
        let run = self.run().id;
        let kind = JobKind::Deploy { arch: Some(Arch::Amd64), deployment: Box::new(deployment()) };
        let mut job = build(DEPLOY, run.bits(), DEPLOY_JOB, "linux/amd64");
        job.kind = kind;
        self.add(job);
    }

    /// Adds a job of a test without a preview to the run.
    pub(crate) fn add_test(&mut self, number: u128, test: &str) {
        let run = self.run().id;
        let mut job = build(number, run.bits(), test, "linux/amd64");
        job.kind = JobKind::Test {
            arch: None,
            test: Box::new(Test {
                image: UsedImage::Image { image: "r/tools:1".parse().unwrap() },
                command: Vec::new(),
                env: BuildArgs::default(),
                secrets: Vec::new(),
                shard: Shard::ALL,
                retries: 0,
                junit: Vec::new(),
                artifacts: Vec::new(),
                comment_images: Vec::new(),
                on: TestMachine::Tester,
                preview_of: None,
            }),
        };
        self.add(job);
    }

    /// Adds the preview, or moves it to this state. It shows the run's commit, unless it shows one already or nothing
    /// was deployed yet.
    pub(crate) fn preview(&mut self, state: PreviewState) -> &mut Preview {
        let run = self.run().clone();
        let generation = Generation {
            number: 1,
            run: run.id,
            commit: run.commit.unwrap(),
            source: CommitSource {
                repository: run.repository,
                branch: None,
                from_fork: false,
                github: None,
            },
            requested_at: Timestamp(0),
            deployment: deployment(),
            arch: Arch::Amd64,
            size: MachineSize::default(),
            timeout: Duration::from_mins(30),
        };
        let shows = match state {
            PreviewState::Deploying { .. }
            | PreviewState::Ending
            | PreviewState::Ended
            | PreviewState::Failed { .. } => None,
            _ => Some(generation),
        };
        let new = Preview::new(PREVIEW, PROJECT, ENVIRONMENT, Timestamp(0));
        let preview = self.records.previews.entry(PREVIEW).or_insert(new);
        preview.state = state;
        preview.shown = shows.map(|new| preview.shown.take().unwrap_or(new));
        preview
    }

    /// The key of the preview.
    pub(crate) fn key(&self) -> String {
        let preview = &self.records.previews[&PREVIEW];
        links().access_key(preview, Access::Link).expose_secret().to_owned()
    }

    pub(crate) fn environment(&mut self) -> &mut Environment {
        self.records.environments.get_mut(&ENVIRONMENT).unwrap()
    }

    pub(crate) fn run(&mut self) -> &mut Run {
        let newest = self.environment().report.run.unwrap();
        self.records.runs.get_mut(&newest).unwrap()
    }

    pub(crate) fn job(&mut self, number: u128) -> &mut Job {
        self.records.jobs.get_mut(&job_id(number)).unwrap()
    }

    /// Ends the run after a minute and a half.
    pub(crate) fn end_run(&mut self, state: RunState) {
        self.run().ended_at = state.is_final().then_some(Timestamp(90_000));
        self.run().state = state;
    }

    pub(crate) fn running(&mut self, number: u128) {
        let machine = MachineId::from_bits(number);
        self.job(number).started_at = Some(Timestamp(0));
        self.job(number).state =
            JobState::Running { attempt: 1, machine, deadline: Timestamp(1_000_000) };
    }

    pub(crate) fn completed(&mut self, number: u128, seconds: u64) {
        self.ended(number, seconds);
        let digest = Some(digest(if number.is_multiple_of(2) { "b" } else { "c" }));
        self.job(number).state = JobState::Completed { digest };
        let step = |name: &str, cached| Step { name: name.to_owned(), seconds: 1.0, cached };
        self.job(number).steps = vec![step("[1/2] FROM busybox", true), step("[2/2] RUN x", false)];
    }

    pub(crate) fn failed(&mut self, number: u128, reason: FailureReason, message: &str) {
        self.ended(number, 4);
        let message = message.to_owned();
        self.job(number).state = JobState::Failed(JobFailure { reason, message, exit_code: None });
    }

    fn ended(&mut self, number: u128, seconds: u64) {
        let job = self.job(number);
        job.started_at = Some(Timestamp(1_000));
        job.ended_at = Some(Timestamp(1_000 + 1_000 * seconds));
    }

    pub(crate) fn view(&self) -> ReportView<'_> {
        ReportView::find(
            &self.records,
            ENVIRONMENT,
            &self.url,
            "ok-to-build",
            self.open_logs,
            links(),
        )
        .unwrap()
    }
}
