//! Compares a run with its base and with the commits of good images, so that unchanged builds are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use secrecy::SecretString;
use stagely_agent::git::{self, CloneError, FetchRequest, ResolvedRef};
use stagely_manifest::suggest::shown;
use stagely_manifest::{Build, Manifest};
use stagely_protocol::{CommitSha, ErrorChain, Submodules};
use stagely_state::{Environment, GoodImage, Trigger, VariantName};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::failure::{NotPlanned, failed};
use super::{Planner, Subject};
use crate::core::intake::names::{DEFAULT_ENVIRONMENT, environment_of};
use crate::core::plan::Base;

/// The most commits of good images that are fetched and compared. More differ only where builds
/// failed again and again.
const COMMITS_MAX: usize = 16;

/// The images that may stand in for builds of a run, and the base that decides whether they do.
#[derive(Default)]
pub(super) struct BaseComparison {
    pub(super) good_images: BTreeMap<VariantName, GoodImage>,
    pub(super) base: Option<Base>,
}

pub(super) struct PlanSource<'a> {
    pub(super) subject: &'a Subject,
    pub(super) resolved: &'a ResolvedRef,
    pub(super) token: Option<SecretString>,
    /// The most bytes that one fetch may receive.
    pub(super) bytes_max: u64,
    pub(super) cancel: &'a CancellationToken,
}

/// A base, and the branch whose images stand in.
struct FoundBase {
    name: String,
    commit: CommitSha,
    branch: Option<String>,
    default_branch: Option<String>,
}

impl Planner {
    /// Finds the base and compares with it. `objects` are those of the run's commit. After a failure everything is
    /// built, unless the caller named a base that cannot be found.
    pub(super) async fn compare(
        &self,
        source: &PlanSource<'_>,
        manifest: &Manifest,
        objects: &Path,
    ) -> Result<BaseComparison, NotPlanned> {
        let base = self.find_base(source, manifest).await?;
        let good_images = self.good_images(source, base.as_ref());
        let Some(base) = base else { return Ok(BaseComparison { good_images, base: None }) };
        let commits = commits_to_compare(source.subject, manifest, &good_images);
        if commits.is_empty() {
            return Ok(BaseComparison { good_images, base: None });
        }
        // The rest of the time is left for a plan that builds everything.
        let limit = self.planning_limit / 2;
        let comparing = timeout(limit, changes(source, &base, commits, objects));
        let changed = comparing.await.unwrap_or_else(|_| {
            warn!(run = %source.subject.run.id, "comparing with the base took longer than {limit:?}");
            Ok(None)
        })?;
        let base = changed.map(|changed| Base { name: base.name, commit: base.commit, changed });
        Ok(BaseComparison { good_images, base })
    }

    /// Compares nothing: the images of the default branch may stand in.
    pub(super) fn without_comparing(&self, source: &PlanSource<'_>) -> BaseComparison {
        BaseComparison { good_images: self.good_images(source, None), base: None }
    }

    async fn find_base(
        &self,
        source: &PlanSource<'_>,
        manifest: &Manifest,
    ) -> Result<Option<FoundBase>, NotPlanned> {
        let PlanSource { subject, resolved, token, cancel, .. } = source;
        let named = subject.run.base.as_deref();
        let matters = |build: &Build| build.paths.is_some() || !build.depends_on.is_empty();
        let is_wanted = !subject.is_default_branch(resolved) && manifest.builds.iter().any(matters);
        if named.is_none() && !is_wanted {
            return Ok(None);
        }
        let (url, token) = (&subject.run.repository, token.clone());
        let wanted = named.unwrap_or("HEAD");
        match git::resolve_ref(url, token, wanted, &self.reader.scratch, cancel).await {
            Ok(found) => {
                let default_branch = found.default_branch.clone();
                let default_branch = default_branch.or_else(|| resolved.default_branch.clone());
                let branch = found.branch().map(str::to_owned).or_else(|| default_branch.clone());
                let of_default =
                    || branch.clone().unwrap_or_else(|| "the default branch".to_owned());
                let name = named.map_or_else(of_default, str::to_owned);
                Ok(Some(FoundBase { name, commit: found.commit, branch, default_branch }))
            }
            Err(error) => skip_comparison(source, named, error).map(|()| None),
        }
    }

    /// The newest good images that may stand in: of the base's branch, and, if that is the default branch, of the
    /// environment of runs without a branch. A warm-up prefers the images of its own environment.
    fn good_images(
        &self,
        source: &PlanSource<'_>,
        base: Option<&FoundBase>,
    ) -> BTreeMap<VariantName, GoodImage> {
        let PlanSource { subject, resolved, .. } = source;
        let branch = match base {
            Some(base) => base.branch.as_deref(),
            None => resolved.default_branch.as_deref(),
        };
        let default = base.and_then(|base| base.default_branch.as_deref());
        let default = default.or(resolved.default_branch.as_deref());
        let mut names: Vec<String> = branch.map(environment_of).into_iter().collect();
        if branch == default {
            names.push(DEFAULT_ENVIRONMENT.to_owned());
        }
        let records = self.records.read();
        let of_project = |environment: &&Environment| environment.project == subject.project.id;
        let environments = records.environments.values().filter(of_project);
        let mut images = newest(environments.filter(|found| names.contains(&found.name)));
        if subject.run.trigger == Trigger::WarmUp {
            images.extend(newest([&subject.environment]));
        }
        images
    }
}

