//! The DEPLOY of a deploy job.

use std::collections::BTreeMap;

use anyhow::Context as _;
use secrecy::SecretString;
use stagely_protocol::{
    CloneContext, CoreMessage, Deploy, ImageRef, MESSAGE_BYTES_MAX, RegistryAuth, Secrets,
};
use stagely_state::{Attempt, Job, JobKind, Machine, MachineKind, ProviderName, UsedImage};
use thiserror::Error;

use super::build::image_of;
use crate::core::records::Records;

/// What a DEPLOY holds beside its records.
pub(super) struct DeployInputs {
    pub(super) registry_auth: Option<RegistryAuth>,
    pub(super) clone_token: Option<SecretString>,
    pub(super) secrets: Secrets,
    pub(super) allow_privileged: bool,
}

/// The message would be longer than what an agent takes.
#[derive(Debug, Error)]
#[error(
    "the deployment's description takes {bytes} bytes, but an agent takes at most {MESSAGE_BYTES_MAX}; give it \
     fewer or shorter variables and secrets"
)]
pub(super) struct TooLong {
    bytes: usize,
}

/// Whether the machine was launched for its preview and has a kernel of its own.
pub(super) fn is_own_virtual_machine(machine: &Machine) -> bool {
    match machine.provider {
        // Its engine is that of core's host.
        ProviderName::Local => false,
        ProviderName::Aws | ProviderName::DigitalOcean | ProviderName::Qemu => {
            machine.kind == MachineKind::Launched
        }
    }
}

pub(super) fn message(
    records: &Records,
    job: &Job,
    attempt: Attempt,
    inputs: DeployInputs,
) -> anyhow::Result<CoreMessage> {
    let JobKind::Deploy { deployment, .. } = &job.kind else {
        anyhow::bail!("{} is no deployment", job.name);
    };
    let run = records.runs.get(&job.run).context("the job's run has no record")?;
    let preview = records.preview_of(run.environment).context("the environment has no preview")?;
    let images = by_digest(records, &deployment.images)?;
    let default_images = by_digest(records, &deployment.default_images)?;
    let service = deployment.endpoints.first().map_or("", |endpoint| &*endpoint.service);
    let of_first = || images.get(service).or_else(|| default_images.get(service));
    // An agent that reads only this runs something.
    let any = || images.values().chain(default_images.values()).next();
    let image = of_first().or_else(any).context("the preview has no image")?.clone();
    let commit = run.commit.clone().context("the run has no commit")?;
    let context = deployment.compose.is_some().then(|| CloneContext {
        repo_url: run.repository.clone(),
        commit_hash: commit,
        branch: run.branch.clone(),
        clone_token: inputs.clone_token,
        submodules: deployment.submodules,
    });
    let only_image = deployment.compose.is_none();
    let deploy = Deploy {
        job_id: attempt.wire(),
        preview_id: preview.id.wire(),
        generation: preview.last_generation,
        image,
        images: if only_image { BTreeMap::new() } else { images },
        default_images,
        context,
        compose_path: deployment.compose.clone(),
        endpoints: deployment.endpoints.clone(),
        env: deployment.env.clone(),
        secrets: inputs.secrets,
        migrate: deployment.migrate.clone(),
        seed: deployment.seed.clone(),
        fresh: deployment.fresh,
        restore: preview.archive.as_ref().map(|archive| archive.digest.clone()),
        allow_privileged: inputs.allow_privileged,
        timeout_seconds: job.timeout.as_secs(),
        registry_auth: inputs.registry_auth,
    };
    let message = CoreMessage::Deploy(Box::new(deploy));
    let bytes = message.to_json().len();
    if bytes > MESSAGE_BYTES_MAX { Err(TooLong { bytes }.into()) } else { Ok(message) }
}

fn by_digest(
    records: &Records,
    images: &BTreeMap<String, UsedImage>,
) -> anyhow::Result<BTreeMap<String, ImageRef>> {
    images.iter().map(|(name, used)| Ok((name.clone(), used_image(records, used)?))).collect()
}

