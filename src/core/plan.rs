//! Turns one `stagely.yaml` into build jobs, one per platform, and the merge jobs that wait for
//! them.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stagely_agent::protocol::{
    BuildArgs, CommitSha, Emulation, FailureReason, ImageRef, InvalidValue, Platform,
};
use thiserror::Error;

use super::state::{Environment, JobKind, MachineSize, PlannedJob, Project};
use crate::ids::JobId;
use crate::manifest::suggest::{closest, listed, shown};
use crate::manifest::{Build, Manifest, Template, Variable};

/// How long a merge may take. It moves a few kilobytes between registry and machine.
const MERGE_TIMEOUT: Duration = Duration::from_mins(10);

/// The repository of a project that holds its layer caches; no environment may be called so.
const CACHE_REPOSITORY: &str = "cache";

/// What a plan depends on besides the manifest.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// The registry that images go to: host, port, and a path if it has one.
    pub registry: &'a str,
    /// The project.
    pub project: &'a Project,
    /// The environment.
    pub environment: &'a Environment,
    /// The commit to build.
    pub commit: &'a CommitSha,
    /// A branch that holds the commit, where one is known.
    pub branch: Option<&'a str>,
    /// The pull request, if the environment is one.
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork: then caches are read and never written.
    pub from_fork: bool,
    /// The builds asked for; empty: all.
    pub only_builds: &'a [String],
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Builds were asked for that the manifest does not have.
    #[error("unknown builds: {}; there are {}", guesses(names, known), listed(words(known)))]
    UnknownBuilds {
        /// The names that were asked for in vain.
        names: Vec<String>,
        /// The names there are.
        known: Vec<String>,
    },
    /// A project's or environment's name cannot be part of an image reference.
    #[error(
        "{what} `{}` cannot be part of an image reference: lower-case letters and digits can, \
         joined by single `-`, `_` or `.`",
        shown(name)
    )]
    BadName {
        /// `project` or `environment`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The environment is called like the repository of the caches.
    #[error("an environment cannot be called `cache`: layer caches have that name")]
    ReservedName,
    /// The configured registry makes no image reference.
    #[error("the registry's name is wrong: {0}")]
    BadRegistry(#[from] InvalidValue),
}

impl PlanError {
    /// Whose fault it is.
    pub const fn reason(&self) -> FailureReason {
        match self {
            Self::UnknownBuilds { .. } | Self::BadName { .. } | Self::ReservedName => {
                FailureReason::Manifest
            }
            Self::BadRegistry(_) => FailureReason::Internal,
        }
    }
}

fn words(names: &[String]) -> impl Iterator<Item = &str> {
    names.iter().map(String::as_str)
}

/// `` `bakend` (did you mean `backend`?), `web` ``
fn guesses(names: &[String], known: &[String]) -> String {
    let guess = |name: &String| match closest(name, words(known)) {
        Some(word) => format!("`{}` (did you mean `{word}`?)", shown(name)),
        None => format!("`{}`", shown(name)),
    };
    names.iter().map(guess).collect::<Vec<_>>().join(", ")
}

/// The build argument that gives a build the image of `variant`, which it depends on:
/// `STAGELY_IMAGE_BASE`.
pub fn image_argument(variant: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("STAGELY_IMAGE_{}", variant.chars().map(letter).collect::<String>())
}

/// Plans the jobs of a run, in the order of the file; a merge job follows the jobs it needs.
///
/// # Errors
/// [`PlanError`].
pub fn plan(
    manifest: &Manifest,
    context: &PlanContext<'_>,
    new_job_id: &mut dyn FnMut() -> JobId,
) -> Result<Vec<PlannedJob>, PlanError> {
    check_names(context)?;
    let mut jobs = Vec::new();
    for build in wanted_builds(manifest, context.only_builds)? {
        plan_build(build, context, new_job_id, &mut jobs)?;
    }
    Ok(jobs)
}

fn check_names(context: &PlanContext<'_>) -> Result<(), PlanError> {
    let (project, environment) = (&context.project.name, &context.environment.name);
    for (what, name) in [("project", project), ("environment", environment)] {
        if !is_path_component(name) {
            return Err(PlanError::BadName { what, name: name.clone() });
        }
    }
    if environment == CACHE_REPOSITORY { Err(PlanError::ReservedName) } else { Ok(()) }
}

/// Whether a registry takes `name` as one component of a repository's path.
///
/// Source: distribution specification, `<name>`.
fn is_path_component(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 128
        && name.split(['-', '_', '.']).all(|word| !word.is_empty() && word.bytes().all(is_word))
}

fn wanted_builds<'a>(
    manifest: &'a Manifest,
    wanted: &[String],
) -> Result<Vec<&'a Build>, PlanError> {
    let known: Vec<_> = manifest.builds.iter().map(|build| build.name.clone()).collect();
    let unknown: Vec<_> = wanted.iter().filter(|name| !known.contains(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(PlanError::UnknownBuilds { names: unknown, known });
    }
    let is_wanted = |build: &&Build| wanted.is_empty() || wanted.contains(&build.name);
    Ok(manifest.builds.iter().filter(is_wanted).collect())
}

