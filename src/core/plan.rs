//! Turns one `stagely.yaml` into build jobs, one for each platform and variant, the merge jobs that wait for them, the deploy
//! job of the preview, and the test jobs.

mod preview;
mod references;
mod skip;
mod test_jobs;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stagely_manifest::suggest::{closest, listed, shown};
use stagely_manifest::{Build, Manifest, Template, Variable, Variant};
use stagely_protocol::{BuildArgs, CommitSha, FailureReason, ImageRef, InvalidValue, Platform};
use stagely_state::ids::{JobId, RunId};
use stagely_state::{
    Environment, GoodImage, JobKind, MachineSize, PlannedJob, Project, SkippedBuild, Timestamp,
    UsedImage, VariantName, WantedTests,
};
use thiserror::Error;

pub use self::preview::PreviewContext;
use self::references::{CACHE_REPOSITORY, References};
use self::skip::{Selection, dependencies, select, stand_ins};

/// The time limit of a merge, which moves a few kilobytes between registry and machine.
const MERGE_TIMEOUT: Duration = Duration::from_mins(10);

/// Everything that a plan depends on besides the manifest.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// The registry that images go to: host, port, and a path if it has one.
    pub registry: &'a str,
    pub project: &'a Project,
    pub environment: &'a Environment,
    /// The run, whose id becomes part of the references that it pushes.
    pub run: RunId,
    /// When the run was requested. What its preview shows is known by that.
    pub requested_at: Timestamp,
    pub commit: &'a CommitSha,
    /// A branch that contains the commit, if one is known.
    pub branch: Option<&'a str>,
    /// Whether that is the default branch, which writes the caches that all environments read.
    pub is_default_branch: bool,
    /// Whether images are pushed. A warm-up only fills caches.
    pub push: bool,
    /// The number of the environment's pull request.
    pub pull_request: Option<u64>,
    /// Whether the commit comes from a fork, which writes no caches.
    pub from_fork: bool,
    /// The requested builds; all if empty.
    pub only_builds: &'a [String],
    pub wanted_tests: WantedTests,
    /// The newest good images of the base branch, by variant. They stand in for builds that are not made.
    pub good_images: &'a BTreeMap<VariantName, GoodImage>,
    /// Builds whose `paths` are unchanged since this base are skipped. `None`: no build is skipped for its paths.
    pub base: Option<&'a Base>,
    pub preview: PreviewContext<'a>,
}

/// The base with which a run's commit is compared.
#[derive(Clone, Debug)]
pub struct Base {
    /// The branch or commit in the user's words.
    pub name: String,
    pub commit: CommitSha,
    /// The paths, from the repository's root, in which the run's commit differs from the base's commit and from the
    /// commits of the good images. A commit without an entry may differ in all paths.
    pub changed: BTreeMap<CommitSha, Vec<String>>,
}

#[derive(Debug)]
pub struct Plan {
    /// Each job comes after the jobs that it needs; otherwise they have the order of the file.
    pub jobs: Vec<PlannedJob>,
    /// The builds that have no jobs.
    pub skipped: Vec<SkippedBuild>,
    /// The written cache refs that belong to this environment alone.
    pub own_cache_refs: BTreeSet<ImageRef>,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The manifest does not have some of the requested builds.
    #[error("unknown builds: {}; there are {}", guesses(names, known), listed(words(known)))]
    UnknownBuilds { names: Vec<String>, known: Vec<String> },
    /// A project's or environment's name cannot be part of an image reference.
    #[error(
        "{what} `{}` cannot be part of an image reference: lower-case letters and digits can, \
         joined by single `-`, `_` or `.`",
        shown(name)
    )]
    BadName {
        /// `project` or `environment`.
        what: &'static str,
        name: String,
    },
    /// The environment has the name of the caches' repository.
    #[error("an environment cannot be called `cache`: layer caches have that name")]
    ReservedName,
    /// The configured registry cannot be part of an image reference.
    #[error("the registry's name is wrong: {0}")]
    BadRegistry(#[from] InvalidValue),
    /// No machine runs all images of the preview.
    #[error(
        "the images of `preview` have no platform in common: add a platform to one of {}",
        listed(words(builds))
    )]
    NoCommonPlatform { builds: Vec<String> },
}

