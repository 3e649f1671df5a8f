//! Random requests and plans.

use std::collections::BTreeMap;
use std::time::Duration;

use stagely_protocol::{
    Arch, BuildArgs, CommitSha, Emulation, FailureReason, ImageRef, Platform, Shard, Submodules,
};
use stagely_state::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_state::{
    Access, DEPLOY_JOB, Deployment, Environment, Event, JobKind, MachineSize, PlanFailure,
    PlannedJob, PlannedRun, PreviewSettings, Project, Run, State, Test, TestMachine, Timestamp,
    Trigger, UsedImage, WantedTests,
};

use crate::registry::caches_of;
use crate::rng::Rng;

const PROJECTS: u64 = 3;

/// No job has a longer time limit.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(4_060);

/// A run of one of a few projects, each of which has one environment, or of any environment.
pub(crate) fn request(rng: &mut Rng, core: &State, now: Timestamp) -> Event {
    let environments: Vec<EnvironmentId> = core.environments.keys().copied().collect();
    let known = if rng.chance(30) { rng.pick(&environments) } else { None };
    let environment = known.map_or_else(
        || {
            let number = u128::from(1 + rng.below(PROJECTS));
            let (id, project) = (EnvironmentId::from_bits(number), ProjectId::from_bits(number));
            Environment::new(id, project, String::new())
        },
        |known| core.environments[&known].clone(),
    );
    let project = environment.project;
    let mut run = Run::new(RunId::from_bits(rng.id()), &environment, String::new(), now);
    let earlier = core.runs.values().filter(|earlier| earlier.environment == environment.id);
    let earlier: Vec<&Run> = earlier.collect();
    match rng.below(10) {
        0 => run.trigger = Trigger::WarmUp,
        1..6 => {
            run.trigger = Trigger::Rebuild;
            let earlier = rng.pick(&earlier);
            run.rebuilds = earlier.map(Run::original);
            run.reuses = earlier.map(|earlier| earlier.id);
            run.wanted_tests =
                if rng.chance(30) { WantedTests::All } else { WantedTests::NotPassed };
            if let Some(earlier) = earlier {
                run.requested_ref.clone_from(&earlier.requested_ref);
                run.from_fork = earlier.from_fork;
                run.github.clone_from(&earlier.github);
                run = run.with_approval(earlier.approval.clone());
            }
        }
        _ => {}
    }
    Event::RunRequested {
        run: Box::new(run),
        project: Project::new(project, String::new(), String::new()),
        environment,
    }
}

/// Up to three builds, each of one or two platforms, with the merges. Sometimes one needs another. Empty if every build
/// is skipped. Fewer if the schedule is about previews.
pub(crate) fn plan(rng: &mut Rng, run: &Run, is_about_previews: bool) -> PlannedRun {
    let commit = if rng.chance(90) { "c" } else { "d" };
    let commit = run.requested_commit().unwrap_or_else(|| sha(commit));
    let mut planner = Planner { run, plan: PlannedRun::new(commit, Vec::new()) };
    let preview_percent = if is_about_previews { 90 } else { 50 };
    let builds = if is_about_previews { u64::from(rng.chance(20)) } else { rng.below(4) };
    for number in 0..builds {
        planner.plan_build(rng, number);
    }
    if run.trigger != Trigger::WarmUp
        && (rng.chance(preview_percent) || run.with_preview == Some(true))
    {
        planner.plan_deployment(rng);
    }
    if run.trigger != Trigger::WarmUp && rng.chance(if is_about_previews { 70 } else { 50 }) {
        planner.plan_tests(rng);
    }
    planner.plan
}

fn sha(digit: &str) -> CommitSha {
    digit.repeat(40).parse().expect("40 digits")
}

struct Planner<'a> {
    run: &'a Run,
    plan: PlannedRun,
}

