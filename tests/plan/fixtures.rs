//! The inputs of a plan, manifests, and short forms of a plan's parts.

use std::collections::BTreeMap;

use stagely::config::Config;
use stagely::core::plan::{Base, Plan, PlanContext, PlanError, PreviewContext, plan};
use stagely::core::previews::PreviewHosts;
use stagely_manifest::{Manifest, parse};
use stagely_protocol::CommitSha;
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{
    Environment, GoodImage, JobKind, PlannedJob, Project, Timestamp, UsedImage, VariantName,
    WantedTests,
};

/// When the run was requested.
pub(crate) const REQUESTED_AT: Timestamp = Timestamp(1_700_000_000_000);

pub(crate) const SHOP: &str = "\
builds:
  backend:
    context: ./api
    dockerfile: prod.Dockerfile
    machine: large
    target: runtime
    timeout: 45m
    cache_from: [registry.internal/base:cache]
    build_args:
      VERSION: ${COMMIT_HASH}+${BRANCH}
      PR: '${PR_NUMBER}'
      PROJECT: ${PROJECT_ID}
      HASH: ${STAGELY_HASH}
      LITERAL: $${BRANCH}
  app:
    context: .
    platforms: [linux/amd64, linux/arm64]
";

/// The inputs of a plan. Each test changes the fields that it is about.
pub(crate) struct PlanInputs {
    pub(crate) registry: &'static str,
    pub(crate) project: Project,
    pub(crate) environment: Environment,
    pub(crate) commit: CommitSha,
    pub(crate) branch: Option<&'static str>,
    pub(crate) pull_request: Option<u64>,
    pub(crate) from_fork: bool,
    pub(crate) is_default_branch: bool,
    pub(crate) push: bool,
    pub(crate) only_builds: Vec<String>,
    pub(crate) wanted_tests: WantedTests,
    pub(crate) good_images: BTreeMap<VariantName, GoodImage>,
    pub(crate) base: Option<Base>,
    pub(crate) hosts: PreviewHosts,
    pub(crate) preview: PreviewInputs,
}

/// The inputs of a plan that only the preview depends on.
#[derive(Default)]
pub(crate) struct PreviewInputs {
    pub(crate) requested: Option<bool>,
}

impl PlanInputs {
    pub(crate) fn pull_request() -> Self {
        let project = ProjectId::from_bits(1);
        Self {
            registry: "registry.internal",
            project: Project::new(project, "shop".into(), String::new()),
            environment: Environment::new(EnvironmentId::from_bits(2), project, "pr-7".into()),
            commit: "a".repeat(40).parse().unwrap(),
            branch: Some("feature/new-api"),
            pull_request: Some(7),
            from_fork: false,
            is_default_branch: false,
            push: true,
            only_builds: Vec::new(),
            wanted_tests: WantedTests::default(),
            good_images: BTreeMap::new(),
            base: None,
            hosts: PreviewHosts::new(&Config::default()),
            preview: PreviewInputs::default(),
        }
    }

    /// Sets the base to a commit of `main`. `changed` are the paths that differ from it, and from each image's commit.
    pub(crate) fn compared(mut self, changed: &[(&CommitSha, &[&str])]) -> Self {
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let changed =
            changed.iter().map(|(commit, changed)| ((*commit).clone(), paths(changed))).collect();
        self.base = Some(Base { name: "main".into(), commit: commit('b'), changed });
        self
    }

    /// Adds a good image of `variant` from `main`, built at `commit`.
    pub(crate) fn with_image(mut self, variant: &str, commit: &CommitSha) -> Self {
        let digest = format!("sha256:{}", "d".repeat(64));
        let tag = format!("registry.internal/shop/main:{variant}");
        let image = GoodImage {
            run: RunId::from_bits(5),
            commit: commit.clone(),
            image: format!("{tag}.5").parse().unwrap(),
            digest: digest.parse().unwrap(),
            tag: tag.parse().unwrap(),
            with_set: false,
        };
        self.good_images.insert(variant.into(), image);
        self
    }

    pub(crate) fn of(&self, text: &str) -> Plan {
        let manifest =
            parse("stagely.yaml", text.as_bytes()).unwrap_or_else(|problems| panic!("{problems}"));
        self.plan(&manifest).unwrap()
    }

    pub(crate) fn plan(&self, manifest: &Manifest) -> Result<Plan, PlanError> {
        let context = PlanContext {
            registry: self.registry,
            project: &self.project,
            environment: &self.environment,
            run: RunId::from_bits(3),
            requested_at: REQUESTED_AT,
            commit: &self.commit,
            branch: self.branch,
            is_default_branch: self.is_default_branch,
            push: self.push,
            pull_request: self.pull_request,
            from_fork: self.from_fork,
            only_builds: &self.only_builds,
            wanted_tests: self.wanted_tests,
            good_images: &self.good_images,
            base: self.base.as_ref(),
            preview: PreviewContext {
                hosts: &self.hosts,
                requested: self.preview.requested,
                is_open: false,
            },
        };
        let mut ids = 0;
        plan(manifest, &context, &mut || {
            ids += 1;
            JobId::from_bits(ids)
        })
    }

    pub(crate) fn jobs(&self) -> Vec<PlannedJob> {
        self.plan(&shop()).unwrap().jobs
    }
}

pub(crate) fn shop() -> Manifest {
    parse("stagely.yaml", SHOP.as_bytes()).unwrap()
}

pub(crate) fn names(jobs: &[PlannedJob]) -> Vec<&str> {
    jobs.iter().map(|job| &*job.name).collect()
}

/// The reference of the image, those of the imported caches, and that of the exported cache.
pub(crate) fn references(job: &PlannedJob) -> (String, Vec<String>, Option<String>) {
    match &job.kind {
        JobKind::Build { image, cache_from, cache_to, .. } => (
            image.to_string(),
            cache_from.iter().map(ToString::to_string).collect(),
            cache_to.as_ref().map(ToString::to_string),
        ),
        JobKind::Merge { image, .. } => (image.to_string(), Vec::new(), None),
        JobKind::Deploy { .. } | JobKind::Test { .. } => panic!("{} makes no image", job.name),
    }
}

pub(crate) fn commit(digit: char) -> CommitSha {
    digit.to_string().repeat(40).parse().unwrap()
}

/// A good image of `main`, by digest.
pub(crate) fn good() -> String {
    format!("registry.internal/shop/main@sha256:{}", "d".repeat(64))
}

pub(crate) fn uses(job: &PlannedJob) -> &BTreeMap<String, UsedImage> {
    let JobKind::Build { uses, .. } = &job.kind else { panic!("not a build: {job:?}") };
    uses
}

pub(crate) fn cache(tag: &str) -> String {
    format!("registry.internal/shop/cache:{tag}")
}

pub(crate) fn tag(job: &PlannedJob) -> Option<&str> {
    job.tag.as_ref().map(|tag| tag.as_str().strip_prefix("registry.internal/shop/").unwrap())
}

pub(crate) const MATRIX: &str = "\
builds:
  app:
    context: .
    platforms: [linux/amd64, linux/arm64]
    emulation: forbid
    build_args: {A: b}
    matrix: {NODE_VERSION: [18, 3.10]}
  tool: {context: ., matrix: {OS: [Alpine]}, depends_on: [app]}
";

pub(crate) const CHAIN: &str = "\
builds:
  app: {context: app, paths: [app], depends_on: [Base], platforms: [linux/amd64, linux/arm64]}
  Base: {context: base, paths: [base], platforms: [linux/amd64, linux/arm64]}
  docs: {context: docs}
";
