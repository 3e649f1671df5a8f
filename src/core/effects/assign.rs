//! Gives a job to the agent of its machine.

use std::collections::BTreeMap;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_agent::protocol::{
    Build, BuildArgs, BuildConfig, CloneContext, CoreMessage, FailureReason, ImageRef, Merge,
    RegistryAuth,
};
use tracing::warn;

use super::Effects;
use crate::core::records::Records;
use crate::core::state::{Attempt, Event, Job, JobKind, JobOutcome, JobReport, JobState};
use crate::ids::MachineId;

impl Effects {
    /// Sends the job to the agent. An agent that has gone gets it after its next HELLO.
    pub(super) fn assign(&self, machine: MachineId, attempt: Attempt) -> Option<Event> {
        if !self.is_wanted(machine, attempt) {
            return None;
        }
        match self.message(attempt) {
            Ok(message) => {
                self.sessions.send(machine, message);
                None
            }
            Err(error) => {
                let message = format!("{error:#}");
                warn!(%attempt, message, "cannot be given to its agent");
                let outcome = JobOutcome::Failed {
                    reason: FailureReason::Internal,
                    message,
                    exit_code: None,
                };
                let report = JobReport { outcome, steps: Vec::new(), warnings: Vec::new() };
                let Attempt { job, number } = attempt;
                Some(Event::JobReported { machine, job, attempt: number, report })
            }
        }
    }

    /// Whether the machine still has the attempt: effects run beside the events that come after them,
    /// and what an agent has ended or been told to stop it must not begin again.
    fn is_wanted(&self, machine: MachineId, attempt: Attempt) -> bool {
        let records = self.records.read();
        let job = records.jobs.get(&attempt.job);
        job.is_some_and(|job| job.state.attempt_on(machine) == Some(attempt.number))
    }

    fn message(&self, attempt: Attempt) -> anyhow::Result<CoreMessage> {
        let records = self.records.read();
        let job = records.jobs.get(&attempt.job).context("the job has no record")?;
        match &job.kind {
            JobKind::Build { .. } => {
                Ok(CoreMessage::Build(Box::new(self.build_message(&records, job, attempt)?)))
            }
            JobKind::Merge { platforms, image } => Ok(CoreMessage::Merge(Merge {
                job_id: attempt.wire(),
                source_images: sources(&records, job)?,
                target_image: image.clone(),
                platforms: platforms.clone(),
                registry_auth: self.registry_auth()?,
            })),
        }
    }

    fn build_message(
        &self,
        records: &Records,
        job: &Job,
        attempt: Attempt,
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
            },
            registry_auth: self.registry_auth()?,
        })
    }

    fn registry_auth(&self) -> anyhow::Result<Option<RegistryAuth>> {
        let registry = &self.config.registry;
        let password = registry.password()?;
        Ok(registry
            .username
            .clone()
            .zip(password)
            .map(|(username, password)| RegistryAuth { username, password }))
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
