//! Checks that the names of jobs, images and caches are short enough and unique.

use std::collections::{HashMap, HashSet};

use super::limits::{IMAGE_TAG_MAX, JOB_NAME_MAX};
use super::manifest::Build;
use super::mistake::Mistake;
use super::problem::Collector;
use super::suggest::shown;

const NAME: &str = "name";
const JOB: &str = "job";
const IMAGE_TAG: &str = "image tag";
const CACHE_TAG: &str = "cache tag";

/// Every name that the build uses.
fn taken_names(build: &Build) -> Vec<TakenName> {
    let mut names = vec![TakenName { what: NAME, text: build.name.clone() }];
    for variant in &build.variants {
        if build.has_matrix() {
            names.push(TakenName { what: NAME, text: variant.name.clone() });
        }
        for platform in &build.platforms {
            let job = build.job_name(variant, *platform);
            let cache = build.cache_tag(variant, *platform);
            names.push(TakenName { what: JOB, text: job });
            names.push(TakenName { what: IMAGE_TAG, text: variant.image_tag(*platform) });
            names.push(TakenName { what: CACHE_TAG, text: cache });
        }
        if build.is_multi_platform() {
            names.push(TakenName { what: JOB, text: variant.merge_job_name() });
            names.push(TakenName { what: IMAGE_TAG, text: variant.name.clone() });
        }
    }
    names
}

/// Notes names that are too long or already taken by an earlier build. Names that differ only in case
/// are taken as well: people and some file systems confuse them.
pub(super) fn check(builds: &[Build], problems: &mut Collector) {
    let mut taken = HashMap::new();
    for build in builds {
        let names = taken_names(build);
        // One mistake for each build: the others follow from it.
        let mistake = names.iter().find_map(|name| name.mistake(build, &taken));
        if let Some(mistake) = mistake.or_else(|| own_mistake(&names)) {
            problems.add(build.at, format!("builds.{}", shown(&build.name)), mistake);
        }
        for name in names {
            taken.entry(name.key()).or_insert((build, name.text));
        }
    }
}

/// A name that two of a build's own jobs share: with two platforms, the image of the combination `1` for
/// `amd64` has the name of the combination `1-amd64`.
fn own_mistake(names: &[TakenName]) -> Option<Mistake> {
    let mut seen = HashSet::new();
    let twice = names.iter().find(|name| name.what != NAME && !seen.insert(name.key()))?;
    Some(Mistake::OwnNameTwice { what: twice.what, name: twice.text.clone() })
}

/// The kind and lower-case form of each taken name → its build, and the name as written.
type Taken<'a> = HashMap<(&'static str, String), (&'a Build, String)>;

/// A name that a build uses.
struct TakenName {
    what: &'static str,
    text: String,
}

impl TakenName {
    fn key(&self) -> (&'static str, String) {
        (self.what, self.text.to_lowercase())
    }

    fn mistake(&self, build: &Build, taken: &Taken<'_>) -> Option<Mistake> {
        let Self { what, text } = self;
        let (what_has, max) = match *what {
            JOB => ("a job's name", JOB_NAME_MAX),
            IMAGE_TAG => ("an image's tag without the run's id", IMAGE_TAG_MAX),
            // The cache of an environment appends a dot and the environment's name, which may be cut.
            CACHE_TAG => ("a layer cache's tag, with each dot twice,", IMAGE_TAG_MAX),
            _ => ("a name", usize::MAX),
        };
        let length = text.len();
        if length > max {
            let suffix = text.strip_prefix(&build.name).unwrap_or_default().to_owned();
            return Some(Mistake::NameTooLong { what: what_has, length, suffix, max });
        }
        let (other, other_text) = taken.get(&self.key())?;
        Some(Mistake::NameTaken {
            what,
            name: text.clone(),
            other: other.name.clone(),
            other_line: other.at.line,
            but_for_case: text != other_text,
        })
    }
}
