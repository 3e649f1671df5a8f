//! The names under which a Dockerfile may use the images of other builds.

use std::collections::BTreeMap;
use std::path::Path;

use stagely_protocol::{BuildConfig, FailureReason, ImageRef};

use super::error::JobError;
use crate::fingerprint::{NameUse, read_dockerfile};
use crate::job_log::JobLog;

/// The contexts of `config` that can be passed to `buildx`. An image that is left out is still the value of a build
/// argument.
///
/// `BuildKit` takes a named context instead of the Dockerfile's own stage of that name, without a word, so a context is
/// left out if there is such a stage. A name that is not the name of a repository is an error of `buildx`.
///
/// # Errors
/// The Dockerfile cannot be read, or uses one name for a stage and for another build.
pub(super) fn usable_contexts(
    config: &BuildConfig,
    dockerfile: &Path,
    log: &JobLog,
) -> Result<BTreeMap<String, ImageRef>, JobError> {
    if config.build_contexts.is_empty() {
        return Ok(BTreeMap::new());
    }
    let dockerfile = read_dockerfile(dockerfile, &config.build_args)
        .map_err(|error| JobError::io("cannot read the Dockerfile", &error))?;
    let mut usable = config.build_contexts.clone();
    for name in config.build_contexts.keys() {
        match dockerfile.name_use(name) {
            NameUse::Both => return Err(same_name(name)),
            NameUse::Stage => {
                log.warn(&format!(
                    "`{name}` is a stage of the Dockerfile and a build that this one depends on: the name \
                     means the stage, and the build's image is only in its build argument"
                ));
                usable.remove(name);
            }
            NameUse::Free if !is_repository_name(name) => {
                usable.remove(name);
            }
            NameUse::Free => {}
        }
    }
    Ok(usable)
}

fn same_name(name: &str) -> JobError {
    let message = format!(
        "the Dockerfile uses the name `{name}` both for a stage and for the build `{name}`: give the stage \
         another name"
    );
    JobError::with_message(FailureReason::User { step: String::new(), exit_code: 1 }, message)
}

/// Whether Docker takes `name` as one component of a repository's name.
///
/// Source: `github.com/distribution/reference`, `path-component` and `ParseNormalizedNamed`.
fn is_repository_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_word_end = |byte: Option<&u8>| byte.is_some_and(|byte| is_word(*byte));
    let bytes = name.as_bytes();
    let mut separators = bytes.split(|byte| is_word(*byte));
    let is_separator = |part: &[u8]| {
        matches!(part, b"" | b"." | b"_" | b"__") || part.iter().all(|byte| *byte == b'-')
    };
    let is_image_id = bytes.len() == 64 && bytes.iter().all(u8::is_ascii_hexdigit);
    is_word_end(bytes.first())
        && is_word_end(bytes.last())
        && separators.all(is_separator)
        && !is_image_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_repository_names_as_docker_says() {
        let long = "a".repeat(64);
        for name in ["base", "b", "a-b", "a--b", "a_b", "a__b", "a.b", "1", "base-os-3.18"] {
            assert!(is_repository_name(name), "{name}");
        }
        let refused = [
            "", "Base", "_base", "base-", "base_", ".a", "a..b", "a___b", "a-_b", "a._b", "c++",
            &long,
        ];
        for name in refused {
            assert!(!is_repository_name(name), "{name}");
        }
    }
}