fn plan_build(
    build: &Build,
    context: &PlanContext<'_>,
    new_job_id: &mut dyn FnMut() -> JobId,
    jobs: &mut Vec<PlannedJob>,
) -> Result<(), PlanError> {
    let mut needs = Vec::new();
    for platform in &build.platforms {
        let id = new_job_id();
        needs.push(id);
        jobs.push(PlannedJob {
            id,
            name: build.job_name(*platform),
            build: build.name.clone(),
            variant: build.name.clone(),
            kind: build_kind(build, *platform, context)?,
            tag: None,
            size: build.machine,
            needs: Vec::new(),
            timeout: build.timeout,
        });
    }
    if build.is_multi_platform() {
        jobs.push(PlannedJob {
            id: new_job_id(),
            name: build.merge_job_name(),
            build: build.name.clone(),
            variant: build.name.clone(),
            tag: None,
            kind: JobKind::Merge {
                platforms: build.platforms.clone(),
                image: image_ref(context, &context.environment.name, build.merged_image_tag())?,
            },
            size: MachineSize::Small,
            needs,
            timeout: MERGE_TIMEOUT,
        });
    }
    Ok(())
}

fn build_kind(
    build: &Build,
    platform: Platform,
    context: &PlanContext<'_>,
) -> Result<JobKind, PlanError> {
    let own_cache = image_ref(context, CACHE_REPOSITORY, &build.cache_tag(platform))?;
    let mut cache_from = vec![own_cache.clone()];
    cache_from.extend(build.cache_from.iter().filter(|cache| **cache != own_cache).cloned());
    Ok(JobKind::Build {
        platform,
        context: build.context.clone(),
        dockerfile: build.dockerfile.clone(),
        target: build.target.clone(),
        build_args: build_args(build, context),
        image: image_ref(context, &context.environment.name, &build.image_tag(platform))?,
        push: true,
        uses: BTreeMap::new(),
        emulation: Emulation::Allow,
        cache_from,
        cache_to: (!context.from_fork).then_some(own_cache),
    })
}

fn image_ref(
    context: &PlanContext<'_>,
    repository: &str,
    tag: &str,
) -> Result<ImageRef, PlanError> {
    let PlanContext { registry, project, .. } = context;
    Ok(format!("{registry}/{}/{repository}:{tag}", project.name).parse()?)
}

fn build_args(build: &Build, context: &PlanContext<'_>) -> BuildArgs {
    let value = |variable| match variable {
        Variable::CommitHash => context.commit.to_string(),
        Variable::Branch => context.branch.unwrap_or_default().to_owned(),
        Variable::PrNumber => context.pull_request.map(|n| n.to_string()).unwrap_or_default(),
        Variable::ProjectId => context.project.id.to_string(),
        Variable::StagelyHash => stagely_hash(context),
    };
    let filled = |(name, template): (&String, &Template)| (name.clone(), template.fill(value));
    BuildArgs(build.build_args.iter().map(filled).collect())
}

/// The first 12 hexadecimal digits of the SHA-256 over project id, environment name and commit,
/// each followed by a line feed. `stagely.yaml` is not in it: the commit says which one that is.
fn stagely_hash(context: &PlanContext<'_>) -> String {
    let PlanContext { project, environment, commit, .. } = context;
    let text = format!("{}\n{}\n{commit}\n", project.id, environment.name);
    let digest: [u8; 32] = Sha256::digest(text).into();
    let first = digest.iter().take(6).fold(0, |number, byte| number << 8 | u64::from(*byte));
    format!("{first:012x}")
}