/// The image, by digest if its agent reported one.
pub(super) fn used_image(records: &Records, used: &UsedImage) -> anyhow::Result<ImageRef> {
    match used {
        UsedImage::Image { image } => Ok(image.clone()),
        UsedImage::Job { job } => {
            image_of(records.jobs.get(job).context("a job that is used has no record")?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use secrecy::ExposeSecret as _;
    use stagely_protocol::{Arch, DeployProblem, FailureReason};
    use stagely_state::ids::{EnvironmentId, JobId, MachineId, PreviewId, ProjectId, RunId};
    use stagely_state::{
        CommitSource, Deployment, Environment, Event, Generation, JobOutcome, JobState,
        LaunchFailure, MachineSize, MachineState, PlannedJob, Preview, Project, Run, Timestamp,
        Trigger,
    };
    use stagely_test_support::git::{GitServer, Repository};
    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;
    use crate::core::effects::Effects;
    use crate::core::fixtures;
    use crate::core::records::SharedRecords;
    use crate::core::sessions::SessionEntry;
    use crate::core::store::Store;

    const PROJECT: ProjectId = ProjectId::from_bits(1);
    const MACHINE: MachineId = MachineId::from_bits(1);
    const JOB: JobId = JobId::from_bits(1);

    /// A core with one deploy job, which a registered machine has and whose services get the secret `KEY`.
    struct World {
        records: SharedRecords,
        effects: Effects,
        agent: SessionEntry,
        _folder: TempDir,
    }

    impl World {
        fn new() -> Self {
            Self::with(&Config::default())
        }

        fn with(config: &Config) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(&folder.path().join("core.redb")).unwrap();
            let records = SharedRecords::new(records());
            let effects = fixtures::effects(folder.path(), config.clone(), store, records.clone());
            let agent = effects.sessions.open(MACHINE);
            Self { records, effects, agent, _folder: folder }
        }

        fn set(&self, name: &str, value: &str) {
            let secrets = &self.effects.assigner.secrets;
            secrets.set_project_secret(PROJECT, name, &value.into()).unwrap();
        }

        /// The DEPLOY that the agent gets.
        async fn deploy(&mut self) -> Deploy {
            let failed = self.effects.assigner.assign(MACHINE, attempt()).await;
            assert!(failed.is_none(), "{failed:?}");
            match *self.agent.messages.recv().await.unwrap() {
                CoreMessage::Deploy(deploy) => *deploy,
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
        let run = Run { commit: Some("c".repeat(40).parse().unwrap()), ..run };
        let deployment = Deployment { secrets: vec!["KEY".to_owned()], ..fixtures::deployment() };
        let kind = JobKind::Deploy { arch: Some(Arch::Amd64), deployment: Box::new(deployment) };
        let planned = PlannedJob::new(JOB, "deploy", kind, Duration::from_mins(30));
        let state = JobState::Running { attempt: 1, machine: MACHINE, deadline: Timestamp(1) };
        let job = Job { state, attempt: 1, ..Job::queued(planned, run.id, Timestamp(0)) };
        let id = PreviewId::from_bits(1);
        let preview = Preview::new(id, PROJECT, environment.id, Timestamp(0));
        let mut records = Records::default();
        records.machines.insert(MACHINE, fixtures::machine(1));
        records.previews.insert(id, preview);
        records.jobs.insert(JOB, job);
        records.runs.insert(run.id, run);
        records.environments.insert(environment.id, environment);
        records.projects.insert(PROJECT, project);
        records
    }

    #[tokio::test]
    async fn services_get_the_secrets_that_stagely_yaml_names() {
        let mut world = World::new();
        world.set("KEY", "its value");
        world.set("UNUSED", "another value");
        let Secrets(secrets) = world.deploy().await.secrets;
        let secrets: Vec<_> =
            secrets.iter().map(|(name, value)| (&**name, value.expose_secret())).collect();
        assert_eq!(secrets, [("KEY", "its value")]);
    }

    #[tokio::test]
    async fn a_secret_that_is_not_set_is_the_users_failure_with_advice() {
        let (reason, message) = World::new().failure().await;
        assert_eq!(reason, FailureReason::Deploy { problem: DeployProblem::Secret });
        assert!(reason.is_users());
        assert!(
            message.contains("not set: KEY; set them with `stagely secret set shop KEY`"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_fork_gets_no_secrets() {
        let mut world = World::new();
        world.set("KEY", "its value");
        world.records.write(|records| {
            records.runs.values_mut().for_each(|run| run.from_fork = true);
        });
        assert!(world.deploy().await.secrets.is_empty());
    }

    #[tokio::test]
    async fn secrets_that_are_too_long_together_fail_the_job() {
        let world = World::new();
        world.records.write(|records| {
            let job = records.jobs.get_mut(&JOB).unwrap();
            let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!() };
            deployment.secrets = (0..40).map(|number| format!("KEY_{number}")).collect();
        });
        (0..40).for_each(|number| world.set(&format!("KEY_{number}"), &"x".repeat(64 * 1024)));
        let (reason, message) = world.failure().await;
        assert_eq!(reason, FailureReason::Manifest);
        assert!(message.contains("variables and secrets"), "{message}");
    }

    #[tokio::test]
    async fn privileges_need_the_setting_and_a_virtual_machine_of_the_preview() {
        let mut config = Config::default();
        for is_set in [false, true] {
            config.previews.allow_privileged = is_set;
            for (kind, provider, is_own) in [
                (MachineKind::Launched, ProviderName::Aws, true),
                (MachineKind::Launched, ProviderName::DigitalOcean, true),
                (MachineKind::Launched, ProviderName::Qemu, true),
                (MachineKind::Launched, ProviderName::Local, false),
                (MachineKind::Registered, ProviderName::Aws, false),
                (MachineKind::Registered, ProviderName::Local, false),
            ] {
                let mut world = World::with(&config);
                world.set("KEY", "value");
                world.records.write(|records| {
                    let machine = records.machines.get_mut(&MACHINE).unwrap();
                    (machine.kind, machine.provider) = (kind, provider);
                });
                let deploy = world.deploy().await;
                assert_eq!(deploy.allow_privileged, is_set && is_own, "{kind:?} {provider}");
            }
        }
    }

    /// A preview that shows `shown`, and a deployment of `head` with the patterns of `reset_when`.
    fn shows(world: &World, repository: &Repository, url: &str, shown: &str, head: &str) {
        let commit = |name: &str| repository.git(&["rev-parse", name]).parse().unwrap();
        let source = CommitSource {
            repository: url.to_owned(),
            branch: None,
            from_fork: false,
            github: None,
        };
        world.records.write(|records| {
            let run = records.runs.get_mut(&RunId::from_bits(1)).unwrap();
            (run.repository, run.commit) = (url.to_owned(), Some(commit(head)));
            let job = records.jobs.get_mut(&JOB).unwrap();
            let JobKind::Deploy { deployment, .. } = &mut job.kind else { panic!() };
            deployment.reset_when = vec!["db/**".to_owned()];
            let preview = records.previews.get_mut(&PreviewId::from_bits(1)).unwrap();
            preview.shown = Some(Generation {
                number: 1,
                run: RunId::from_bits(9),
                commit: commit(shown),
                requested_at: Timestamp(0),
                source,
                deployment: (**deployment).clone(),
                arch: Arch::Amd64,
                size: MachineSize::default(),
                timeout: Duration::from_mins(1),
            });
        });
    }

    #[tokio::test]
    async fn data_is_deleted_if_a_file_was_edited_that_is_deployed_when_the_agent_gets_the_job() {
        let server = GitServer::start();
        let repository = server.repository("shop", true);
        let url = server.url("open", "shop/.git");
        for (name, files) in [
            ("one", &[("db/1.sql", "a")][..]),
            ("added", &[("db/2.sql", "b"), ("web/x", "1")]),
            ("edited", &[("db/2.sql", "c")]),
            ("elsewhere", &[("web/x", "2")]),
        ] {
            repository.commit(files);
            repository.git(&["tag", name]);
        }
        let world = World::new();
        world.set("KEY", "value");
        let resets = async || {
            let event = world.effects.assigner.assign(MACHINE, attempt()).await;
            match event {
                None => false,
                Some(Event::FilesNeedReset { machine, attempt: of }) => {
                    assert_eq!((machine, of), (MACHINE, attempt()));
                    true
                }
                other => panic!("{other:?}"),
            }
        };
        for (shown, head, is_reset) in [
            ("one", "added", false),
            ("one", "edited", false),
            ("added", "edited", true),
            ("edited", "elsewhere", false),
            // Removed.
            ("added", "one", true),
            ("edited", "edited", false),
        ] {
            shows(&world, &repository, &url, shown, head);
            assert_eq!(resets().await, is_reset, "{shown}..{head}");
        }

        // A deployment that failed has run its migration.
        shows(&world, &repository, &url, "one", "edited");
        let added: stagely_protocol::CommitSha =
            repository.git(&["rev-parse", "added"]).parse().unwrap();
        let change = |change: &dyn Fn(&mut Records)| world.records.write(|records| change(records));
        change(&|records| {
            let preview = records.previews.get_mut(&PreviewId::from_bits(1)).unwrap();
            preview.attempted_commits = vec!["d".repeat(40).parse().unwrap(), added.clone()];
        });
        assert!(resets().await, "also if another commit is gone");
        // A preview that only gets its images back, or wakes, keeps its data.
        for trigger in [Trigger::Wake, Trigger::ImagesGone] {
            shows(&world, &repository, &url, "edited", "edited");
            change(&|records| {
                records.runs.get_mut(&RunId::from_bits(1)).unwrap().trigger = trigger;
            });
            assert!(!resets().await, "{trigger:?}");
        }
    }

    #[tokio::test]
    async fn no_machine_is_requested_for_a_deployment_whose_secrets_are_not_set() {
        let world = World::new();
        let machine = MachineId::from_bits(2);
        world.records.write(|records| {
            let state = MachineState::Requested;
            let requested_for = Some(JOB);
            let launched = Machine { id: machine, state, requested_for, ..fixtures::machine(2) };
            records.machines.insert(machine, launched);
        });
        let failure = async || match world.effects.launcher.launch(machine).await {
            Event::LaunchFailed { failure, .. } => failure,
            other => panic!("{other:?}"),
        };
        let missing = failure().await;
        let LaunchFailure::MissingSecrets(message) = missing else { panic!("{missing:?}") };
        assert!(message.contains("`stagely secret set shop KEY`"), "{message}");
        world.set("KEY", "value");
        // There is no provider in this test.
        let next = failure().await;
        assert!(matches!(next, LaunchFailure::Permanent(_)), "{next:?}");
    }
}
