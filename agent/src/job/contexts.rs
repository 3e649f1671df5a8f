//! The names under which a Dockerfile may use the images of other builds.

use std::collections::BTreeMap;
use std::path::Path;

use stagely_protocol::{BuildArgs, BuildConfig, FailureReason, ImageRef};

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
/// The Dockerfile cannot be read, uses one name for a stage and for another build, or writes a name that Docker refuses.
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
    for (name, image) in &config.build_contexts {
        match dockerfile.name_use(name) {
            NameUse::Both => return Err(same_name(name)),
            NameUse::Stage => {
                log.warn(&format!(
                    "`{name}` is a stage of the Dockerfile and a build that this one depends on: the name \
                     means the stage, and the build's image is only in its build argument"
                ));
                usable.remove(name);
            }
            NameUse::Free => {
                let spelling = dockerfile.spelling(name);
                if let Some(refused) = spelling.filter(|spelling| !is_repository_name(spelling)) {
                    return Err(refused_name(&refused, name, image, &config.build_args));
                }
                if !is_repository_name(name) {
                    usable.remove(name);
                }
            }
        }
    }
    Ok(usable)
}

fn same_name(name: &str) -> JobError {
    let message = format!(
        "the Dockerfile uses the name `{name}` both for a stage and for the build `{name}`: give the stage \
         another name"
    );
    of_dockerfile(message)
}

/// The error of a Dockerfile that writes `refused` for the context `name`, which is the build's `image`.
fn refused_name(refused: &str, name: &str, image: &ImageRef, build_args: &BuildArgs) -> JobError {
    let mut args = build_args.0.iter();
    let instead = match args.find(|(_, value)| *value == image.as_str()) {
        _ if is_repository_name(name) => format!("write `{name}`"),
        Some((arg, _)) => {
            format!("write `ARG {arg}` before the first FROM, and `${{{arg}}}` instead of the name")
        }
        None => "give the build another name".to_owned(),
    };
    of_dockerfile(format!(
        "the Dockerfile uses the build `{refused}` as an image, and Docker takes no image of that name: {instead}"
    ))
}

fn of_dockerfile(message: String) -> JobError {
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
