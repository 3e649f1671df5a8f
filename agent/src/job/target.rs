//! The name under which `buildx` knows the stage that a build ends with.

use std::path::Path;

use stagely_protocol::{BuildConfig, FailureReason};

use super::error::JobError;
use crate::fingerprint::{Target, read_dockerfile};

/// The target of `config` as a name. `None`: the last stage.
///
/// # Errors
/// The Dockerfile cannot be read, or the target is the number of a stage that has no name and is not the last one.
pub(super) fn named_target(
    config: &BuildConfig,
    dockerfile: &Path,
) -> Result<Option<String>, JobError> {
    let Some(target) = &config.target else { return Ok(None) };
    if !target.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Some(target.clone()));
    }
    let dockerfile = read_dockerfile(dockerfile, &config.build_args)
        .map_err(|error| JobError::io("cannot read the Dockerfile", &error))?;
    match dockerfile.target(target) {
        Target::Stage(name) => Ok(Some(name)),
        Target::Last => Ok(None),
        Target::Unnamed => {
            let message = format!(
                "the stage {target} of the Dockerfile has no name, and BuildKit finds stages by name: write \
                 `FROM … AS NAME` and `target: NAME`"
            );
            let reason = FailureReason::User { step: String::new(), exit_code: 1 };
            Err(JobError::with_message(reason, message))
        }
    }
}
