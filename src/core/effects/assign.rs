//! Gives a job to the agent of its machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_agent::protocol::{
    Build, BuildArgs, BuildConfig, CloneContext, CoreMessage, FailureReason, ImageRef, Merge,
    RegistryAuth,
};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::Effects;
use crate::core::records::Records;
use crate::core::state::{Attempt, Event, Job, JobKind, JobOutcome, JobReport, JobState};
use crate::ids::MachineId;

impl Effects {
    /// Sends the job to the agent. An agent that has gone gets it after its next HELLO.
    pub(super) async fn assign(&self, machine: MachineId, attempt: Attempt) -> Option<Event> {
        // Before the records are read: it comes from a file.
        let auth = self.registry_auth().await;
        match auth.and_then(|auth| self.send_job(machine, attempt, auth)) {
            Ok(()) => None,
            Err(error) => {
                let message = format!("{error:#}");
                warn!(%attempt, message, "cannot be given to its agent");
                let outcome = JobOutcome::Failed {
                    reason: FailureReason::Internal,
                    message,
                    exit_code: None,
                };
                let report = JobReport::new(outcome);
                let Attempt { job, number } = attempt;
                Some(Event::JobReported { machine, job, attempt: number, report })
            }
        }
    }

    /// Sends the job if the machine still has the attempt: effects run beside the events that come after
    /// them, and what an agent has ended or been told to stop it must not begin again. The records stay
    /// as they are until it is sent.
    fn send_job(
        &self,
        machine: MachineId,
        attempt: Attempt,
        auth: Option<RegistryAuth>,
    ) -> anyhow::Result<()> {
        let records = self.records.read();
        let job = records.jobs.get(&attempt.job);
        let has_it = |job: &&Job| job.state.attempt_on(machine) == Some(attempt.number);
        if let Some(job) = job.filter(has_it) {
            self.sessions.send(machine, self.message(&records, job, attempt, auth)?);
        }
        Ok(())
    }

    fn message(
        &self,
        records: &Records,
        job: &Job,
        attempt: Attempt,
        registry_auth: Option<RegistryAuth>,
    ) -> anyhow::Result<CoreMessage> {
        match &job.kind {
            JobKind::Build { .. } => {
                let build = self.build_message(records, job, attempt, registry_auth)?;
                Ok(CoreMessage::Build(Box::new(build)))
            }
            JobKind::Merge { platforms, image } => Ok(CoreMessage::Merge(Merge {
                job_id: attempt.wire(),
                source_images: sources(records, job)?,
                target_image: image.clone(),
                platforms: platforms.clone(),
                registry_auth,
            })),
        }
    }

    fn build_message(
        &self,
        records: &Records,
        job: &Job,
        attempt: Attempt,
        registry_auth: Option<RegistryAuth>,
    ) -> anyhow::Result<Build> {
        let JobKind::Build {
            platform,
            context,
            dockerfile,
            target,
            build_args,
            image,
            cache_from,
            cache_to,
            push,
            uses: _,
            emulation,
        } = &job.kind
        else {
            anyhow::bail!("{} is not a build job", job.name);
        };
        let run = records.runs.get(&job.run).context("the job's run has no record")?;
        let secrets = self.secrets.open_run(run.id)?;
        Ok(Build {
            job_id: attempt.wire(),
            context: CloneContext {
                repo_url: run.repository.clone(),
                commit_hash: run.commit.clone().context("the run has no commit")?,
                branch: run.branch.clone(),
                clone_token: secrets.clone_token,
            },
            build_config: BuildConfig {
                context_path: context.clone(),
                dockerfile: dockerfile.clone(),
                target_image: image.clone(),
                platform: *platform,
                build_args: with_set(build_args, &secrets.set),
                target: target.clone(),
                cache_from: cache_from.clone(),
                cache_to: cache_to.clone(),
                timeout_seconds: job.timeout.as_secs(),
                push: *push,
                build_contexts: BTreeMap::new(),
                emulation: *emulation,
                native_steps: Vec::new(),
                previous_fingerprint: None,
            },
            registry_auth,
        })
    }

    async fn registry_auth(&self) -> anyhow::Result<Option<RegistryAuth>> {
        let config = Arc::clone(&self.config);
        let password = spawn_blocking(move || config.registry.password()).await??;
        let username = self.config.registry.username.clone();
        Ok(username.zip(password).map(|(username, password)| RegistryAuth { username, password }))
    }
}

/// The arguments of `stagely.yaml`, with those that the run's caller set over them.
fn with_set(build_args: &BuildArgs, set: &BTreeMap<String, SecretString>) -> BuildArgs {
    let mut all = build_args.clone();
    all.0.extend(set.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())));
    all
}

/// What a merge joins: by digest, since a tag may have moved. An agent that reports no digest leaves
/// only the tag.
fn sources(records: &Records, merge: &Job) -> anyhow::Result<Vec<ImageRef>> {
    merge
        .needs
        .iter()
        .map(|id| {
            let needed = records.jobs.get(id).context("a job that is merged has no record")?;
            let JobKind::Build { image, .. } = &needed.kind else {
                anyhow::bail!("{} is not a build job", needed.name);
            };
            let JobState::Completed { digest } = &needed.state else {
                anyhow::bail!("{} is not completed", needed.name);
            };
            Ok(digest.as_ref().map_or_else(|| image.clone(), |digest| image.at_digest(digest)))
        })
        .collect()
}
