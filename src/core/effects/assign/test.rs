//! The TEST of a test job.

use std::collections::BTreeMap;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use stagely_protocol::{
    CoreMessage, ImageRef, MESSAGE_BYTES_MAX, RegistryAuth, Secrets, Test as TestMessage,
    TestedPreview,
};
use stagely_state::{Access, Attempt, Job, Project, Run, UsedImage};
use thiserror::Error;

use super::deploy::used_image;
use crate::core::previews::{ACCESS_HEADER, PreviewLinks};
use crate::core::records::Records;

/// What a TEST holds beside its records.
pub(super) struct TestInputs<'a> {
    /// `registry.url`.
    pub(super) registry: &'a str,
    pub(super) registry_auth: Option<RegistryAuth>,
    pub(super) secrets: Secrets,
    pub(super) links: &'a PreviewLinks,
}

/// The message would be longer than what an agent takes.
#[derive(Debug, Error)]
#[error(
    "the description of the test takes {bytes} bytes, but an agent takes at most {MESSAGE_BYTES_MAX}; give it fewer or \
     shorter variables, arguments and secrets"
)]
pub(super) struct TooLong {
    bytes: usize,
}

pub(super) fn message(
    records: &Records,
    job: &Job,
    attempt: Attempt,
    inputs: TestInputs<'_>,
) -> anyhow::Result<CoreMessage> {
    let test = job.kind.test().with_context(|| format!("{} is no test", job.name))?;
    let preview = match test.preview_of {
        Some(_) => Some(tested_preview(records, job, test.is_on_preview(), inputs.links)?),
        None => None,
    };
    let image = used_image(records, &test.image)?;
    let run = records.runs.get(&job.run).context("the job's run has no record")?;
    let project = records.projects.get(&run.project).context("the run's project has no record")?;
    let is_own = match &test.image {
        UsedImage::Job { .. } => true,
        UsedImage::Image { image } => is_of_registry(image, inputs.registry, run, project),
    };
    let test = TestMessage {
        job_id: attempt.wire(),
        image,
        command: test.command.clone(),
        env: test.env.clone(),
        secrets: inputs.secrets,
        preview,
        shard: test.shard,
        retries: test.retries,
        junit: test.junit.clone(),
        artifacts: test.artifacts.clone(),
        comment_images: test.comment_images.clone(),
        timeout_seconds: job.timeout.as_secs(),
        registry_auth: inputs.registry_auth.filter(|_| is_own),
    };
    let message = CoreMessage::Test(Box::new(test));
    let bytes = message.to_json().len();
    if bytes > MESSAGE_BYTES_MAX { Err(TooLong { bytes }.into()) } else { Ok(message) }
}

/// Whether the login of core's registry goes to an image that `stagely.yaml` names, whose author may be a stranger: never to
/// another registry, and for a fork to the images of its project alone.
fn is_of_registry(image: &ImageRef, registry: &str, run: &Run, project: &Project) -> bool {
    let below = image.as_str().strip_prefix(registry).and_then(|rest| rest.strip_prefix('/'));
    below.is_some_and(|path| {
        let of_project =
            path.strip_prefix(&*project.name).is_some_and(|rest| rest.starts_with('/'));
        !run.from_fork || of_project
    })
}

