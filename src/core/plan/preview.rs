//! The deploy job of a run: the section `preview` of `stagely.yaml`, with all variables filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagely_manifest::{
    Globs, Preview, PreviewAccess, PreviewSource, PreviewTrigger, PreviewVariable, SINGLE_SERVICE,
    ServiceCommand,
};
use stagely_protocol::{
    Arch, BuildArgs, Endpoint, HealthCheck, ServiceCommand as WireCommand, Submodules,
};
use stagely_state::{
    Access, DEPLOY_JOB, Deployment, JobKind, PlannedJob, PreviewSettings, SkipReason, SkippedBuild,
    UsedImage,
};
use url::Url;

use super::{PlanContext, PlanError, Planner, stand_ins, value_of};
use crate::core::previews::{PreviewHosts, preview_label};

/// The time limit of a deployment beside the limits of its commands and health checks: pulling and starting.
const DEPLOY_TIMEOUT: Duration = Duration::from_mins(30);

/// What the preview of a plan depends on besides the rest of the [`PlanContext`].
#[derive(Clone, Copy, Debug)]
pub struct PreviewContext<'a> {
    pub hosts: &'a PreviewHosts,
    /// Whether the caller wants a preview, whatever `on` says; `None`: as `stagely.yaml` says.
    pub requested: Option<bool>,
    /// Whether the environment has a preview, running or asleep.
    pub is_open: bool,
}

/// Whether the run of this context gets a preview.
fn is_wanted(preview: &Preview, context: &PlanContext<'_>) -> bool {
    let is_of_pull_request = context.pull_request.is_some();
    let is_of_branch = || {
        let of_branch = preview.branches.as_ref().zip(context.branch);
        // The author of a pull request chooses its branch's name.
        let is_trusted = !is_of_pull_request && !context.from_fork;
        is_trusted && of_branch.is_some_and(|(globs, branch)| globs.is_match(branch))
    };
    let is_of_all = is_of_pull_request && preview.on == PreviewTrigger::PullRequests;
    let is_chosen = is_of_all || is_of_branch();
    let is_whole = context.push && context.only_builds.is_empty();
    is_whole && context.preview.requested.unwrap_or(is_chosen || context.preview.is_open)
}

impl Planner<'_> {
    /// Adds the deploy job, if the run gets a preview. An image that will not be there skips it.
    pub(super) fn add_preview(&mut self) -> Result<(), PlanError> {
        let wanted =
            self.manifest.preview.as_ref().filter(|wanted| is_wanted(wanted, self.context));
        let Some(preview) = wanted else { return Ok(()) };
        let images = match self.images_of_services(&preview.source) {
            Ok(images) => images,
            Err(build) => {
                let reason = SkipReason::NoImage { build };
                self.plan.skipped.push(SkippedBuild { variant: DEPLOY_JOB.into(), reason });
                return Ok(());
            }
        };
        let (arch, default_images) = self.arch_and_default_images(&preview.source, &images)?;
        let deployment = Deployment {
            images,
            default_images,
            ..deployment(preview, self.manifest.submodules, self.context)
        };
        let needs: BTreeSet<_> = deployment
            .used_images()
            .filter_map(|image| match image {
                UsedImage::Job { job } => Some(*job),
                UsedImage::Image { .. } => None,
            })
            .collect();
        let kind = JobKind::Deploy { arch, deployment: Box::new(deployment) };
        let job = PlannedJob {
            size: preview.machine,
            needs: needs.into_iter().collect(),
            ..PlannedJob::new((self.new_job_id)(), DEPLOY_JOB, kind, timeout(preview))
        };
        self.plan.jobs.push(job);
        Ok(())
    }

    /// The images that `stagely.yaml` names, by service, or the name of one that will not be there.
    fn images_of_services(
        &self,
        source: &PreviewSource,
    ) -> Result<BTreeMap<String, UsedImage>, String> {
        let named = |(service, variant): (&str, &String)| match self.image_of(variant) {
            Some(image) => Ok((service.to_owned(), image)),
            None => Err(variant.clone()),
        };
        services(source).map(named).collect()
    }

    /// The architecture of the machine (`None`: any), and the images of all other variants that run on it.
    fn arch_and_default_images(
        &self,
        source: &PreviewSource,
        images: &BTreeMap<String, UsedImage>,
    ) -> Result<(Option<Arch>, BTreeMap<String, UsedImage>), PlanError> {
        let mut arches: BTreeSet<Arch> = Arch::ALL.into();
        for (_, variant) in services(source) {
            arches = &arches & &self.arches_of(variant);
        }
        if arches.is_empty() {
            let builds = services(source).map(|(_, variant)| variant.clone());
            let builds: BTreeSet<String> = builds.collect();
            return Err(PlanError::NoCommonPlatform { builds: builds.into_iter().collect() });
        }
        let mut default_images = BTreeMap::new();
        if let PreviewSource::Compose { .. } = source {
            let variants = self.manifest.builds.iter().flat_map(|build| &build.variants);
            let names = variants.map(|variant| &variant.name);
            for name in names.filter(|name| !images.contains_key(*name)) {
                let common = &arches & &self.arches_of(name);
                if !common.is_empty()
                    && let Some(image) = self.image_of(name)
                {
                    arches = common;
                    default_images.insert(name.clone(), image);
                }
            }
        }
        let only = if arches.len() == 1 { arches.pop_first() } else { None };
        Ok((only, default_images))
    }

    /// The image of `variant`: of this run, or the one that stands in.
    pub(super) fn image_of(&self, variant: &str) -> Option<UsedImage> {
        if let Some(job) = self.last_jobs.get(variant) {
            return Some(UsedImage::Job { job: *job });
        }
        let builds = &self.manifest.builds;
        let build =
            builds.iter().find(|build| build.variants.iter().any(|known| known.name == variant))?;
        let mut images = stand_ins(build, self.context)?.into_iter();
        let (_, image) = images.find(|(name, _)| *name == variant)?;
        Some(UsedImage::Image { image: image.image.at_digest(&image.digest) })
    }

    pub(super) fn arches_of(&self, variant: &str) -> BTreeSet<Arch> {
        let is_of = |name: &str| name == variant;
        let builds = self.manifest.builds.iter();
        let mut builds =
            builds.filter(|build| build.variants.iter().any(|known| is_of(&known.name)));
        let platforms = builds.next().map(|build| &*build.platforms).unwrap_or_default();
        platforms.iter().map(|platform| platform.arch()).collect()
    }
}

