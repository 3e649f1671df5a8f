//! The names of a run's images and layer caches in the registry.

use sha2::{Digest as _, Sha256};
use stagely_manifest::{Build, Variant};
use stagely_protocol::{ImageRef, InvalidValue, Platform};

use super::PlanContext;

/// The repository of a project's layer caches. No environment may have this name.
pub(super) const CACHE_REPOSITORY: &str = "cache";

/// The longest tag that registries accept.
///
/// Source: distribution specification, `<reference>`.
const TAG_CHARACTERS_MAX: usize = 128;

/// The references that one run pushes to and reads.
pub(super) struct References<'a> {
    context: &'a PlanContext<'a>,
}

pub(super) struct Caches {
    pub(super) from: Vec<ImageRef>,
    pub(super) to: Option<ImageRef>,
    /// Whether `to` belongs to the environment alone.
    pub(super) is_own: bool,
}

impl<'a> References<'a> {
    pub(super) const fn new(context: &'a PlanContext<'a>) -> Self {
        Self { context }
    }

    /// This run's own reference for the image that has the reference `tag` in each run.
    pub(super) fn of_run(&self, tag: &str) -> Result<ImageRef, InvalidValue> {
        let run = self.context.run.to_string();
        let ulid = run.split_once('_').map_or(&*run, |(_, ulid)| ulid);
        self.tag(&format!("{tag}.{ulid}"))
    }

    /// The reference that is the same in each run of the environment.
    pub(super) fn tag(&self, tag: &str) -> Result<ImageRef, InvalidValue> {
        self.reference(&self.context.environment.name, tag)
    }

    fn reference(&self, repository: &str, tag: &str) -> Result<ImageRef, InvalidValue> {
        let PlanContext { registry, project, .. } = self.context;
        format!("{registry}/{}/{repository}:{tag}", project.name).parse()
    }

    /// The caches that a job reads and the cache that it writes. Only runs of the default branch and warm-ups write the
    /// caches that all environments read; another environment writes a cache of its own.
    pub(super) fn caches(
        &self,
        build: &Build,
        variant: &Variant,
        platform: Platform,
    ) -> Result<Caches, InvalidValue> {
        let PlanContext { from_fork, push, is_default_branch, environment, .. } = self.context;
        let tag = build.cache_tag(variant, platform);
        let shared = self.reference(CACHE_REPOSITORY, &tag)?;
        let own_tag = own_cache_tag(&tag, &environment.name);
        let own = self.reference(CACHE_REPOSITORY, &own_tag)?;
        let may_share = *is_default_branch || !push;
        let (first, to, is_own) = match (*from_fork, may_share) {
            (true, _) => (None, None, false),
            (false, true) => (None, Some(shared.clone()), false),
            (false, false) => (Some(own.clone()), Some(own), true),
        };
        let mut from: Vec<ImageRef> = first.into_iter().chain([shared]).collect();
        let of_file = build.cache_from.iter().filter(|cache| !from.contains(cache)).cloned();
        let of_file: Vec<_> = of_file.collect();
        from.extend(of_file);
        Ok(Caches { from, to, is_own })
    }
}

/// The own cache of an environment beside the cache `shared`: `app-arm64.pr-7`. A name that is too long is cut and
/// gets a hash. It never equals a shared cache, not even of another commit, because shared caches have dots in pairs.
fn own_cache_tag(shared: &str, environment: &str) -> String {
    let room = TAG_CHARACTERS_MAX.saturating_sub(shared.len() + 1);
    if environment.len() <= room {
        return format!("{shared}.{environment}");
    }
    let hash: [u8; 32] = Sha256::digest(environment.as_bytes()).into();
    let mark = format!("-{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    // Names of environments are ASCII.
    let name: String = environment.chars().take(room.saturating_sub(mark.len())).collect();
    format!("{shared}.{name}{mark}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_an_environment_fits_and_is_nobody_elses() {
        assert_eq!(own_cache_tag("py-3", "pr-7"), "py-3.pr-7");
        let longest = "x".repeat(101);
        let names = ["y".repeat(99), "y".repeat(100)].map(|name| own_cache_tag(&longest, &name));
        assert!(names.iter().all(|name| name.len() == 128) && names[0] != names[1], "{names:?}");
    }
}
