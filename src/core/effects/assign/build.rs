//! Makes the BUILD message of a job.

use std::collections::BTreeMap;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use stagely_manifest::image_argument;
use stagely_protocol::{
    Build, BuildArgs, BuildConfig, CloneContext, CoreMessage, Fingerprint, ImageRef,
    MESSAGE_BYTES_MAX, Step,
};
use stagely_state::{Attempt, Job, JobKind, JobState, UsedImage};
use thiserror::Error;

use crate::core::records::Records;
use crate::core::secrets::RunSecrets;

/// The message without registry credentials and without the history of earlier builds.
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
        submodules,
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
            submodules: *submodules,
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

/// A BUILD that is longer than agents accept. It would end the connection each time it is sent.
#[derive(Debug, Error)]
#[error(
    "the build's description takes {bytes} bytes, but an agent takes at most {MESSAGE_BYTES_MAX}; give it \
     fewer or shorter build arguments"
)]
pub(super) struct TooLong {
    bytes: usize,
}

/// The steps with which an emulated job is compared: of a native build in memory, or else of an `earlier` one.
pub(super) fn native_steps(records: &Records, job: &Job, earlier: Vec<Step>) -> Vec<Step> {
    match records.native_twin(job) {
        Some(twin) if job.emulated => twin.steps.clone(),
        _ => earlier,
    }
}

