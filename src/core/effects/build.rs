//! BUILD, as a job's agent gets it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_agent::protocol::{
    Build, BuildArgs, BuildConfig, CloneContext, CoreMessage, Fingerprint, ImageRef,
    MESSAGE_BYTES_MAX,
};

use super::RunSecrets;
use super::assign::image_of;
use crate::core::plan::image_argument;
use crate::core::records::Records;
use crate::core::state::{Attempt, Job, JobKind, UsedImage};

/// What is to be built, and of what.
pub(super) fn message(
    records: &Records,
    job: &Job,
    attempt: Attempt,
    secrets: RunSecrets,
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
        uses,
        emulation,
    } = &job.kind
    else {
        anyhow::bail!("{} is not a build job", job.name);
    };
    let run = records.runs.get(&job.run).context("the job's run has no record")?;
    let build_contexts = used_images(records, uses)?;
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
            build_args: all_arguments(build_args, &build_contexts, &secrets.set),
            target: target.clone(),
            cache_from: cache_from.clone(),
            cache_to: cache_to.clone(),
            timeout_seconds: job.timeout.as_secs(),
            push: *push,
            build_contexts,
            emulation: *emulation,
            native_steps: Vec::new(),
            previous_fingerprint: None,
        },
        registry_auth: None,
    })
}

/// With what only serves explanations: it is left out where the message would be too long for the agent.
pub(super) fn with_history(
    build: Build,
    records: &Records,
    job: &Job,
    previous_fingerprint: Option<Fingerprint>,
) -> CoreMessage {
    let twin = if job.emulated { records.native_twin(job) } else { None };
    let native_steps = twin.map(|twin| twin.steps.clone()).unwrap_or_default();
    if native_steps.is_empty() && previous_fingerprint.is_none() {
        return CoreMessage::Build(Box::new(build));
    }
    let config = BuildConfig { native_steps, previous_fingerprint, ..build.build_config.clone() };
    let full = CoreMessage::Build(Box::new(Build { build_config: config, ..build.clone() }));
    if full.to_json().len() <= MESSAGE_BYTES_MAX {
        full
    } else {
        CoreMessage::Build(Box::new(build))
    }
}

/// The images that the Dockerfile may name, by digest.
fn used_images(
    records: &Records,
    uses: &BTreeMap<String, UsedImage>,
) -> anyhow::Result<BTreeMap<String, ImageRef>> {
    let image = |used: &UsedImage| match used {
        UsedImage::Image { image } => Ok(image.clone()),
        UsedImage::Job { job } => {
            image_of(records.jobs.get(job).context("a job that is used has no record")?)
        }
    };
    uses.iter().map(|(variant, used)| Ok((variant.clone(), image(used)?))).collect()
}

/// The arguments of `stagely.yaml`, those that name the used images, and over all of them those that the
/// run's caller set.
fn all_arguments(
    build_args: &BuildArgs,
    used: &BTreeMap<String, ImageRef>,
    set: &BTreeMap<String, SecretString>,
) -> BuildArgs {
    let mut all = build_args.clone();
    all.0.extend(used.iter().map(|(variant, image)| (image_argument(variant), image.to_string())));
    all.0.extend(set.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())));
    all
}