/// The services whose images `stagely.yaml` names, each with the variant.
fn services(source: &PreviewSource) -> Box<dyn Iterator<Item = (&str, &String)> + '_> {
    match source {
        PreviewSource::Compose { images, .. } => {
            Box::new(images.iter().map(|(service, variant)| (&**service, variant)))
        }
        PreviewSource::Image { variant } => Box::new([(SINGLE_SERVICE, variant)].into_iter()),
    }
}

fn timeout(preview: &Preview) -> Duration {
    let commands = [&preview.migrate, &preview.seed].into_iter().flatten();
    let commands: Duration = commands.map(|command| command.timeout).sum();
    let health = preview.endpoints.iter().map(|endpoint| endpoint.health.timeout).max();
    DEPLOY_TIMEOUT + commands + health.unwrap_or_default()
}

/// The deployment without its images.
fn deployment(preview: &Preview, submodules: Submodules, context: &PlanContext<'_>) -> Deployment {
    Deployment {
        compose: match &preview.source {
            PreviewSource::Compose { path, .. } => Some(path.clone()),
            PreviewSource::Image { .. } => None,
        },
        images: BTreeMap::new(),
        default_images: BTreeMap::new(),
        endpoints: endpoints(preview, context),
        env: env(preview, context),
        submodules,
        secrets: if context.from_fork { Vec::new() } else { preview.secrets.clone() },
        migrate: preview.migrate.as_ref().map(command),
        seed: preview.seed.as_ref().map(command),
        fresh: false,
        reset_when: preview.reset_when.iter().flat_map(Globs::patterns).cloned().collect(),
        disk_gib: u32::try_from(preview.disk_bytes >> 30).unwrap_or(u32::MAX),
        settings: PreviewSettings {
            access: match preview.access {
                PreviewAccess::Link => Access::Link,
                PreviewAccess::Public => Access::Public,
                PreviewAccess::Token => Access::Token,
            },
            public_paths: preview.public_paths.clone(),
            on_request: preview.on != PreviewTrigger::PullRequests,
            sleep_after: preview.sleep_after,
            ttl: preview.ttl,
        },
    }
}

/// The endpoints with their host names. All but the first one have their own name in it.
fn endpoints(preview: &Preview, context: &PlanContext<'_>) -> Vec<Endpoint> {
    let (environment, project) = (&context.environment.name, &context.project.name);
    let endpoint = |(index, endpoint): (usize, &stagely_manifest::Endpoint)| {
        let further = (index > 0).then_some(&*endpoint.name);
        let url = context.preview.hosts.url(&preview_label(environment, project, further));
        let health = &endpoint.health;
        Endpoint {
            name: endpoint.name.clone(),
            service: endpoint.service.clone(),
            port: endpoint.port,
            host: Some(host_and_port(&url)),
            health: HealthCheck {
                path: health.path.clone(),
                status: [*health.status.start(), *health.status.end()],
                timeout_seconds: health.timeout.as_secs(),
            },
        }
    };
    preview.endpoints.iter().enumerate().map(endpoint).collect()
}

/// What browsers send as `Host`.
fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn command(command: &ServiceCommand) -> WireCommand {
    WireCommand {
        service: command.service.clone(),
        command: command.command.clone(),
        timeout_seconds: command.timeout.as_secs(),
    }
}

/// The value of a variable that the services of `preview` and its tests may use.
pub(super) fn value_of_preview(
    preview: Option<&Preview>,
    context: &PlanContext<'_>,
    variable: &PreviewVariable,
) -> String {
    let (environment, project) = (&context.environment.name, &context.project.name);
    let hosts = context.preview.hosts;
    let url = |further: Option<&str>| hosts.url(&preview_label(environment, project, further));
    let first = preview.and_then(|preview| preview.endpoints.first());
    let first = first.map(|endpoint| &endpoint.name);
    let text = |url: Url| url.as_str().trim_end_matches('/').to_owned();
    match variable {
        PreviewVariable::Run(variable) => value_of(context, *variable),
        PreviewVariable::Url => text(url(None)),
        PreviewVariable::Host => url(None).host_str().unwrap_or_default().to_owned(),
        PreviewVariable::EndpointUrl(name) => {
            text(url(Some(name.as_str()).filter(|_| first != Some(name))))
        }
    }
}

fn env(preview: &Preview, context: &PlanContext<'_>) -> BuildArgs {
    let value = |variable: &PreviewVariable| value_of_preview(Some(preview), context, variable);
    let filled = preview.env.iter().map(|(name, template)| (name.clone(), template.fill(value)));
    BuildArgs(filled.collect())
}
