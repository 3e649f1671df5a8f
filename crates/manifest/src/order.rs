//! `depends_on`: which builds wait for which, and what the images they wait for are called.

use std::collections::HashMap;

use super::Build;
use super::fault::Fault;
use super::fields::{Field, read_value};
use super::problem::Collector;
use super::read::limit;
use super::suggest::{closest, shown};

/// The build argument that gives a build the image of `variant`, which it depends on:
/// `STAGELY_IMAGE_BASE`.
pub fn image_argument(variant: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("STAGELY_IMAGE_{}", variant.chars().map(letter).collect::<String>())
}

/// The most builds that one may depend on.
pub(super) const DEPENDS_ON_MAX: usize = 32;

/// The most images that one build may use. Each of its jobs names them all.
const IMAGES_MAX: usize = 64;

/// Reads the list of the build `own`. `known` are the names of all builds of the file.
pub(super) fn depends_on(
    field: &Field<'_>,
    own: &str,
    known: &[&str],
    problems: &mut Collector,
) -> Vec<String> {
    let Some(mut items) = field.list() else {
        let hint = field.scalar().map(|_| "write `[…]` around it");
        problems.add(field.at(), &*field.path, field.wanted("a list of builds", hint));
        return Vec::new();
    };
    limit(field, &mut items, DEPENDS_ON_MAX, problems);
    let mut names: Vec<String> = Vec::new();
    for item in &items {
        let Some(name) = read_value(item, |field| field.text().map(str::to_owned), problems) else {
            continue;
        };
        match fault_of(&name, own, known, &names) {
            Some(fault) => problems.add(item.at(), &*item.path, fault),
            None => names.push(name),
        }
    }
    names
}

fn fault_of(name: &str, own: &str, known: &[&str], before: &[String]) -> Option<Fault> {
    if name == own {
        return Some(Fault::DependsOnItself);
    }
    if before.iter().any(|other| other == name) {
        return Some(Fault::Twice(shown(name)));
    }
    if known.contains(&name) {
        return None;
    }
    let others = || known.iter().copied().filter(|other| *other != own);
    let suggestion = closest(name, others()).map(shown);
    Some(Fault::UnknownBuild {
        name: name.to_owned(),
        suggestion,
        known: others().map(shown).collect(),
    })
}

/// Notes circles, and images that are too many, lack a platform, or would share a build argument.
pub(super) fn check(builds: &[Build], problems: &mut Collector) {
    for cycle in cycles(builds) {
        let first = &builds[cycle[0]];
        let names: Vec<_> =
            cycle.iter().chain(&cycle[..1]).map(|it| shown(&builds[*it].name)).collect();
        add(first, Fault::Cycle(names.join(" -> ")), problems);
    }
    for build in builds {
        let needed: Vec<&Build> =
            builds.iter().filter(|other| build.depends_on.contains(&other.name)).collect();
        let images = needed.iter().map(|other| other.variants.len()).sum();
        if images > IMAGES_MAX {
            add(build, Fault::TooManyImages { images, max: IMAGES_MAX }, problems);
            continue;
        }
        let faults = needed.iter().filter_map(|other| platform_fault(build, other));
        for fault in faults.chain(argument_faults(build, &needed)) {
            add(build, fault, problems);
        }
    }
}

fn add(build: &Build, fault: Fault, problems: &mut Collector) {
    let path = format!("builds.{}.depends_on", shown(&build.name));
    problems.add(build.depends_on_at, path, fault);
}

/// Circles of builds, each from the one that comes first in the file. Every build that is in one is
/// in one of these, though where circles cross there may be more.
fn cycles(builds: &[Build]) -> Vec<Vec<usize>> {
    let mut search =
        Search { builds, done: vec![false; builds.len()], path: Vec::new(), found: Vec::new() };
    (0..builds.len()).for_each(|build| search.visit(build));
    search.found
}

/// A search in depth. Each dependency is followed once, so each circle is found once.
struct Search<'a> {
    builds: &'a [Build],
    done: Vec<bool>,
    path: Vec<usize>,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// No deeper than there are builds.
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

/// An image of another platform is no base: `BuildKit` would find that out in the middle of the build.
fn platform_fault(build: &Build, needed: &Build) -> Option<Fault> {
    let missing = *build.platforms.iter().find(|it| !needed.platforms.contains(it))?;
    Some(Fault::PlatformNotBuilt { needed: needed.name.clone(), missing })
}

fn argument_faults(build: &Build, needed: &[&Build]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut seen: HashMap<String, &str> = HashMap::new();
    for variant in needed.iter().flat_map(|other| &other.variants) {
        let argument = image_argument(&variant.name);
        let image = shown(&variant.name);
        let is_set = build.build_args.contains_key(&argument)
            || build.variants.iter().any(|own| own.values.contains_key(&argument));
        if is_set {
            faults.push(Fault::ImageArgumentSet { argument, image });
        } else if let Some(first) = seen.insert(argument.clone(), &variant.name) {
            faults.push(Fault::SameImageArgument { argument, first: shown(first), second: image });
        }
    }
    faults
}