/// Adds the data for explanations, unless the message would be too long for the agent.
///
/// # Errors
/// [`TooLong`], also without them.
pub(super) fn with_history(
    build: Build,
    native_steps: Vec<Step>,
    previous_fingerprint: Option<Fingerprint>,
) -> Result<CoreMessage, TooLong> {
    if !native_steps.is_empty() || previous_fingerprint.is_some() {
        let config =
            BuildConfig { native_steps, previous_fingerprint, ..build.build_config.clone() };
        let full = CoreMessage::Build(Box::new(Build { build_config: config, ..build.clone() }));
        if full.to_json().len() <= MESSAGE_BYTES_MAX {
            return Ok(full);
        }
    }
    let message = CoreMessage::Build(Box::new(build));
    let bytes = message.to_json().len();
    if bytes <= MESSAGE_BYTES_MAX { Ok(message) } else { Err(TooLong { bytes }) }
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

/// The image of a completed job, by digest if it is known.
pub(super) fn image_of(job: &Job) -> anyhow::Result<ImageRef> {
    let JobState::Completed { digest } = &job.state else {
        anyhow::bail!("{} is not completed", job.name);
    };
    let image = job.kind.image().context("a deployment makes no image")?;
    Ok(digest.as_ref().map_or_else(|| image.clone(), |digest| image.at_digest(digest)))
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

#[cfg(test)]
mod tests {
    use stagely_protocol::Step;
    use stagely_state::ids::{EnvironmentId, ProjectId, RunId};
    use stagely_state::{Environment, Project, Run, RunState, Timestamp};

    use super::*;
    use crate::core::fixtures::{digest, job};

    const EARLIER: u128 = 1;
    const RUN: u128 = 2;

    fn completed(job: Job, steps: &[(&str, bool)]) -> Job {
        let step = |(name, cached): &(&str, bool)| Step {
            name: (*name).to_owned(),
            seconds: 1.0,
            cached: *cached,
        };
        let state = JobState::Completed { digest: Some(digest()) };
        Job { state, steps: steps.iter().map(step).collect(), ..job }
    }

    /// Two runs of one project, with `jobs`.
    fn records(jobs: Vec<Job>) -> Records {
        let project = ProjectId::from_bits(1);
        let environment = Environment::new(EnvironmentId::from_bits(1), project, "main".to_owned());
        let mut records = Records::default();
        let (name, repository) = ("app".to_owned(), "https://host/app".to_owned());
        records.projects.insert(project, Project::new(project, name, repository.clone()));
        for id in [EARLIER, RUN] {
            let run =
                Run::new(RunId::from_bits(id), &environment, repository.clone(), Timestamp(0));
            let commit = Some("c".repeat(40).parse().unwrap());
            records.runs.insert(run.id, Run { commit, state: RunState::Building, ..run });
        }
        for job in jobs {
            records.run_jobs.entry(job.run).or_default().push(job.id);
            records.jobs.insert(job.id, job);
        }
        records
    }

    fn build(records: &Records, job: &Job, set: &[(&str, &str)]) -> anyhow::Result<Build> {
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let attempt = Attempt { job: job.id, number: 1 };
        message(records, job, attempt, RunSecrets { clone_token: None, set })
    }

    fn using(mut job: Job, used: &[(&str, UsedImage)]) -> Job {
        let JobKind::Build { uses, .. } = &mut job.kind else { panic!("{job:?}") };
        uses.extend(used.iter().map(|(name, used)| ((*name).to_owned(), used.clone())));
        job
    }

    #[test]
    fn dependencies_are_named_by_digest_as_context_and_as_argument() {
        let base = completed(job(1, RUN, "base", "linux/amd64"), &[]);
        let skipped: ImageRef = format!("r/app/main@{}", digest()).parse().unwrap();
        let used = [
            ("base", UsedImage::Job { job: base.id }),
            ("tools-go", UsedImage::Image { image: skipped.clone() }),
        ];
        let app = using(job(2, RUN, "app", "linux/amd64"), &used);
        let records = records(vec![base.clone(), app.clone()]);

        let config = build(&records, &app, &[]).unwrap().build_config;

        let image = base.kind.image().unwrap().at_digest(&digest());
        assert_eq!(config.build_contexts["base"], image);
        assert_eq!(config.build_contexts["tools-go"], skipped);
        assert_eq!(config.build_args.0["STAGELY_IMAGE_BASE"], image.as_str());
        assert_eq!(config.build_args.0["STAGELY_IMAGE_TOOLS_GO"], skipped.as_str());
        let set = build(&records, &app, &[("STAGELY_IMAGE_BASE", "mine")]).unwrap();
        assert_eq!(set.build_config.build_args.0["STAGELY_IMAGE_BASE"], "mine");
    }

    #[test]
    fn an_image_that_is_not_built_yet_cannot_be_used() {
        let base = job(1, RUN, "base", "linux/amd64");
        let app =
            using(job(2, RUN, "app", "linux/amd64"), &[("base", UsedImage::Job { job: base.id })]);
        let error = build(&records(vec![base, app.clone()]), &app, &[]).unwrap_err();
        assert!(error.to_string().contains("base is not completed"), "{error}");
    }

    fn compared_with(records: &Records, job: &Job) -> Vec<String> {
        let steps = native_steps(records, job, Vec::new());
        let message = with_history(build(records, job, &[]).unwrap(), steps, None).unwrap();
        let CoreMessage::Build(build) = message else { panic!("{message:?}") };
        build.build_config.native_steps.into_iter().map(|step| step.name).collect()
    }

    #[test]
    fn emulation_is_compared_with_the_same_run_first_and_with_the_newest_earlier_one_then() {
        let earlier = completed(job(1, EARLIER, "app", "linux/amd64"), &[("earlier", false)]);
        let other = completed(job(2, EARLIER, "web", "linux/amd64"), &[("other", false)]);
        let same = completed(job(3, RUN, "app", "linux/amd64"), &[("same", false)]);
        let cached = completed(same.clone(), &[("same", true)]);
        let emulated = Job { emulated: true, ..job(4, RUN, "app", "linux/arm64") };
        let of = |jobs: Vec<Job>| compared_with(&records(jobs), &emulated);

        assert_eq!(of(vec![earlier.clone(), same.clone(), emulated.clone()]), ["same"]);
        assert_eq!(of(vec![earlier.clone(), cached, emulated.clone()]), ["earlier"]);
        assert!(of(vec![other, emulated.clone()]).is_empty());
        let slow = Job { emulated: true, ..earlier.clone() };
        assert!(of(vec![slow, emulated.clone()]).is_empty());
        let native = Job { emulated: false, ..emulated.clone() };
        assert!(compared_with(&records(vec![earlier, native.clone()]), &native).is_empty());
    }

    #[test]
    fn a_message_that_would_be_too_long_has_no_history() {
        let app = job(1, RUN, "app", "linux/amd64");
        let records = records(vec![app.clone()]);
        let sent = |letters: &str| {
            let fingerprint = Fingerprint::try_from(letters.to_owned()).unwrap();
            let build = build(&records, &app, &[]).unwrap();
            match with_history(build, Vec::new(), Some(fingerprint)).unwrap() {
                CoreMessage::Build(build) => build.build_config.previous_fingerprint.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(sent("abc"));
        assert!(!sent(&"\u{1}".repeat(700 * 1024)), "each is six characters in JSON");

        let long = "x".repeat(MESSAGE_BYTES_MAX);
        let build = build(&records, &app, &[("LONG", &long)]).unwrap();
        let error = with_history(build, Vec::new(), None).unwrap_err();
        assert!(error.bytes > MESSAGE_BYTES_MAX, "{error}");
    }
}
