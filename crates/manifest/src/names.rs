//! What a build's jobs, images and caches are called, and that no two want the same name.

use std::collections::{HashMap, HashSet};

use stagely_protocol::Platform;

use super::fault::Fault;
use super::problem::Collector;
use super::suggest::shown;
use super::{Build, Variant};

/// The longest name of a job, in characters, all of them ASCII.
const JOB_NAME_MAX: usize = 100;

/// The longest tag of an image that is the same in each run. A registry takes 128 characters, and a
/// run puts a dot and its id behind it.
const IMAGE_TAG_MAX: usize = 128 - 27;

const NAME: &str = "name";
const JOB: &str = "job";
const IMAGE_TAG: &str = "image tag";
const CACHE_TAG: &str = "cache tag";

impl Build {
    /// Whether images of several platforms are joined.
    pub const fn is_multi_platform(&self) -> bool {
        self.platforms.len() > 1
    }

    /// Whether it is made in several combinations, or may be.
    pub fn has_matrix(&self) -> bool {
        self.variants.iter().any(|variant| !variant.values.is_empty())
    }

    /// The jobs of each variant: one a platform, and a merge of several.
    pub const fn jobs_of_each_variant(&self) -> usize {
        self.platforms.len() + self.is_multi_platform() as usize
    }

    /// All jobs that it makes.
    pub const fn job_count(&self) -> usize {
        self.variants.len() * self.jobs_of_each_variant()
    }

    /// The name of the job that builds `platform`: `backend`, or `app_arm64` where the build has
    /// several platforms or a matrix.
    pub fn job_name(&self, variant: &Variant, platform: Platform) -> String {
        if self.is_multi_platform() || self.has_matrix() {
            format!("{}_{}", variant.name, platform.arch())
        } else {
            variant.name.clone()
        }
    }

    /// The tag of the layer cache of `platform`. One tag for two arches would lose one of them. Each dot
    /// of a matrix's value is doubled: a single one stands before the name of an environment in the tags
    /// of its own caches, and `py-3` of the branch `10` is not `py-3.10`.
    pub fn cache_tag(&self, variant: &Variant, platform: Platform) -> String {
        let tag = if self.is_multi_platform() {
            variant.image_tag(platform)
        } else {
            variant.name.clone()
        };
        tag.replace('.', "..")
    }

    /// Every name that the build takes.
    fn taken_names(&self) -> Vec<TakenName> {
        let mut names = vec![TakenName { what: NAME, text: self.name.clone() }];
        for variant in &self.variants {
            if self.has_matrix() {
                names.push(TakenName { what: NAME, text: variant.name.clone() });
            }
            for platform in &self.platforms {
                let job = self.job_name(variant, *platform);
                let cache = self.cache_tag(variant, *platform);
                names.push(TakenName { what: JOB, text: job });
                names.push(TakenName { what: IMAGE_TAG, text: variant.image_tag(*platform) });
                names.push(TakenName { what: CACHE_TAG, text: cache });
            }
            if self.is_multi_platform() {
                names.push(TakenName { what: JOB, text: variant.merge_job_name() });
                names.push(TakenName { what: IMAGE_TAG, text: variant.name.clone() });
            }
        }
        names
    }
}

impl Variant {
    /// The name of the job that joins the images: `app_merge`.
    pub fn merge_job_name(&self) -> String {
        format!("{}_merge", self.name)
    }

    /// The tag of the image of `platform`: `app-arm64`. That of the joined image is the variant's name.
    pub fn image_tag(&self, platform: Platform) -> String {
        format!("{}-{}", self.name, platform.arch())
    }
}

/// Notes names that are too long, or that an earlier build has taken. Names that differ in upper
/// and lower case alone are taken too: people mix them up, and so do some file systems.
pub(super) fn check(builds: &[Build], problems: &mut Collector) {
    let mut taken = HashMap::new();
    for build in builds {
        let names = build.taken_names();
        // One fault a build is enough: the others follow from it.
        let fault = names.iter().find_map(|name| name.fault(build, &taken));
        if let Some(fault) = fault.or_else(|| own_fault(&names)) {
            problems.add(build.at, format!("builds.{}", shown(&build.name)), fault);
        }
        for name in names {
            taken.entry(name.key()).or_insert((build, name.text));
        }
    }
}

/// A name that two of a build's own jobs want: with two platforms, the image of the combination `1` for
/// `amd64` has the name of the combination `1-amd64`.
fn own_fault(names: &[TakenName]) -> Option<Fault> {
    let mut seen = HashSet::new();
    let twice = names.iter().find(|name| name.what != NAME && !seen.insert(name.key()))?;
    Some(Fault::OwnNameTwice { what: twice.what, name: twice.text.clone() })
}

/// By what it is and its lower-case form: the build that has it, and the name itself.
type Taken<'a> = HashMap<(&'static str, String), (&'a Build, String)>;

/// A name that a build takes.
struct TakenName {
    what: &'static str,
    text: String,
}

impl TakenName {
    fn key(&self) -> (&'static str, String) {
        (self.what, self.text.to_lowercase())
    }

    fn fault(&self, build: &Build, taken: &Taken<'_>) -> Option<Fault> {
        let Self { what, text } = self;
        let (what_has, max) = match *what {
            JOB => ("a job's name", JOB_NAME_MAX),
            IMAGE_TAG => ("an image's tag without the run's id", IMAGE_TAG_MAX),
            // An environment's own has a dot and the environment's name behind it, which may be cut.
            CACHE_TAG => ("a layer cache's tag, with each dot twice,", IMAGE_TAG_MAX),
            _ => ("a name", usize::MAX),
        };
        let length = text.len();
        if length > max {
            let suffix = text.strip_prefix(&build.name).unwrap_or_default().to_owned();
            return Some(Fault::NameTooLong { what: what_has, length, suffix, max });
        }
        let (other, other_text) = taken.get(&self.key())?;
        Some(Fault::NameTaken {
            what,
            name: text.clone(),
            other: other.name.clone(),
            other_line: other.at.line,
            but_for_case: text != other_text,
        })
    }
}
