//! Assigns a job to the agent of its machine.

mod build;
mod deploy;
mod test;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::SecretString;
use stagely_protocol::{
    Build, CoreMessage, DeployProblem, Digest, ErrorChain, FailureReason, Fingerprint, ImageRef,
    Merge, RegistryAuth, Secrets, Step,
};
use stagely_state::ids::{JobId, MachineId};
use stagely_state::{
    Attempt, Event, Job, JobFailure, JobKind, JobOutcome, JobReport, JobState, Project, Run,
};
use tokio::task::spawn_blocking;
use tracing::warn;

use self::deploy::DeployInputs;
use self::test::TestInputs;
use super::clone_token::{CLONE_TOKEN_RETRIES, retry_clone_token};
use super::edited_files::Comparison;
use super::project_secrets::{self, MissingSecrets};
use super::{CloneTokens, EditedFiles};
use crate::config::RegistryConfig;
use crate::core::history::History;
use crate::core::previews::PreviewLinks;
use crate::core::records::{Records, SharedRecords};
use crate::core::registry::Registry;
use crate::core::secrets::{RunSecrets, SecretStore, SecretsOf};
use crate::core::sessions::Sessions;
use crate::core::store::Store;

#[derive(Debug)]
pub(crate) struct Assigner {
    pub(crate) login: RegistryConfig,
    pub(crate) records: SharedRecords,
    pub(crate) sessions: Sessions,
    pub(crate) secrets: SecretStore,
    pub(crate) store: Store,
    pub(crate) history: History,
    pub(crate) registry: Arc<Registry>,
    pub(crate) clone_tokens: CloneTokens,
    pub(crate) edited_files: EditedFiles,
    /// `previews.allow-privileged`.
    pub(crate) allow_privileged: bool,
    /// The addresses of what is tested.
    pub(crate) links: PreviewLinks,
}

impl Assigner {
    /// Sends the job to the agent. An agent that has gone gets it after its next HELLO. A deployment whose data has to be
    /// deleted is not sent before that is recorded.
    pub(super) async fn assign(&self, machine: MachineId, attempt: Attempt) -> Option<Event> {
        let assigned = async {
            let Some(inputs) = self.inputs(machine, attempt).await? else { return Ok(None) };
            if inputs.needs_reset {
                return Ok(Some(Event::FilesNeedReset { machine, attempt }));
            }
            self.send_job(machine, attempt, inputs).map(|()| None)
        };
        match assigned.await {
            Ok(event) => event,
            Err(error) => {
                let message = format!("{error:#}");
                warn!(%attempt, message, "a job cannot be assigned to its agent");
                let reason = failure_reason(&error);
                let outcome = JobOutcome::Failed(JobFailure { reason, message, exit_code: None });
                let report = JobReport::new(outcome);
                Some(Event::JobReported { machine, attempt, report })
            }
        }
    }

    /// Sends the job if the machine still has the attempt. Events after the decision for this effect may have taken it
    /// away, and an agent must not start a job again that it has ended or must stop. The records stay locked until the
    /// job is sent.
    fn send_job(
        &self,
        machine: MachineId,
        attempt: Attempt,
        inputs: JobInputs,
    ) -> anyhow::Result<()> {
        let records = self.records.read();
        if let Some(job) = attempted(&records, machine, attempt) {
            self.sessions.send(machine, self.message(&records, job, attempt, inputs)?);
        }
        Ok(())
    }

