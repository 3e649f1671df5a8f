//! Talks to Docker: the engine, the `buildx` command, and a registry's login.

mod build_files;
mod buildx;
mod compose;
mod login;
mod merge;
mod proxies;
mod pull;

mod emulation;

mod binfmt;
mod container;
mod endpoint;
mod engine;
mod image_platforms;

mod abandoned;
mod classify;
mod progress;
mod vertex;

mod command;
mod user_config;

pub use self::binfmt::emulated_platforms;
pub use self::build_files::BuildFiles;
pub use self::buildx::{BuildError, BuildOutcome, BuildRequest, RunningBuild};
pub(crate) use self::classify::container_start_failure;
pub use self::command::DockerCommand;
pub use self::compose::{ComposeError, ComposeProject};
pub use self::emulation::{EmulationError, ensure_emulation};
pub use self::endpoint::{ContextOrigin, Endpoint, EndpointError};
pub use self::engine::{Engine, ProbeError, version_within};
pub use self::image_platforms::other_platform;
pub use self::login::{LoginError, add_user_logins, create_config, login};
pub use self::merge::{MergeError, merge};
pub use self::proxies::set_proxies;
pub use self::pull::{PullError, has_image, pull};
pub(crate) use self::user_config::{is_same_registry, proxies};
pub(crate) use self::vertex::StepName;
pub use self::vertex::{BaseImage, ImageUse};

#[cfg(test)]
pub(crate) use self::progress::{OutputItem, Progress, RawJsonDecoder};
