//! Gives a job to the agent of its machine.

use std::sync::Arc;

use anyhow::Context as _;
use stagely_agent::protocol::{
    Build, CoreMessage, FailureReason, Fingerprint, ImageRef, Merge, RegistryAuth,
};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Effects, build};
use crate::core::records::Records;
use crate::core::state::{Attempt, Event, Job, JobKind, JobOutcome, JobReport, JobState};
use crate::ids::{JobId, MachineId};

impl Effects {
    /// Sends the job to the agent. An agent that has gone gets it after its next HELLO.
    pub(super) async fn assign(&self, machine: MachineId, attempt: Attempt) -> Option<Event> {
        // Before the records are read: these come from files.
        let given = match self.registry_auth().await {
            Ok(auth) => Ok((auth, self.previous_fingerprint(attempt.job).await)),
            Err(error) => Err(error),
        };
        match given.and_then(|given| self.send_job(machine, attempt, given)) {
            Ok(()) => None,
            Err(error) => {
                let message = format!("{error:#}");
                warn!(%attempt, message, "cannot be given to its agent");
                let reason = if error.is::<build::TooLong>() {
                    FailureReason::Manifest
                } else {
                    FailureReason::Internal
                };
                let outcome = JobOutcome::Failed { reason, message, exit_code: None };
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
        (auth, fingerprint): (Option<RegistryAuth>, Option<Fingerprint>),
    ) -> anyhow::Result<()> {
        let records = self.records.read();
        let job = records.jobs.get(&attempt.job);
        let has_it = |job: &&Job| job.state.attempt_on(machine) == Some(attempt.number);
        if let Some(job) = job.filter(has_it) {
            self.sessions.send(machine, self.message(&records, job, attempt, auth, fingerprint)?);
        }
        Ok(())
    }

    fn message(
        &self,
        records: &Records,
        job: &Job,
        attempt: Attempt,
        registry_auth: Option<RegistryAuth>,
        fingerprint: Option<Fingerprint>,
    ) -> anyhow::Result<CoreMessage> {
        match &job.kind {
            JobKind::Build { .. } => {
                let secrets = self.secrets.open_run(job.run)?;
                let build = build::message(records, job, attempt, secrets)?;
                let build = Build { registry_auth, ..build };
                Ok(build::with_history(build, records, job, fingerprint)?)
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

    /// What the build was made of whose cache `job` imports. Without it the job is built all the same, and
    /// only its log says less.
    async fn previous_fingerprint(&self, job: JobId) -> Option<Fingerprint> {
        let caches = match &self.records.read().jobs.get(&job)?.kind {
            JobKind::Build { cache_from, .. } => cache_from.clone(),
            JobKind::Merge { .. } => return None,
        };
        let store = self.store.clone();
        let read = spawn_blocking(move || store.fingerprint(&caches)).await;
        read.expect("reading does not panic")
            .inspect_err(|error| warn!(%job, %error, "a fingerprint cannot be read"))
            .ok()
            .flatten()
    }

    async fn registry_auth(&self) -> anyhow::Result<Option<RegistryAuth>> {
        let config = Arc::clone(&self.config);
        let password = spawn_blocking(move || config.registry.password()).await??;
        let username = self.config.registry.username.clone();
        Ok(username.zip(password).map(|(username, password)| RegistryAuth { username, password }))
    }
}

/// What a merge joins: by digest, since a tag may have moved. An agent that reports no digest leaves
/// only the tag.
fn sources(records: &Records, merge: &Job) -> anyhow::Result<Vec<ImageRef>> {
    merge
        .needs
        .iter()
        .map(|id| {
            let needed = records.jobs.get(id).context("a job that is merged has no record")?;
            image_of(needed)
        })
        .collect()
}

/// The image of a completed job, by digest where it is known.
pub(super) fn image_of(job: &Job) -> anyhow::Result<ImageRef> {
    let JobState::Completed { digest } = &job.state else {
        anyhow::bail!("{} is not completed", job.name);
    };
    let image = job.kind.image();
    Ok(digest.as_ref().map_or_else(|| image.clone(), |digest| image.at_digest(digest)))
}
