//! `depends_on`: the order of builds, and the build arguments that name their images.

use std::collections::HashMap;

use super::fields::{Field, read_value};
use super::limits::{DEPENDS_ON_MAX, USED_IMAGES_MAX};
use super::lists::{self, limit};
use super::manifest::Build;
use super::mistake::Mistake;
use super::problem::Collector;
use super::suggest::{closest, shown};

/// The build argument that names the image of the dependency `variant`: `STAGELY_IMAGE_BASE`.
pub fn image_argument(variant: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("STAGELY_IMAGE_{}", variant.chars().map(letter).collect::<String>())
}

/// Reads the list of the build `own`. `known` are the names of all builds of the file.
pub(super) fn depends_on(
    field: &Field<'_>,
    own: &str,
    known: &[&str],
    problems: &mut Collector,
) -> Vec<String> {
    let Some(mut items) = lists::open(field, "a list of builds", problems) else {
        return Vec::new();
    };
    limit(field, &mut items, DEPENDS_ON_MAX, problems);
    let mut names: Vec<String> = Vec::new();
    for item in &items {
        let Some(name) = read_value(item, |field| field.text().map(str::to_owned), problems) else {
            continue;
        };
        match mistake_of(&name, own, known, &names) {
            Some(mistake) => problems.add(item.at(), &*item.path, mistake),
            None => names.push(name),
        }
    }
    names
}

fn mistake_of(name: &str, own: &str, known: &[&str], before: &[String]) -> Option<Mistake> {
    if name == own {
        return Some(Mistake::DependsOnItself);
    }
    if before.iter().any(|other| other == name) {
        return Some(Mistake::Twice(shown(name)));
    }
    if known.contains(&name) {
        return None;
    }
    let others = || known.iter().copied().filter(|other| *other != own);
    let suggestion = closest(name, others()).map(shown);
    Some(Mistake::UnknownBuild {
        name: name.to_owned(),
        suggestion,
        known: others().map(shown).collect(),
    })
}

/// Notes cycles, too many images, missing platforms, and images that would share a build argument.
pub(super) fn check(builds: &[Build], problems: &mut Collector) {
    for cycle in cycles(builds) {
        let first = &builds[cycle[0]];
        let names: Vec<_> =
            cycle.iter().chain(&cycle[..1]).map(|index| shown(&builds[*index].name)).collect();
        add(first, Mistake::Cycle(names.join(" -> ")), problems);
    }
    for build in builds {
        let needed: Vec<&Build> =
            builds.iter().filter(|other| build.depends_on.contains(&other.name)).collect();
        let images = needed.iter().map(|other| other.variants.len()).sum();
        if images > USED_IMAGES_MAX {
            add(build, Mistake::TooManyImages { images, max: USED_IMAGES_MAX }, problems);
            continue;
        }
        let mistakes = needed.iter().filter_map(|other| platform_mistake(build, other));
        for mistake in mistakes.chain(argument_mistakes(build, &needed)) {
            add(build, mistake, problems);
        }
    }
}

fn add(build: &Build, mistake: Mistake, problems: &mut Collector) {
    let path = format!("builds.{}.depends_on", shown(&build.name));
    problems.add(build.depends_on_at, path, mistake);
}

/// Cycles of builds, each starting with the build that comes first in the file. Every build that is
/// part of a cycle is in one of these, but not every cycle is listed where cycles cross.
fn cycles(builds: &[Build]) -> Vec<Vec<usize>> {
    let mut search =
        Search { builds, done: vec![false; builds.len()], path: Vec::new(), found: Vec::new() };
    (0..builds.len()).for_each(|build| search.visit(build));
    search.found
}

/// A depth-first search. It follows each dependency once, so it finds each cycle once.
struct Search<'a> {
    builds: &'a [Build],
    done: Vec<bool>,
    path: Vec<usize>,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Recurses at most as deep as there are builds.
    fn visit(&mut self, build: usize) {
        if let Some(start) = self.path.iter().position(|other| *other == build) {
            let mut cycle = self.path[start..].to_vec();
            let first = (0..cycle.len()).min_by_key(|index| cycle[*index]).unwrap_or_default();
            cycle.rotate_left(first);
            self.found.push(cycle);
        } else if !self.done[build] {
            self.path.push(build);
            for name in &self.builds[build].depends_on {
                if let Some(next) = self.builds.iter().position(|other| other.name == *name) {
                    self.visit(next);
                }
            }
            self.path.pop();
            self.done[build] = true;
        }
    }
}

/// Finds a platform that the needed image lacks, which `BuildKit` would only report during the build.
fn platform_mistake(build: &Build, needed: &Build) -> Option<Mistake> {
    let missing = *build.platforms.iter().find(|platform| !needed.platforms.contains(platform))?;
    Some(Mistake::PlatformNotBuilt { needed: needed.name.clone(), missing })
}

fn argument_mistakes(build: &Build, needed: &[&Build]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let mut seen: HashMap<String, &str> = HashMap::new();
    for variant in needed.iter().flat_map(|other| &other.variants) {
        let argument = image_argument(&variant.name);
        let image = shown(&variant.name);
        let is_set = build.build_args.contains_key(&argument)
            || build.variants.iter().any(|own| own.values.contains_key(&argument));
        if is_set {
            mistakes.push(Mistake::ImageArgumentSet { argument, image });
        } else if let Some(first) = seen.insert(argument.clone(), &variant.name) {
            mistakes.push(Mistake::SameImageArgument {
                argument,
                first: shown(first),
                second: image,
            });
        }
    }
    mistakes
}
