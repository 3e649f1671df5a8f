//! What a build's jobs, images and caches are called, and that no two builds want the same name.

use std::collections::HashMap;

use stagely_agent::protocol::Platform;

use super::Build;
use super::fault::Fault;
use super::problem::Collector;
use super::suggest::shown;

/// The longest name of a job, in characters, all of them ASCII.
const JOB_NAME_MAX: usize = 100;

const JOB: &str = "job";

impl Build {
    /// Whether images of several platforms are joined.
    pub const fn is_multi_platform(&self) -> bool {
        self.platforms.len() > 1
    }

    /// The name of the job that builds `platform`: `backend`, or `app_arm64` where the build has
    /// several.
    pub fn job_name(&self, platform: Platform) -> String {
        if self.is_multi_platform() {
            format!("{}_{}", self.name, platform.arch())
        } else {
            self.name.clone()
        }
    }

    /// The name of the job that joins the images: `app_merge`.
    pub fn merge_job_name(&self) -> String {
        format!("{}_merge", self.name)
    }

    /// The tag of the image of `platform`: `app-arm64`.
    pub fn image_tag(&self, platform: Platform) -> String {
        format!("{}-{}", self.name, platform.arch())
    }

    /// The tag of the joined image: `app`.
    pub fn merged_image_tag(&self) -> &str {
        &self.name
    }

    /// The tag of the layer cache of `platform`. One tag for two arches would lose one of them.
    pub fn cache_tag(&self, platform: Platform) -> String {
        if self.is_multi_platform() { self.image_tag(platform) } else { self.name.clone() }
    }

    /// Every name that the build takes.
    fn taken_names(&self) -> Vec<TakenName> {
        let mut names = vec![TakenName { what: "name", text: self.name.clone() }];
        for platform in &self.platforms {
            names.push(TakenName { what: JOB, text: self.job_name(*platform) });
            names.push(TakenName { what: "image tag", text: self.image_tag(*platform) });
            names.push(TakenName { what: "cache tag", text: self.cache_tag(*platform) });
        }
        if self.is_multi_platform() {
            names.push(TakenName { what: JOB, text: self.merge_job_name() });
            names.push(TakenName { what: "image tag", text: self.merged_image_tag().to_owned() });
        }
        names
    }
}

/// Notes names that are too long, or that an earlier build has taken. Names that differ in upper
/// and lower case alone are taken too: people mix them up, and so do some file systems.
pub(super) fn check(builds: &[Build], problems: &mut Collector) {
    let mut taken = HashMap::new();
    for build in builds {
        let names = build.taken_names();
        // One fault a build is enough: the others follow from it.
        if let Some(fault) = names.iter().find_map(|name| name.fault(build, &taken)) {
            problems.add(build.at, format!("builds.{}", shown(&build.name)), fault);
        }
        for name in names {
            taken.entry(name.key()).or_insert((build, name.text));
        }
    }
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
        if *what == JOB && text.len() > JOB_NAME_MAX {
            let suffix = text.strip_prefix(&build.name).unwrap_or_default().to_owned();
            return Some(Fault::NameTooLong { length: text.len(), suffix, max: JOB_NAME_MAX });
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
