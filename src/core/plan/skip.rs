//! Decides which builds a run makes, in which order, and why it skips the others.

use std::collections::BTreeSet;

use stagely_manifest::{Build, FILE_NAME, Globs, Manifest};
use stagely_state::{GoodImage, SkipReason, SkippedBuild};

use super::PlanContext;

/// A change of one of these files affects every build. The second has the addresses of submodules.
const FOR_ALL: [&str; 2] = [FILE_NAME, ".gitmodules"];

/// The builds of a run.
pub(super) struct Selection<'a> {
    /// The builds to make, each after the builds that it depends on; otherwise in the order of the file.
    pub(super) made: Vec<&'a Build>,
    /// The other requested builds.
    pub(super) skipped: Vec<SkippedBuild>,
}

/// Selects the `wanted` builds and all builds that these depend on.
pub(super) fn select<'a>(
    manifest: &'a Manifest,
    wanted: impl Fn(&Build) -> bool,
    context: &PlanContext<'_>,
) -> Selection<'a> {
    let mut order = Vec::new();
    for build in manifest.builds.iter().filter(|build| wanted(build)) {
        visit(manifest, build, &mut BTreeSet::new(), &mut order);
    }
    let mut selection = Selection { made: Vec::new(), skipped: Vec::new() };
    for build in order {
        let decision = Decision { build, manifest, context, made: &selection.made };
        match decision.reasons() {
            None => selection.made.push(build),
            Some(reasons) => selection.skipped.extend(reasons),
        }
    }
    selection
}

/// Appends `build` to `order`, after all builds that it depends on. `above` are the builds that led to it; they end the
/// recursion in case of a circle, which a valid manifest does not have.
fn visit<'a>(
    manifest: &'a Manifest,
    build: &'a Build,
    above: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a Build>,
) {
    if order.iter().any(|known| known.name == build.name) || !above.insert(&build.name) {
        return;
    }
    for needed in dependencies(manifest, build) {
        visit(manifest, needed, above, order);
    }
    order.push(build);
}

/// The builds that `build` names in `depends_on`, in its order.
pub(super) fn dependencies<'a>(
    manifest: &'a Manifest,
    build: &'a Build,
) -> impl Iterator<Item = &'a Build> {
    let named = |name: &String| manifest.builds.iter().find(|other| other.name == *name);
    build.depends_on.iter().filter_map(named)
}

/// The images that stand in for all variants of `build`, by variant, if there is one for each.
pub(super) fn stand_ins<'a>(
    build: &'a Build,
    context: &PlanContext<'a>,
) -> Option<Vec<(&'a str, &'a GoodImage)>> {
    let image = |name: &'a str| Some((name, context.good_images.get(name)?));
    build.variants.iter().map(|variant| image(&variant.name)).collect()
}

/// Decides whether a run skips `build`, after the decisions on the builds that it depends on.
struct Decision<'a> {
    build: &'a Build,
    manifest: &'a Manifest,
    context: &'a PlanContext<'a>,
    /// The earlier builds that the run makes.
    made: &'a [&'a Build],
}

impl<'a> Decision<'a> {
    /// The reason why each variant is skipped; `None` if the build is made.
    fn reasons(&self) -> Option<Vec<SkippedBuild>> {
        let PlanContext { branch, pull_request, from_fork, .. } = self.context;
        // The author of a pull request chooses its branch's name: a fork may have a `main` too.
        let is_trusted = pull_request.is_none() && !from_fork;
        if let Some(globs) = &self.build.only_branches
            && !branch.is_some_and(|branch| is_trusted && globs.is_match(branch))
        {
            return Some(self.all(&SkipReason::Branch { branch: branch.map(str::to_owned) }));
        }
        if let Some(build) = self.missing() {
            return Some(self.all(&SkipReason::NoImage { build: build.to_owned() }));
        }
        let base = self.context.base?;
        let images = self.unchanged_images()?;
        let skip = |(variant, image): (&str, &GoodImage)| SkippedBuild {
            variant: variant.into(),
            reason: SkipReason::PathsUnchanged {
                base: base.name.clone(),
                commit: image.commit.clone(),
                image: image.image.at_digest(&image.digest),
            },
        };
        Some(images.into_iter().map(skip).collect())
    }

    fn all(&self, reason: &SkipReason) -> Vec<SkippedBuild> {
        let skip = |variant: &str| SkippedBuild { variant: variant.into(), reason: reason.clone() };
        self.build.variants.iter().map(|variant| skip(&variant.name)).collect()
    }

    /// A build that this one depends on and that will have no image.
    fn missing(&self) -> Option<&'a str> {
        let has_image = |build: &Build| {
            // A warm-up pushes nothing that another job could use.
            let is_made = self.context.push && self.is_made(build);
            is_made || stand_ins(build, self.context).is_some()
        };
        let mut needed = dependencies(self.manifest, self.build);
        needed.find(|build| !has_image(build)).map(|build| &*build.name)
    }

    fn is_made(&self, build: &Build) -> bool {
        self.made.iter().any(|made| made.name == build.name)
    }

    /// The existing images, if building this commit would give the same images because none of their files has
    /// changed.
    ///
    /// The commit is compared with the base and with the commit of each image, which may be older than the base,
    /// because a build failed, or newer. The files of all builds that this one depends on count too, because its
    /// image may be older than theirs.
    fn unchanged_images(&self) -> Option<Vec<(&'a str, &'a GoodImage)>> {
        let base = self.context.base?;
        let asked_for = self.context.only_builds.contains(&self.build.name);
        let mut needed = dependencies(self.manifest, self.build);
        if !self.context.push || asked_for || needed.any(|name| self.is_made(name)) {
            return None;
        }
        let inputs = self.inputs()?;
        let images = stand_ins(self.build, self.context)?;
        let mut commits: BTreeSet<_> = images.iter().map(|(_, image)| &image.commit).collect();
        commits.insert(&base.commit);
        let counts = |path: &String| {
            FOR_ALL.contains(&path.as_str()) || inputs.iter().any(|globs| globs.is_match(path))
        };
        let unchanged = |paths: &Vec<String>| !paths.iter().any(counts);
        let all = commits.iter().all(|commit| base.changed.get(*commit).is_some_and(unchanged));
        all.then_some(images)
    }

    /// The `paths` of this build and of all builds that it depends on; `None` if one of them has no `paths`.
    fn inputs(&self) -> Option<Vec<&'a Globs>> {
        let mut builds = Vec::new();
        visit(self.manifest, self.build, &mut BTreeSet::new(), &mut builds);
        builds.iter().map(|build| build.paths.as_ref()).collect()
    }
}