impl PlanError {
    pub const fn reason(&self) -> FailureReason {
        match self {
            Self::UnknownBuilds { .. }
            | Self::BadName { .. }
            | Self::ReservedName
            | Self::NoCommonPlatform { .. } => FailureReason::Manifest,
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

/// Plans the jobs of the requested builds, and of all builds that these depend on.
///
/// # Errors
/// [`PlanError`].
pub fn plan(
    manifest: &Manifest,
    context: &PlanContext<'_>,
    new_job_id: &mut dyn FnMut() -> JobId,
) -> Result<Plan, PlanError> {
    check_names(context)?;
    let wanted = wanted_builds(manifest, context.only_builds)?;
    let Selection { made, skipped } = select(manifest, wanted, context);
    let mut planner = Planner {
        manifest,
        context,
        references: References::new(context),
        new_job_id,
        last_jobs: BTreeMap::new(),
        plan: Plan { jobs: Vec::new(), skipped, own_cache_refs: BTreeSet::new() },
    };
    for build in made {
        for variant in &build.variants {
            planner.add_variant(build, variant)?;
        }
    }
    planner.add_preview()?;
    planner.add_tests();
    Ok(planner.plan)
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

/// Whether `name` may be one component of a repository's path.
///
/// Source: distribution specification, `<name>`.
fn is_path_component(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty()
        && name.len() <= 128
        && name.split(['-', '_', '.']).all(|word| !word.is_empty() && word.bytes().all(is_word))
}

fn wanted_builds<'a>(
    manifest: &Manifest,
    wanted: &'a [String],
) -> Result<impl Fn(&Build) -> bool + 'a, PlanError> {
    let known: Vec<_> = manifest.builds.iter().map(|build| build.name.clone()).collect();
    let unknown: Vec<_> = wanted.iter().filter(|name| !known.contains(name)).cloned().collect();
    if !unknown.is_empty() {
        return Err(PlanError::UnknownBuilds { names: unknown, known });
    }
    Ok(|build: &Build| wanted.is_empty() || wanted.contains(&build.name))
}

struct Planner<'a> {
    manifest: &'a Manifest,
    context: &'a PlanContext<'a>,
    references: References<'a>,
    new_job_id: &'a mut dyn FnMut() -> JobId,
    /// The job that makes the image of each variant, by the variant's name.
    last_jobs: BTreeMap<&'a str, JobId>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    /// Adds a job for each platform, and a merge job if there are several platforms.
    fn add_variant(&mut self, build: &'a Build, variant: &'a Variant) -> Result<(), PlanError> {
        // A warm-up pushes no images that could be merged.
        let merges = build.is_multi_platform() && self.context.push;
        let uses = self.uses(build);
        let job_of = |image: &UsedImage| match image {
            UsedImage::Job { job } => Some(*job),
            UsedImage::Image { .. } => None,
        };
        let needs: Vec<JobId> = uses.values().filter_map(job_of).collect();
        let mut platform_jobs = Vec::new();
        for platform in &build.platforms {
            let tag = variant.image_tag(*platform);
            let job = PlannedJob {
                id: (self.new_job_id)(),
                name: build.job_name(variant, *platform),
                build: build.name.clone(),
                variant: VariantName::from(&*variant.name),
                kind: self.build_kind(build, variant, *platform, uses.clone())?,
                tag: if merges { None } else { self.moved_tag(build, &tag)? },
                size: build.machine,
                needs: needs.clone(),
                timeout: build.timeout,
            };
            platform_jobs.push(job.id);
            self.last_jobs.insert(&variant.name, job.id);
            self.plan.jobs.push(job);
        }
        if merges {
            let job = self.merge_job(build, variant, platform_jobs)?;
            self.last_jobs.insert(&variant.name, job.id);
            self.plan.jobs.push(job);
        }
        Ok(())
    }

    fn merge_job(
        &mut self,
        build: &Build,
        variant: &Variant,
        needs: Vec<JobId>,
    ) -> Result<PlannedJob, PlanError> {
        Ok(PlannedJob {
            id: (self.new_job_id)(),
            name: variant.merge_job_name(),
            build: build.name.clone(),
            variant: VariantName::from(&*variant.name),
            kind: JobKind::Merge {
                platforms: build.platforms.clone(),
                image: self.references.of_run(&variant.name)?,
            },
            tag: Some(self.references.tag(&variant.name)?),
            size: MachineSize::Small,
            needs,
            timeout: MERGE_TIMEOUT,
        })
    }

    /// The tag for the image of a single-platform build, if images are pushed.
    fn moved_tag(&self, build: &Build, tag: &str) -> Result<Option<ImageRef>, PlanError> {
        let is_last = self.context.push && !build.is_multi_platform();
        Ok(if is_last { Some(self.references.tag(tag)?) } else { None })
    }

    fn build_kind(
        &mut self,
        build: &Build,
        variant: &Variant,
        platform: Platform,
        uses: BTreeMap<String, UsedImage>,
    ) -> Result<JobKind, PlanError> {
        let caches = self.references.caches(build, variant, platform)?;
        if caches.is_own {
            self.plan.own_cache_refs.extend(caches.to.clone());
        }
        Ok(JobKind::Build {
            platform,
            context: build.context.clone(),
            dockerfile: build.dockerfile.clone(),
            target: build.target.clone(),
            build_args: build_args(build, variant, self.context),
            image: self.references.of_run(&variant.image_tag(platform))?,
            push: self.context.push,
            uses,
            emulation: build.emulation,
            submodules: self.manifest.submodules,
            cache_from: caches.from,
            cache_to: caches.to,
        })
    }

    /// The images that `build` depends on, by variant in lower case, as Docker requires for names of contexts.
    fn uses(&self, build: &'a Build) -> BTreeMap<String, UsedImage> {
        let needed = dependencies(self.manifest, build);
        needed.flat_map(|needed| self.images_of(needed)).collect()
    }

    fn images_of(&self, needed: &'a Build) -> Vec<(String, UsedImage)> {
        let made = |variant: &Variant| self.last_jobs.get(&*variant.name).copied();
        let of_run: Option<Vec<_>> = (needed.variants.iter())
            .map(|variant| {
                Some((variant.name.to_lowercase(), UsedImage::Job { job: made(variant)? }))
            })
            .collect();
        if let Some(of_run) = of_run.filter(|_| self.context.push) {
            return of_run;
        }
        let stand_in = |(name, image): (&str, &GoodImage)| {
            let image = image.image.at_digest(&image.digest);
            (name.to_lowercase(), UsedImage::Image { image })
        };
        // Without any image of `needed`, the builds that depend on it are skipped.
        stand_ins(needed, self.context).into_iter().flatten().map(stand_in).collect()
    }
}

fn build_args(build: &Build, variant: &Variant, context: &PlanContext<'_>) -> BuildArgs {
    let value = |variable: &Variable| value_of(context, *variable);
    let filled = |(name, template): (&String, &Template)| (name.clone(), template.fill(value));
    let of_matrix = variant.values.clone();
    BuildArgs(build.build_args.iter().map(filled).chain(of_matrix).collect())
}

fn value_of(context: &PlanContext<'_>, variable: Variable) -> String {
    match variable {
        Variable::CommitHash => context.commit.to_string(),
        Variable::Branch => context.branch.unwrap_or_default().to_owned(),
        Variable::PrNumber => context.pull_request.map(|n| n.to_string()).unwrap_or_default(),
        Variable::ProjectId => context.project.id.to_string(),
        Variable::StagelyHash => stagely_hash(context),
    }
}

/// The first 12 hexadecimal digits of the SHA-256 over project id, environment name and commit, each followed by a
/// line feed. The commit covers `stagely.yaml`.
fn stagely_hash(context: &PlanContext<'_>) -> String {
    let PlanContext { project, environment, commit, .. } = context;
    let text = format!("{}\n{}\n{commit}\n", project.id, environment.name);
    let digest: [u8; 32] = Sha256::digest(text).into();
    let first = digest.iter().take(6).fold(0, |number, byte| number << 8 | u64::from(*byte));
    format!("{first:012x}")
}