    fn message(
        &self,
        records: &Records,
        job: &Job,
        attempt: Attempt,
        inputs: JobInputs,
    ) -> anyhow::Result<CoreMessage> {
        let JobInputs {
            registry_auth,
            fingerprint,
            native_steps,
            digests,
            mut secrets,
            clone_token,
            project_secrets,
            allow_privileged,
            needs_reset: _,
        } = inputs;
        match &job.kind {
            JobKind::Build { .. } => {
                secrets.clone_token = secrets.clone_token.or(clone_token);
                let build = build::message(records, job, attempt, secrets)?;
                let build = Build { registry_auth, ..build };
                let native_steps = build::native_steps(records, job, native_steps);
                Ok(build::with_history(build, native_steps, fingerprint)?)
            }
            JobKind::Merge { platforms, image } => Ok(CoreMessage::Merge(Merge {
                job_id: attempt.wire(),
                source_images: sources(records, job, &digests)?,
                target_image: image.clone(),
                platforms: platforms.clone(),
                registry_auth,
            })),
            JobKind::Deploy { .. } => {
                let clone_token = secrets.clone_token.or(clone_token);
                let secrets = project_secrets;
                let inputs = DeployInputs { registry_auth, clone_token, secrets, allow_privileged };
                deploy::message(records, job, attempt, inputs)
            }
            JobKind::Test { .. } => {
                let (secrets, links, registry) = (project_secrets, &self.links, self.login.url());
                let inputs = TestInputs { registry, registry_auth, secrets, links };
                test::message(records, job, attempt, inputs)
            }
        }
    }

    /// Reads the inputs that come from files, the registry and GitHub, before the records are locked. `None` if the
    /// machine has lost the attempt meanwhile.
    async fn inputs(
        &self,
        machine: MachineId,
        attempt: Attempt,
    ) -> anyhow::Result<Option<JobInputs>> {
        let job = attempt.job;
        let cloned = self.cloned(job);
        let secrets = match &cloned {
            Some((run, _)) => {
                let of_run = SecretsOf::run(&self.records.read(), run);
                let secrets = self.secrets.clone();
                spawn_blocking(move || secrets.open(of_run)).await??
            }
            None => RunSecrets::default(),
        };
        let clone_token = match cloned {
            Some((run, project)) if secrets.clone_token.is_none() => {
                let token = self.clone_token(machine, attempt, &run, &project).await?;
                let Some(token) = token else { return Ok(None) };
                token
            }
            _ => None,
        };
        let comparison = Comparison::of(&self.records.read(), job);
        let needs_reset = match comparison {
            Some(comparison) => {
                let token = secrets.clone_token.clone().or_else(|| clone_token.clone());
                self.edited_files.need_reset(&comparison, token).await
            }
            None => false,
        };
        Ok(Some(JobInputs {
            registry_auth: self.registry_auth().await?,
            fingerprint: self.previous_fingerprint(job).await,
            native_steps: self.history.earlier_native_steps(job).await?,
            digests: self.digests_to_merge(job).await?,
            secrets,
            clone_token,
            project_secrets: project_secrets::open(&self.records, &self.secrets, job).await?,
            allow_privileged: self.allows_privileged(machine),
            needs_reset,
        }))
    }

    /// Whether a compose file may ask for access to its host: a virtual machine of this preview alone.
    fn allows_privileged(&self, machine: MachineId) -> bool {
        let records = self.records.read();
        let machine = records.machines.get(&machine);
        self.allow_privileged && machine.is_some_and(deploy::is_own_virtual_machine)
    }

    /// A token for this job alone, if core can have one. Repeats the request to a GitHub that does not answer as long as
    /// the machine has the attempt; `None` if it has lost it.
    async fn clone_token(
        &self,
        machine: MachineId,
        attempt: Attempt,
        run: &Run,
        project: &Project,
    ) -> anyhow::Result<Option<Option<SecretString>>> {
        let request = async || {
            if attempted(&self.records.read(), machine, attempt).is_none() {
                return Ok(None);
            }
            self.clone_tokens.repository_token(run, project).await.map(Some)
        };
        let what = "the request for a token for a clone";
        let token = CLONE_TOKEN_RETRIES.run(what, retry_clone_token, request).await;
        token.context("no token can be had for the clone")
    }

    /// The run and the project of a job that clones.
    fn cloned(&self, job: JobId) -> Option<(Run, Project)> {
        let records = self.records.read();
        let clones = |job: &&Job| match &job.kind {
            JobKind::Build { .. } => true,
            JobKind::Deploy { deployment, .. } => {
                deployment.compose.is_some() || !deployment.reset_when.is_empty()
            }
            // A test runs its image alone.
            JobKind::Merge { .. } | JobKind::Test { .. } => false,
        };
        let job = records.jobs.get(&job).filter(clones)?;
        let run = records.runs.get(&job.run)?;
        Some((run.clone(), records.projects.get(&run.project)?.clone()))
    }