impl Planner<'_> {
    fn plan_build(&mut self, rng: &mut Rng, number: u64) {
        let variant = format!("b{number}");
        // Mostly the same builds, so that an earlier run has the same jobs.
        let is_usual = rng.chance(80);
        let first = if is_usual { Arch::Amd64 } else { Arch::Arm64 };
        let has_two = if is_usual { number != 1 } else { rng.chance(40) };
        let mut needs = Vec::new();
        if rng.chance(20) {
            needs.extend(self.plan.jobs.last().map(|job| job.id));
        }
        let cache = format!("{}:{variant}", caches_of(self.run.environment));
        let cache: ImageRef = cache.parse().expect("a reference");
        let kind = |rng: &mut Rng, arch| self.build_of(rng, arch, &variant, &cache);
        let build = job(rng, &variant, kind, first, needs);
        let mut parts = vec![build.id];
        let mut jobs = vec![build];
        if has_two {
            let other = Arch::ALL.into_iter().find(|arch| *arch != first).expect("there are two");
            let build = job(rng, &variant, kind, other, Vec::new());
            parts.push(build.id);
            jobs.push(build);
            if self.pushes() {
                jobs.push(self.merge(rng, &variant, parts));
            }
        }
        if self.pushes() && rng.chance(80) {
            let tag = format!("registry/{}/{variant}:latest", self.run.environment);
            let last = jobs.last_mut().expect("there is one");
            last.tag = Some(tag.parse().expect("a reference"));
        }
        self.plan.own_cache_refs.insert(cache);
        self.plan.jobs.extend(jobs);
    }

    /// A deployment of the images of all builds.
    fn plan_deployment(&mut self, rng: &mut Rng) {
        let is_needed =
            |job: &PlannedJob| !self.plan.jobs.iter().any(|other| other.needs.contains(&job.id));
        let needs: Vec<JobId> =
            self.plan.jobs.iter().filter(|job| is_needed(job)).map(|job| job.id).collect();
        let images = needs.iter().map(|job| (job.to_string(), UsedImage::Job { job: *job }));
        let settings = PreviewSettings {
            access: Access::Link,
            public_paths: Vec::new(),
            on_request: rng.chance(30),
            sleep_after: rng.chance(80).then(|| Duration::from_secs(300 + rng.below(3_000))),
            ttl: Duration::from_secs(3_600 + rng.below(100_000)),
        };
        let deployment = Deployment {
            compose: None,
            images: images.collect(),
            default_images: BTreeMap::new(),
            endpoints: Vec::new(),
            env: BuildArgs::default(),
            submodules: Submodules::default(),
            secrets: Vec::new(),
            migrate: None,
            seed: None,
            fresh: rng.chance(20),
            reset_when: Vec::new(),
            disk_gib: if rng.chance(90) { 20 } else { 40 },
            settings,
        };
        let arch = rng.pick(&[Some(Arch::Amd64), Some(Arch::Amd64), None, Some(Arch::Arm64)]);
        let arch = arch.flatten();
        let kind = JobKind::Deploy { arch, deployment: Box::new(deployment) };
        let size = if rng.chance(80) { MachineSize::Medium } else { MachineSize::Small };
        let job = planned(rng, DEPLOY_JOB.to_owned(), DEPLOY_JOB, kind, needs);
        self.plan.jobs.push(PlannedJob { size, ..job });
    }

    /// A test of the first image, and the shards of a test of the preview, if there is one.
    fn plan_tests(&mut self, rng: &mut Rng) {
        let jobs = &self.plan.jobs;
        let build = jobs.iter().find(|job| job.kind.image().is_some()).map(|job| job.id);
        let deploy = jobs.iter().find(|job| job.kind.is_deploy()).map(|job| job.id);
        if rng.chance(70) {
            let job = Self::test(rng, "unit", build, None, Shard::ALL);
            self.plan.jobs.push(PlannedJob { needs: build.into_iter().collect(), ..job });
        }
        let Some(deploy) = deploy else { return };
        let total = u32::try_from(1 + rng.below(3)).expect("small");
        for index in 1..=total {
            let shard = Shard { index, total };
            let shown = Some(self.run.created_at);
            let job = Self::test(rng, &format!("e2e_{index}"), build, shown, shard);
            let needs = build.into_iter().chain([deploy]).collect();
            self.plan.jobs.push(PlannedJob { needs, ..job });
        }
    }

    fn test(
        rng: &mut Rng,
        name: &str,
        build: Option<JobId>,
        preview_of: Option<Timestamp>,
        shard: Shard,
    ) -> PlannedJob {
        let stored =
            || UsedImage::Image { image: "registry/tools:1".parse().expect("a reference") };
        let is_on_preview = preview_of.is_some() && rng.chance(30);
        let test = Test {
            image: build.map_or_else(stored, |job| UsedImage::Job { job }),
            command: Vec::new(),
            env: BuildArgs::default(),
            secrets: Vec::new(),
            shard,
            retries: 0,
            junit: Vec::new(),
            artifacts: Vec::new(),
            comment_images: Vec::new(),
            on: if is_on_preview { TestMachine::Preview } else { TestMachine::Tester },
            preview_of,
        };
        let arch = rng.pick(&[Some(Arch::Amd64), None, Some(Arch::Arm64)]).flatten();
        let kind = JobKind::Test { arch, test: Box::new(test) };
        planned(rng, name.to_owned(), "e2e", kind, Vec::new())
    }

    fn pushes(&self) -> bool {
        self.run.trigger != Trigger::WarmUp
    }

    fn image(&self, variant: &str) -> ImageRef {
        format!("registry/{variant}:{}", self.run.id).parse().expect("a reference")
    }

    fn build_of(&self, rng: &mut Rng, arch: Arch, variant: &str, cache: &ImageRef) -> JobKind {
        JobKind::Build {
            platform: Platform(arch),
            context: String::new(),
            dockerfile: String::new(),
            target: None,
            build_args: BuildArgs::default(),
            image: self.image(variant),
            cache_from: Vec::new(),
            cache_to: Some(cache.clone()),
            push: self.pushes(),
            uses: Self::uses(rng),
            emulation: if rng.chance(15) { Emulation::Forbid } else { Emulation::Allow },
            submodules: Submodules::All,
        }
    }

    /// Sometimes an existing image, mostly the same.
    fn uses(rng: &mut Rng) -> BTreeMap<String, UsedImage> {
        let mut uses = BTreeMap::new();
        if rng.chance(20) {
            let image = if rng.chance(80) { "registry/base:1" } else { "registry/base:2" };
            let image = image.parse().expect("a reference");
            uses.insert("base".to_owned(), UsedImage::Image { image });
        }
        uses
    }

    fn merge(&self, rng: &mut Rng, variant: &str, needs: Vec<JobId>) -> PlannedJob {
        let platforms = Arch::ALL.map(Platform).to_vec();
        let kind = JobKind::Merge { platforms, image: self.image(variant) };
        planned(rng, format!("{variant}_merge"), variant, kind, needs)
    }
}

pub(crate) fn failure() -> PlanFailure {
    PlanFailure { reason: FailureReason::Manifest, message: "wrong".to_owned() }
}

fn job(
    rng: &mut Rng,
    variant: &str,
    kind: impl Fn(&mut Rng, Arch) -> JobKind,
    arch: Arch,
    needs: Vec<JobId>,
) -> PlannedJob {
    let kind = kind(rng, arch);
    planned(rng, format!("{variant}_{arch}"), variant, kind, needs)
}

fn planned(
    rng: &mut Rng,
    name: String,
    variant: &str,
    kind: JobKind,
    needs: Vec<JobId>,
) -> PlannedJob {
    PlannedJob {
        id: JobId::from_bits(rng.id()),
        name,
        build: variant.to_owned(),
        variant: variant.into(),
        tag: None,
        kind,
        size: MachineSize::default(),
        needs,
        timeout: Duration::from_secs(60 + rng.below(4_000)),
    }
}
