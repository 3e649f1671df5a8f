//! Random requests and plans.

use std::collections::BTreeMap;
use std::time::Duration;

use stagely::core::state::{
    Environment, Event, JobKind, MachineSize, PlanFailure, PlannedJob, PlannedRun, Project, Run,
    Timestamp,
};
use stagely::ids::{EnvironmentId, JobId, ProjectId, RunId};
use stagely_agent::protocol::{Arch, BuildArgs, Emulation, FailureReason, Platform};

use crate::rng::Rng;

const PROJECTS: u64 = 3;

/// A run of one of a few projects.
pub(crate) fn request(rng: &mut Rng, now: Timestamp) -> Event {
    let number = u128::from(1 + rng.below(PROJECTS));
    let project = ProjectId::from_bits(number);
    let environment = EnvironmentId::from_bits(number);
    let environment = Environment::new(environment, project, String::new());
    let run = Run::new(RunId::from_bits(rng.id()), &environment, String::new(), now);
    Event::RunRequested {
        run: Box::new(run),
        project: Project { id: project, name: String::new(), repository: String::new() },
        environment,
    }
}

/// One to three builds, each of one or two platforms, with the merges; sometimes one waits for
/// another.
pub(crate) fn plan(rng: &mut Rng) -> PlannedRun {
    let mut jobs: Vec<PlannedJob> = Vec::new();
    for _ in 0..=rng.below(3) {
        let first = rng.pick(&Arch::ALL).expect("there are arches");
        let mut needs = Vec::new();
        if rng.chance(20) {
            needs.extend(jobs.last().map(|job| job.id));
        }
        let build = job(rng, build_of(first), needs);
        let mut parts = vec![build.id];
        jobs.push(build);
        if rng.chance(40) {
            let other = Arch::ALL.into_iter().find(|arch| *arch != first).expect("there are two");
            let build = job(rng, build_of(other), Vec::new());
            parts.push(build.id);
            jobs.push(build);
            let platforms = Arch::ALL.map(Platform).to_vec();
            let image = "registry/app:1".parse().expect("a reference");
            jobs.push(job(rng, JobKind::Merge { platforms, image }, parts));
        }
    }
    PlannedRun::new("c".repeat(40).parse().expect("40 digits"), jobs)
}

pub(crate) fn failure() -> PlanFailure {
    PlanFailure { reason: FailureReason::Manifest, message: "wrong".to_owned() }
}

fn build_of(arch: Arch) -> JobKind {
    JobKind::Build {
        platform: Platform(arch),
        context: String::new(),
        dockerfile: String::new(),
        target: None,
        build_args: BuildArgs::default(),
        image: "registry/app:1".parse().expect("a reference"),
        cache_from: Vec::new(),
        cache_to: None,
        push: true,
        uses: BTreeMap::new(),
        emulation: Emulation::Allow,
    }
}

fn job(rng: &mut Rng, kind: JobKind, needs: Vec<JobId>) -> PlannedJob {
    PlannedJob {
        id: JobId::from_bits(rng.id()),
        name: String::new(),
        build: String::new(),
        variant: String::new(),
        tag: None,
        kind,
        size: MachineSize::default(),
        needs,
        timeout: Duration::from_secs(60 + rng.below(4_000)),
    }
}