/// Where the preview is, and what opens it.
fn tested_preview(
    records: &Records,
    job: &Job,
    is_on_its_machine: bool,
    links: &PreviewLinks,
) -> anyhow::Result<TestedPreview> {
    let run = records.runs.get(&job.run).context("the job's run has no record")?;
    let preview = records.preview_of(run.environment).context("the environment has no preview")?;
    let url = links.address(records, run.environment).context("the preview has no address")?;
    let access = preview.settings().context("the preview shows nothing")?.access;
    let key = || links.access_key(preview, access);
    let headers = match access {
        Access::Public => BTreeMap::new(),
        // The key opens a preview for tokens, too.
        Access::Link | Access::Token => {
            BTreeMap::from([(ACCESS_HEADER.to_owned(), key().expose_secret().into())])
        }
    };
    Ok(TestedPreview {
        url: url.as_str().trim_end_matches('/').to_owned(),
        headers: Secrets(headers),
        preview_id: is_on_its_machine.then(|| preview.id.wire()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stagely_protocol::{Arch, FailureReason, Shard};
    use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};
    use stagely_state::{
        CommitSource, Environment, Event, Generation, JobKind, JobOutcome, JobState, MachineSize,
        PlannedJob, Preview, PreviewState, Project, Run, Test, TestMachine, Timestamp, UsedImage,
    };
    use tempfile::TempDir;

    use super::*;
    use crate::config::{Config, RegistryConfig};
    use crate::core::effects::Effects;
    use crate::core::fixtures;
    use crate::core::records::SharedRecords;
    use crate::core::sessions::SessionEntry;
    use crate::core::store::Store;

    const PROJECT: ProjectId = ProjectId::from_bits(1);
    const PREVIEW: PreviewId = PreviewId::from_bits(1);
    const MACHINE: MachineId = MachineId::from_bits(1);
    const JOB: JobId = JobId::from_bits(1);

    /// A core with one test of a live preview, which a registered machine has and whose command gets the secret `KEY`.
    struct World {
        records: SharedRecords,
        effects: Effects,
        agent: SessionEntry,
        _folder: TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
            let records = SharedRecords::new(records());
            let config = Config::default();
            let effects = fixtures::effects(folder.path(), config, store, records.clone());
            let agent = effects.sessions.open(MACHINE);
            let secrets = &effects.assigner.secrets;
            secrets.set_project_secret(PROJECT, "KEY", &"its value".into()).unwrap();
            Self { records, effects, agent, _folder: folder }
        }

        fn change(&self, change: impl FnOnce(&mut Test)) {
            self.records.write(|records| {
                let job = records.jobs.get_mut(&JOB).unwrap();
                let JobKind::Test { test, .. } = &mut job.kind else { panic!() };
                change(test);
            });
        }

        fn access(&self, access: Access) {
            self.records.write(|records| {
                let preview = records.previews.get_mut(&PREVIEW).unwrap();
                preview.shown.as_mut().unwrap().deployment.settings.access = access;
            });
        }

        /// The TEST that the agent gets.
        async fn test(&mut self) -> TestMessage {
            let failed = self.effects.assigner.assign(MACHINE, attempt()).await;
            assert!(failed.is_none(), "{failed:?}");
            match *self.agent.messages.recv().await.unwrap() {
                CoreMessage::Test(test) => *test,
                other => panic!("{other:?}"),
            }
        }

        /// The failure of a job that no agent gets.
        async fn failure(&self) -> (FailureReason, String) {
            let event = self.effects.assigner.assign(MACHINE, attempt()).await;
            let Some(Event::JobReported { report, .. }) = event else { panic!("{event:?}") };
            let JobOutcome::Failed(failure) = report.outcome else { panic!("{report:?}") };
            (failure.reason, failure.message)
        }
    }

    fn attempt() -> Attempt {
        Attempt { job: JOB, number: 1 }
    }

    fn records() -> Records {
        let project = Project::new(PROJECT, "shop".to_owned(), "https://host/shop".to_owned());
        let environment = Environment::new(EnvironmentId::from_bits(1), PROJECT, "pr-7".to_owned());
        let run = Run::new(RunId::from_bits(1), &environment, String::new(), Timestamp(0));
        let test = Test {
            image: UsedImage::Image { image: "r/shop/tools:1".parse().unwrap() },
            command: vec!["npm".to_owned(), "test".to_owned()],
            env: stagely_protocol::BuildArgs::default(),
            secrets: vec!["KEY".to_owned()],
            shard: Shard { index: 2, total: 3 },
            retries: 1,
            junit: vec!["results/*.xml".to_owned()],
            artifacts: vec!["report/**".to_owned()],
            comment_images: Vec::new(),
            on: TestMachine::Tester,
            preview_of: Some(Timestamp(0)),
        };
        let kind = JobKind::Test { arch: None, test: Box::new(test) };
        let planned = PlannedJob::new(JOB, "e2e", kind, Duration::from_mins(30));
        let state = JobState::Provisioning { attempt: 1, machine: MACHINE };
        let job = Job { state, attempt: 1, ..Job::queued(planned, run.id, Timestamp(0)) };
        let source = CommitSource {
            repository: String::new(),
            branch: None,
            from_fork: false,
            github: None,
        };
        let shown = Generation {
            number: 1,
            run: run.id,
            commit: "c".repeat(40).parse().unwrap(),
            source,
            requested_at: Timestamp(0),
            deployment: fixtures::deployment(),
            arch: Arch::Amd64,
            size: MachineSize::Medium,
            timeout: Duration::from_mins(30),
        };
        let preview = Preview {
            state: PreviewState::Live { machine: MachineId::from_bits(2) },
            shown: Some(shown),
            ..Preview::new(PREVIEW, PROJECT, environment.id, Timestamp(0))
        };
        let mut records = Records::default();
        records.machines.insert(MACHINE, fixtures::machine(1));
        records.previews.insert(PREVIEW, preview);
        records.jobs.insert(JOB, job);
        records.runs.insert(run.id, run);
        records.environments.insert(environment.id, environment);
        records.projects.insert(PROJECT, project);
        records
    }

    #[tokio::test]
    async fn a_test_gets_the_address_of_the_preview_and_what_opens_it() {
        let mut world = World::new();
        let test = world.test().await;
        let preview = test.preview.unwrap();
        assert_eq!(preview.url, "http://pr-7-shop.localhost:7780");
        assert_eq!(preview.preview_id, None);
        let key = {
            let records = world.records.read();
            world.effects.assigner.links.access_key(&records.previews[&PREVIEW], Access::Link)
        };
        assert_eq!(preview.headers.0[ACCESS_HEADER].expose_secret(), key.expose_secret());
        assert_eq!(test.secrets.0["KEY"].expose_secret(), "its value");
        assert_eq!((test.shard, test.retries), (Shard { index: 2, total: 3 }, 1));
        assert_eq!((test.timeout_seconds, &*test.junit), (1800, &["results/*.xml".to_owned()][..]));
    }

    #[tokio::test]
    async fn a_public_preview_needs_no_header_and_one_on_its_machine_is_named() {
        let mut world = World::new();
        world.access(Access::Public);
        world.change(|test| test.on = TestMachine::Preview);
        let preview = world.test().await.preview.unwrap();
        assert!(preview.headers.is_empty());
        assert_eq!(preview.preview_id, Some(PREVIEW.wire()));
    }

    #[tokio::test]
    async fn a_test_without_a_preview_gets_no_address() {
        let mut world = World::new();
        world.change(|test| test.preview_of = None);
        assert!(world.test().await.preview.is_none());
    }

    #[tokio::test]
    async fn tests_of_forks_get_no_secrets() {
        let mut world = World::new();
        world.records.write(|records| {
            records.runs.values_mut().for_each(|run| run.from_fork = true);
        });
        assert!(world.test().await.secrets.is_empty());
    }

    #[tokio::test]
    async fn only_images_of_cores_registry_get_its_login() {
        let mut world = World::new();
        let folder = tempfile::tempdir().unwrap();
        let password_file = folder.path().join("password");
        std::fs::write(&password_file, "very secret").unwrap();
        world.effects.assigner.login = RegistryConfig {
            url: Some("registry.internal/team".to_owned()),
            username: Some("stagely".to_owned()),
            password_file: Some(password_file),
            insecure: false,
        };
        for (image, from_fork, is_sent) in [
            ("registry.internal/team/shop/main:tools", false, true),
            ("registry.internal/team/shop/main:tools", true, true),
            ("registry.internal/team/other/main:tools", false, true),
            ("registry.internal/team/other/main:tools", true, false),
            ("registry.internal/team/shopping/main:tools", true, false),
            ("registry.internal/teams/shop:1", false, false),
            ("registry.internal/other/shop:1", false, false),
            ("registry.internal.evil.example/team/shop:1", false, false),
            ("evil.example/registry.internal/team/shop:1", false, false),
            ("docker.io/library/node:24", false, false),
        ] {
            world.change(|test| test.image = UsedImage::Image { image: image.parse().unwrap() });
            world.records.write(|records| {
                records.runs.values_mut().for_each(|run| run.from_fork = from_fork);
            });
            let test = world.test().await;
            assert_eq!(test.registry_auth.is_some(), is_sent, "{image} {from_fork}");
        }
    }

    #[tokio::test]
    async fn a_secret_that_is_not_set_fails_the_test_with_advice() {
        let world = World::new();
        world.change(|test| test.secrets.push("OTHER".to_owned()));
        let (reason, message) = world.failure().await;
        assert!(reason.is_users());
        assert!(message.contains("`stagely secret set shop OTHER`"), "{message}");
    }

    #[tokio::test]
    async fn a_test_that_is_too_long_for_a_message_fails() {
        let world = World::new();
        world.change(|test| test.command = vec!["x".repeat(MESSAGE_BYTES_MAX)]);
        let (reason, message) = world.failure().await;
        assert_eq!(reason, FailureReason::Manifest);
        assert!(message.contains("description of the test"), "{message}");
    }
}
