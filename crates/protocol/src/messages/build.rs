//! Core → agent: BUILD and MERGE, the work of a machine.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{Step, expose_secret, expose_secret_option, is_true};
use crate::{CommitSha, Emulation, Fingerprint, ImageRef, Platform, Submodules, WireId};

/// BUILD: clone a commit, build its image, and push it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Build {
    pub job_id: WireId,
    pub context: CloneContext,
    pub build_config: BuildConfig,
    /// Absent if the registry needs no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}

/// Where the source is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloneContext {
    /// Without credentials.
    pub repo_url: String,
    pub commit_hash: CommitSha,
    /// A branch that contains the commit, for servers that do not serve a bare commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Absent if the repository needs no credentials.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_secret_option"
    )]
    pub clone_token: Option<SecretString>,
    #[serde(default, skip_serializing_if = "Submodules::is_all")]
    pub submodules: Submodules,
}

/// How one image is built, and where it is pushed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildConfig {
    /// Relative to the repository's root.
    pub context_path: String,
    /// Relative to the context, or else to the repository's root. Default: `Dockerfile`.
    #[serde(default = "default_dockerfile")]
    pub dockerfile: String,
    /// The reference under which the image is pushed.
    pub target_image: ImageRef,
    pub platform: Platform,
    /// `--build-arg`.
    #[serde(default)]
    pub build_args: BuildArgs,
    /// `--target`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `--cache-from`.
    #[serde(default)]
    pub cache_from: Vec<ImageRef>,
    /// `--cache-to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_to: Option<ImageRef>,
    /// The agent stops the build after this many seconds. Default: 1800.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// False in a warm-up, which only fills caches. Default: true.
    #[serde(default = "default_push", skip_serializing_if = "is_true")]
    pub push: bool,
    /// `--build-context`: names that the Dockerfile may use in `FROM` and `COPY --from`, each with an
    /// image by digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub build_contexts: BTreeMap<String, ImageRef>,
    /// Default: allow.
    #[serde(default, skip_serializing_if = "Emulation::is_allowed")]
    pub emulation: Emulation,
    /// The steps of the last native run of the same build. An emulated build is compared with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub native_steps: Vec<Step>,
    /// The fingerprint of the build that wrote the imported cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_fingerprint: Option<Fingerprint>,
}

fn default_dockerfile() -> String {
    "Dockerfile".to_owned()
}

const fn default_timeout_seconds() -> u64 {
    30 * 60
}

const fn default_push() -> bool {
    true
}

/// Build arguments. Their values stay out of `Debug`, because some are secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildArgs(pub BTreeMap<String, String>);

impl BuildArgs {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for BuildArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The credentials for `docker login`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegistryAuth {
    pub username: String,
    #[serde(serialize_with = "expose_secret")]
    pub password: SecretString,
}

/// MERGE: join single-platform images into one index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Merge {
    pub job_id: WireId,
    /// By digest.
    pub source_images: Vec<ImageRef>,
    /// The reference of the index.
    pub target_image: ImageRef,
    /// The index must hold exactly these platforms. Empty: no check.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Absent if the registry needs no login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<RegistryAuth>,
}
