//! The test jobs of a run: the section `test` of `stagely.yaml`, with all variables filled in.

use std::collections::BTreeSet;

use stagely_manifest::{PreviewVariable, Test, TestImage, TestPlace};
use stagely_protocol::{Arch, BuildArgs, Shard};
use stagely_state::ids::JobId;
use stagely_state::{
    JobKind, PlannedJob, SkipReason, SkippedBuild, Test as TestJob, TestMachine, UsedImage,
    WantedTests,
};

use super::preview::value_of_preview;
use super::{PlanContext, Planner};

impl Planner<'_> {
    /// Adds the jobs of all tests of a run that builds everything: one for each shard. A test whose image or preview will
    /// not be there is skipped.
    pub(super) fn add_tests(&mut self) {
        let PlanContext { push, only_builds, wanted_tests, .. } = self.context;
        if !push || *wanted_tests == WantedTests::None || !only_builds.is_empty() {
            return;
        }
        let deployment = self.plan.jobs.iter().find(|job| job.kind.is_deploy()).map(|job| job.id);
        for test in &self.manifest.tests {
            let skipped = match (self.manifest.preview.is_some(), deployment) {
                (true, None) => Err(SkipReason::NoPreview),
                _ => self.add_test(test, deployment),
            };
            if let Err(reason) = skipped {
                self.plan.skipped.push(SkippedBuild { variant: test.name.as_str().into(), reason });
            }
        }
    }

    fn add_test(&mut self, test: &Test, deployment: Option<JobId>) -> Result<(), SkipReason> {
        let (image, arch) = match &test.image {
            TestImage::Reference(image) => (UsedImage::Image { image: image.clone() }, None),
            TestImage::Variant(variant) => {
                let image = self.image_of(variant);
                let image = image.ok_or_else(|| SkipReason::NoImage { build: variant.clone() })?;
                (image, only(self.arches_of(variant)))
            }
        };
        let built = match image {
            UsedImage::Job { job } => Some(job),
            UsedImage::Image { .. } => None,
        };
        let needs: Vec<JobId> = built.into_iter().chain(deployment).collect();
        for index in 1..=test.shards {
            let shard = Shard { index, total: test.shards };
            let kind = JobKind::Test {
                arch,
                test: Box::new(self.test_job(test, image.clone(), shard, deployment.is_some())),
            };
            let job = PlannedJob::new((self.new_job_id)(), &test.name, kind, test.timeout);
            let (name, size) = (job_name(test, shard), test.machine);
            self.plan.jobs.push(PlannedJob { name, size, needs: needs.clone(), ..job });
        }
        Ok(())
    }

    fn test_job(&self, test: &Test, image: UsedImage, shard: Shard, of_preview: bool) -> TestJob {
        let context = self.context;
        let value = |variable: &PreviewVariable| {
            value_of_preview(self.manifest.preview.as_ref(), context, variable)
        };
        let env = test.env.iter().map(|(name, template)| (name.clone(), template.fill(value)));
        TestJob {
            image,
            command: test.command.clone(),
            env: BuildArgs(env.collect()),
            secrets: if context.from_fork { Vec::new() } else { test.secrets.clone() },
            shard,
            retries: test.retries,
            junit: test.junit.clone(),
            artifacts: test.artifacts.clone(),
            comment_images: test.comment_images.clone(),
            on: match test.on {
                TestPlace::Tester => TestMachine::Tester,
                TestPlace::Preview => TestMachine::Preview,
            },
            preview_of: of_preview.then_some(context.requested_at),
        }
    }
}

/// No build has a job of this name, because it has a slash.
fn job_name(test: &Test, shard: Shard) -> String {
    if shard.is_all() {
        format!("test/{}", test.name)
    } else {
        format!("test/{}/{}", test.name, shard.index)
    }
}

/// The arch, if there is only one.
fn only(mut arches: BTreeSet<Arch>) -> Option<Arch> {
    if arches.len() == 1 { arches.pop_first() } else { None }
}