    /// The digests of those images of the merge `id` whose agents reported none, read from the registry. Their
    /// references belong to this run alone.
    async fn digests_to_merge(&self, id: JobId) -> anyhow::Result<BTreeMap<JobId, Digest>> {
        let is_merge = |job: &&Job| matches!(job.kind, JobKind::Merge { .. });
        let unknown: Vec<(JobId, ImageRef)> = {
            let records = self.records.read();
            let merge = records.jobs.get(&id).filter(is_merge);
            let needed = merge.into_iter().flat_map(|merge| &merge.needs);
            let needed = needed.filter_map(|id| records.jobs.get(id));
            let unknown = needed.filter(|job| job.state == JobState::Completed { digest: None });
            unknown.filter_map(|job| Some((job.id, job.kind.image()?.clone()))).collect()
        };
        let mut digests = BTreeMap::new();
        for (job, image) in unknown {
            let digest = self.registry.digest(&image).await;
            digests
                .insert(job, digest.with_context(|| format!("cannot find out what {image} is"))?);
        }
        Ok(digests)
    }

    /// The fingerprint of the build whose cache `job` imports. Without one the job is built all the same, and
    /// its log does not explain why steps missed the cache.
    async fn previous_fingerprint(&self, job: JobId) -> Option<Fingerprint> {
        let caches = match &self.records.read().jobs.get(&job)?.kind {
            JobKind::Build { cache_from, .. } => cache_from.clone(),
            JobKind::Merge { .. } | JobKind::Deploy { .. } | JobKind::Test { .. } => return None,
        };
        let store = self.store.clone();
        let read = spawn_blocking(move || store.fingerprint(&caches)).await;
        read.expect("reading does not panic")
            .inspect_err(
                |error| warn!(%job, error = %ErrorChain(error), "a fingerprint cannot be read"),
            )
            .ok()
            .flatten()
    }

    async fn registry_auth(&self) -> anyhow::Result<Option<RegistryAuth>> {
        let login = self.login.clone();
        let password = spawn_blocking(move || login.password()).await??;
        let username = self.login.username.clone();
        Ok(username.zip(password).map(|(username, password)| RegistryAuth { username, password }))
    }
}

/// The job, if the machine still has the attempt.
fn attempted(records: &Records, machine: MachineId, attempt: Attempt) -> Option<&Job> {
    let has_it = |job: &&Job| job.state.attempt_on(machine) == Some(attempt.number);
    records.jobs.get(&attempt.job).filter(has_it)
}

/// The parts of a message that are not in the records.
struct JobInputs {
    registry_auth: Option<RegistryAuth>,
    fingerprint: Option<Fingerprint>,
    /// The steps of a native build in an earlier run, of an emulated job.
    native_steps: Vec<Step>,
    /// The digests of a merge's images whose agents reported none.
    digests: BTreeMap<JobId, Digest>,
    secrets: RunSecrets,
    /// For this job alone.
    clone_token: Option<SecretString>,
    /// Of a deployment or a test.
    project_secrets: Secrets,
    allow_privileged: bool,
    /// Whether a file was edited that `reset_when` names.
    needs_reset: bool,
}

/// Why a job whose message cannot be made fails.
fn failure_reason(error: &anyhow::Error) -> FailureReason {
    let is_too_long = error.is::<build::TooLong>()
        || error.is::<deploy::TooLong>()
        || error.is::<test::TooLong>();
    if is_too_long {
        FailureReason::Manifest
    } else if error.is::<MissingSecrets>() {
        FailureReason::Deploy { problem: DeployProblem::Secret }
    } else {
        FailureReason::Internal
    }
}

/// The images that a merge joins, by digest: a tag may have moved.
fn sources(
    records: &Records,
    merge: &Job,
    digests: &BTreeMap<JobId, Digest>,
) -> anyhow::Result<Vec<ImageRef>> {
    let source = |id: &JobId| {
        let needed = records.jobs.get(id).context("a job that is merged has no record")?;
        match digests.get(id) {
            Some(digest) => {
                let image = needed.kind.image().context("a deployment makes no image")?;
                Ok(image.at_digest(digest))
            }
            None => build::image_of(needed),
        }
    };
    merge.needs.iter().map(source).collect()
}