/// The newest images of `environments`, by variant. Images with build arguments of their caller are left out, because
/// their commit's files alone would give other images.
fn newest<'a>(
    environments: impl IntoIterator<Item = &'a Environment>,
) -> BTreeMap<VariantName, GoodImage> {
    let mut newest: BTreeMap<VariantName, GoodImage> = BTreeMap::new();
    let images = environments.into_iter().flat_map(|environment| &environment.images);
    for (variant, image) in images.filter(|(_, image)| !image.with_set) {
        // Ids sort by time.
        if newest.get(variant).is_none_or(|known| known.run < image.run) {
            newest.insert(variant.clone(), image.clone());
        }
    }
    newest
}

/// The commits of the images that may stand in for builds that have `paths`.
fn commits_to_compare(
    subject: &Subject,
    manifest: &Manifest,
    good_images: &BTreeMap<VariantName, GoodImage>,
) -> BTreeSet<CommitSha> {
    let run = &subject.run;
    // The caller's arguments make another image than the base's.
    // Neither does an image that may be gone stand in.
    let is_all_built = matches!(run.trigger, Trigger::WarmUp | Trigger::ImagesGone);
    if is_all_built || !run.set_names.is_empty() {
        return BTreeSet::new();
    }
    let with_paths = manifest.builds.iter().filter(|build| build.paths.is_some());
    let variants = with_paths.flat_map(|build| &build.variants);
    let images = variants.filter_map(|variant| good_images.get(&*variant.name));
    images.map(|image| image.commit.clone()).collect()
}

/// The paths that changed since each commit; `None` if the comparison with the base failed.
async fn changes(
    source: &PlanSource<'_>,
    base: &FoundBase,
    commits: BTreeSet<CommitSha>,
    objects: &Path,
) -> Result<Option<BTreeMap<CommitSha, Vec<String>>>, NotPlanned> {
    let PlanSource { subject, resolved, token, cancel, .. } = source;
    let changed = async |commit: &CommitSha| {
        let request = FetchRequest {
            url: subject.run.repository.clone(),
            commit: commit.clone(),
            branch: base.branch.clone(),
            token: token.clone(),
            submodules: Submodules::None,
            large_files: false,
            bytes_max: source.bytes_max,
        };
        let paths = git::changed_paths(request, &resolved.commit, objects, cancel).await?;
        Ok(paths.into_iter().map(|changed| changed.path).collect())
    };
    let mut all = BTreeMap::new();
    match changed(&base.commit).await {
        Ok(paths) => all.insert(base.commit.clone(), paths),
        Err(error) => {
            return skip_comparison(source, subject.run.base.as_deref(), error).map(|()| None);
        }
    };
    for commit in commits.into_iter().filter(|commit| *commit != base.commit).take(COMMITS_MAX) {
        match changed(&commit).await {
            Ok(paths) => {
                all.insert(commit, paths);
            }
            Err(error) => skip_comparison(source, None, error)?,
        }
    }
    Ok(Some(all))
}

/// Continues without a comparison that failed, unless the caller named a base that does not exist, or the planning
/// is cancelled.
fn skip_comparison(
    source: &PlanSource<'_>,
    named: Option<&str>,
    error: CloneError,
) -> Result<(), NotPlanned> {
    match (error, named) {
        (error @ CloneError::Cancelled, _) => Err(error.into()),
        (error @ CloneError::CommitGone { .. }, Some(base)) => {
            let base = shown(base);
            let problem = "is not in the repository; name one of its branches or a full commit id";
            Err(failed(error.reason(), format!("the base `{base}` {problem}")))
        }
        (error, _) => {
            warn!(run = %source.subject.run.id, error = %ErrorChain(&error), "the comparison failed; everything is built");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use stagely_state::ids::{EnvironmentId, ProjectId, RunId};

    use super::*;

    fn image(run: u128) -> GoodImage {
        let reference = format!("registry.internal/shop/main:app.{run}");
        GoodImage {
            run: RunId::from_bits(run),
            commit: "a".repeat(40).parse().unwrap(),
            image: reference.parse().unwrap(),
            digest: format!("sha256:{}", "d".repeat(64)).parse().unwrap(),
            tag: reference.parse().unwrap(),
            with_set: false,
        }
    }

    fn environment(number: u128, images: &[(&str, u128)]) -> Environment {
        let (id, project) = (EnvironmentId::from_bits(number), ProjectId::from_bits(1));
        let images = images.iter().map(|(variant, run)| (VariantName::from(*variant), image(*run)));
        Environment { images: images.collect(), ..Environment::new(id, project, "main".into()) }
    }

    #[test]
    fn each_build_takes_the_newer_image_of_two_environments() {
        let (main, default) =
            (environment(1, &[("app", 5), ("web", 2)]), environment(2, &[("app", 4), ("web", 3)]));
        let images = newest([&main, &default]);
        assert_eq!((&images["app"], &images["web"]), (&image(5), &image(3)));
    }

    #[test]
    fn an_image_of_a_run_with_arguments_of_its_caller_does_not_stand_in() {
        let mut main = environment(1, &[("app", 5), ("web", 5)]);
        main.images.get_mut("app").unwrap().with_set = true;
        assert_eq!(newest([&main]).into_keys().collect::<Vec<_>>(), [VariantName::from("web")]);
    }
}
